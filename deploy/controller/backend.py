"""The two seams: where attempts run, and where slices come from. What is decided is the same for all of them.

Every method may raise `Unreachable`: no answer, and nobody knows whether it happened. Every method that acts is
idempotent under the name it is given, so the next round may simply try again. None of them waits for what it began.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from deploy.controller.observed import Seen, Slice


class Unreachable(Exception):
    """A backend or provisioner gave no answer in time, or refused for now; one line that says which and why."""


class Backend(Protocol):
    """Runs attempts under their names: `(stage, attempt)` of one run."""

    def observe(self, live: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], Seen]:
        """What is known of each of these attempts, and of any other of the run; one that is left out is ABSENT."""

    def start(self, stage: str, attempt: int, slice: str | None) -> None:
        """Begin the process of an attempt that we have just claimed."""

    def stop(self, stage: str, attempt: int) -> None:
        """Ask the process to save and leave (SIGTERM); asked before is no error."""

    def kill(self, stage: str, attempt: int) -> None:
        """End it now, and whatever it started; if it is alive, let it dump the stacks of its threads first."""

    def forget(self, stage: str, attempt: int) -> None:
        """It has ended and that is recorded: clean up what need not be kept."""


class Provisioner(Protocol):
    """Gets slices, and gives them back."""

    def observe(self) -> Mapping[str, Slice]:
        """Those that exist, by name, with `present`, `usable` and `trouble` set; the recorded facts are not its own."""

    def request(self, name: str, zone: str) -> None:
        """Ask for a slice of this name."""

    def release(self, name: str) -> None:
        """Give it back; it is gone when `observe` no longer shows it."""
