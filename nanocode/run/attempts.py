"""The life of an attempt in three small objects, each created only if absent, so the first word on it is the last.

    <stage>/attempts/<n>/claim.json    who began it, with which input digest, on which slice (`directory.Claim`)
    <stage>/attempts/<n>/STOP.json     it was told to stop, why, and when: before any signal is sent
    <stage>/attempts/<n>/EXIT.json     how its process ended, written by whoever kept it, beside the process
    <stage>/attempts/<n>/END.json      what that ending counts as, and how far the stage was by then

A claim without an END is a live attempt, whatever happened to its process. Whoever creates the claim starts the
process, nobody else; an attempt that finds its own END, or a claim with a higher number, leaves.
"""

import signal
from enum import StrEnum
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from nanocode.run.directory import RunDirectory, numbers
from nanocode.run.exits import Exit
from nanocode.storage.objects import AlreadyExists, NotFound


class Ending(StrEnum):
    """What the end of an attempt counts as.

    DONE: the stage's marker is there.
    PREEMPTED: told to leave by the platform, or gone with its host; retried freely.
    FAILED: retried within the budget. Exit 0 without a marker is one.
    CONFIGURATION: a setting or input is wrong; never retried.
    STOPPED: we stopped it (suspend, cancel, budget, another digest); counts for nothing.
    """

    DONE = "done"
    PREEMPTED = "preempted"
    FAILED = "failed"
    CONFIGURATION = "configuration"
    STOPPED = "stopped"


def by_exit_code(code: int | None) -> Ending:
    """What a process that ended like this has come to, where no marker is there and nobody has told it to stop."""
    if code in (Exit.PREEMPTED, -signal.SIGTERM):
        return Ending.PREEMPTED
    return Ending.CONFIGURATION if code in (Exit.CONFIGURATION, Exit.USAGE) else Ending.FAILED


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Stop(_Record):
    """`STOP.json`."""

    reason: str
    at: float
    """Unix seconds, by the clock of whoever wrote it; so in all of these."""
    hung: bool = False
    """It was stopped because it gave no sign of life or passed a deadline: that counts as a failure."""


class ExitRecord(_Record):
    """`EXIT.json`."""

    code: int
    """Of the process; minus the signal that ended it."""
    at: float
    reason: str = ""
    """Its last line on stderr, where that says more than the code."""


class End(_Record):
    """`END.json`."""

    ending: Ending
    reason: str
    at: float
    progress: int
    """Steps, or pieces of output, that the stage had safe when the end was recorded."""


R = TypeVar("R", Stop, ExitRecord, End)
NAMES: dict[type[BaseModel], str] = {Stop: "STOP.json", ExitRecord: "EXIT.json", End: "END.json"}


def record(run: RunDirectory, stage: str, attempt: int, fact: R) -> R:
    """Publish a fact about an attempt; the one that counts is returned, which is somebody else's if it came first."""
    name = f"{run.attempt_folder(stage, attempt)}/{NAMES[type(fact)]}"
    try:
        run.store.create(name, fact.model_dump_json().encode())
    except AlreadyExists:
        return recorded(run, stage, attempt, type(fact)) or fact
    return fact


def recorded(run: RunDirectory, stage: str, attempt: int, kind: type[R]) -> R | None:
    """The fact of this kind about an attempt, if there is one that can be read."""
    try:
        return kind.model_validate_json(run.store.read(f"{run.attempt_folder(stage, attempt)}/{NAMES[kind]}"))
    except (NotFound, ValidationError):
        return None


def superseded(run: RunDirectory, stage: str, attempt: int) -> str:
    """Why an attempt has nothing to do any more: it has its end, or a later one has begun; empty while it may work."""
    end = recorded(run, stage, attempt, End)
    if end is not None:
        return f"attempt {attempt} of {stage} has ended already ({end.reason or end.ending})"
    latest = max(numbers(run.store.children(f"{stage}/attempts")), default=attempt)
    if latest > attempt:
        return f"attempt {attempt} of {stage} is not the last one any more: attempt {latest} has begun"
    return ""
