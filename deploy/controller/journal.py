"""The third seam: what was written down about a run. `record.RunJournal` keeps it in the run directory.

Every method may raise `Unreachable`: no answer, and nobody knows whether it happened. Facts are written once: the first
word counts, a second one is ignored, so every method may simply be called again.
"""

from dataclasses import dataclass
from typing import Protocol

from deploy.controller.decision import Decision
from deploy.controller.observed import Slice, Stage
from nanocode.config.settings import Budget, Controller
from nanocode.run.attempts import End, Stop
from nanocode.run.intent import Intent


@dataclass(frozen=True)
class Written:
    """What is written about a run at one moment; processes and the presence of slices are for others to say."""

    intent: Intent
    policy: Controller
    budget: Budget
    stages: tuple[Stage, ...]
    slices: tuple[Slice, ...]
    told: frozenset[str] = frozenset()
    """Keys of what the user was told already."""
    dollars_per_hour_at_work: float = 0.0
    """As in `Observed`."""
    dollars_stored: float = 0.0
    """As in `Observed`."""
    shown: float | None = None
    """When a status was last published by whoever was the controller before; None: never, or it is not known."""
    dollars_copied: float = 0.0
    """As in `Observed`."""


class Journal(Protocol):
    """Reads and writes it."""

    def read(self) -> Written:
        """All of it, as of now; a reader may be a little late, but what it once showed it shows again."""

    def claim(self, stage: str, attempt: int, digest: str, slice: str | None) -> bool:
        """Begin exactly this attempt; False when somebody else has."""

    def stop(self, stage: str, attempt: int, stop: Stop) -> None: ...

    def end(self, stage: str, attempt: int, end: End) -> None: ...

    def request(self, name: str, zone: str, dollars_per_hour: float | None, at: float) -> str:
        """Want a slice of this name; the zone that counts, which is another one where somebody was faster."""

    def note(self, name: str, fact: str, at: float, reason: str = "") -> None:
        """`ready`, `released`, `gone`, or the value of a `Trouble`, with the sentence that says what it is."""

    def told(self, key: str) -> bool:
        """Note that the user is told this; False when somebody has told them."""

    def show(self, decision: Decision, at: float) -> None:
        """Publish the status, if it says anything new."""
