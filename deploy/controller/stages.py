"""The state of one stage, what becomes of its attempts, and which stages begin. Pure."""

from collections.abc import Iterator

from deploy.controller.actions import Action, Begin, Close, Kill, Leave
from deploy.controller.decision import RESTS, StageState, State
from deploy.controller.observed import Attempt, Observed, Stage
from deploy.controller.policies import (
    age,
    counted,
    ending,
    exhausted,
    of_use,
    out_of_grace,
    overdue,
    user_of,
    waits,
    withdrawn,
)
from nanocode.config.settings import Controller
from nanocode.run.attempts import Ending


def asked_for(seen: Observed, name: str) -> bool:
    """Whether the user wants this stage."""
    return not seen.intent.stages or name in seen.intent.stages


def state_at_rest(stage: Stage, seen: Observed, policy: Controller, stopped: StageState | None) -> StageState:
    """The state of a stage without a live attempt."""
    if stage.done:
        return StageState(State.DONE)
    if stopped is not None:
        return stopped
    if stage.held:
        return StageState(State.STALE if stage.marked is not None else State.WAITING, stage.held)
    ends = counted(stage, seen.intent.forgiven.get(stage.name, 0))
    if asked_for(seen, stage.name) and (reason := exhausted(ends, policy) or _out_of_reach(stage, seen)):
        return StageState(State.FAILED, reason)
    if ends and ends[-1].ending is Ending.PREEMPTED:
        return StageState(State.PREEMPTED, ends[-1].reason)
    if stage.marked is not None:
        return StageState(State.STALE, "settings or inputs have changed since it was done")
    return StageState(State.WAITING, missing(stage, seen))


def _out_of_reach(stage: Stage, seen: Observed) -> str:
    """Why a stage that is asked for can never run; empty if it can."""
    if stage.reads_what_is_there:
        return ""
    for other in seen.stages:
        if other.name in stage.reads and not other.done and not asked_for(seen, other.name):
            return f"it needs stage {other.name}, which is not done and not among the stages asked for"
    return ""


def missing(stage: Stage, seen: Observed) -> str:
    """What has to be done first."""
    names = [
        other.name
        for other in seen.stages
        if other.name in stage.reads and not other.done
        if not stage.reads_what_is_there or asked_for(seen, other.name)
    ]
    return f"waits for {', '.join(names)}" if names else ""


def state_of_live(stage: Stage) -> StageState | None:
    """The state of a stage with a live attempt; None for any other, and for one that is done."""
    live = next((attempt for attempt in reversed(stage.attempts) if attempt.live), None)
    if live is None or stage.done:
        return None
    if live.stop is not None:
        return StageState(State.RUNNING, f"attempt {live.number} was told to leave: {live.stop.reason}")
    return StageState(State.RUNNING if live.first_step is not None else State.STARTING)


def live_actions(
    stage: Stage, attempt: Attempt, seen: Observed, policy: Controller, verdict: StageState
) -> Iterator[Action]:
    """What becomes of a live attempt: it is closed, ended by force, told to leave, or left alone."""
    known = "backend" not in seen.unknown
    if known and (end := ending(stage, attempt, policy, seen.now)) is not None:
        yield Close(stage.name, attempt.number, *end, stage.progress)
        return
    if known and out_of_grace(attempt, policy, seen.now):
        yield Kill(stage.name, attempt.number)
    elif attempt.stop is not None:
        yield Leave(stage.name, attempt.number, attempt.stop.reason, attempt.stop.hung)
    elif attempt.digest != stage.digest and not stage.held:
        yield Leave(stage.name, attempt.number, "settings or inputs have changed")
    elif stage.done:
        # Whoever has just published the marker is about to end by itself.
        if age(seen.now, attempt.last_sign or attempt.claimed) > policy.termination_seconds:
            yield Leave(stage.name, attempt.number, "the stage is done")
    elif verdict.state in RESTS:
        yield Leave(stage.name, attempt.number, verdict.reason)
    elif known and (why := withdrawn(attempt, seen.slices, policy, seen.now)):
        yield Leave(stage.name, attempt.number, why)
    elif known and (late := overdue(attempt, policy, seen.now, seen.stepped)) is not None:
        yield Leave(stage.name, attempt.number, *late)


def any_failed(states: dict[str, StageState]) -> bool:
    """Whether a stage that is asked for has failed."""
    return any(state.state is State.FAILED for state in states.values())


def machines_free(seen: Observed, policy: Controller) -> int:
    """How many more stages may run beside those that do."""
    return policy.attempts_at_once - sum(stage.lives for stage in seen.stages)


def beginnings(seen: Observed, policy: Controller, states: dict[str, StageState]) -> Iterator[Begin]:
    """The attempts to begin now: in the order of the graph, on free slices, within the machines allowed."""
    room = machines_free(seen, policy)
    free = [one for one in seen.slices if of_use(one) and user_of(one, seen.stages) is None]
    for stage in ready(seen, policy, states):
        if room <= 0:
            return
        slice: str | None = None
        if stage.machine == "accelerator":
            if not free:
                continue
            slice = free.pop(0).name
        room -= 1
        number = max((one.number for one in stage.attempts), default=0) + 1
        yield Begin(stage.name, number, stage.digest, slice)


def ready(seen: Observed, policy: Controller, states: dict[str, StageState]) -> list[Stage]:
    """The stages that could run now, were a machine free."""
    if any_failed(states):
        return []  # what lives may end, and nothing new is paid for
    return [
        stage
        for stage in seen.stages
        if states[stage.name].state in (State.WAITING, State.STALE, State.PREEMPTED)
        if asked_for(seen, stage.name) and not stage.held
        if not missing(stage, seen)
        if not waits(counted(stage, seen.intent.forgiven.get(stage.name, 0)), policy, seen.now)
    ]
