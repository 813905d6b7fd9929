"""What `decide` returns."""

from dataclasses import dataclass
from enum import StrEnum

from deploy.controller.actions import Action


class State(StrEnum):
    """Of a stage; the table is in `decide`."""

    WAITING = "waiting"
    PROVISIONING = "provisioning"
    STARTING = "starting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FAILED = "failed"
    DONE = "done"
    STALE = "stale"
    SUSPENDED = "suspended"
    CANCELLED = "cancelled"
    OVER_BUDGET = "over budget"


RESTS = (State.DONE, State.FAILED, State.SUSPENDED, State.CANCELLED, State.OVER_BUDGET)
"""Where only the user, or nobody, has anything to do."""


@dataclass(frozen=True)
class StageState:
    state: State
    reason: str = ""


@dataclass(frozen=True)
class Decision:
    """What to do now, in this order, and what to tell whoever asks."""

    actions: tuple[Action, ...]
    stages: dict[str, StageState]
    state: State
    """Of the run: DONE, FAILED, SUSPENDED, CANCELLED and OVER_BUDGET are where a controller may rest."""
    reason: str
    spent_dollars: float
    resting: bool
    """Nothing lives, nothing is held, and only the user can change anything: a local controller ends here."""
