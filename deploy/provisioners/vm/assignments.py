"""What controller and VMs say to each other, in the run directory.

    vms/<slice>/<stage>.<attempt>.json      the attempt runs on this slice, on each VM or the first; created once
    vms/<slice>/<stage>.<attempt>.kill      it is to end now
    vms/<slice>/worker-<i>.json             what a VM says of itself, again and again
    <stage>/attempts/<n>/EXIT-<i>.json      how the container of worker i ended, as `EXIT.json` of a process
    controller/status.json                  renewed by every controller that lives: `deploy.controller.record`

That an attempt is to save and leave is its STOP.json; a VM that finds its END.json ends it.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress

from pydantic import BaseModel, ConfigDict, ValidationError

from deploy.controller.observed import Process, Seen
from nanocode.run.attempts import ExitRecord
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import Exit
from nanocode.run.graph import STAGES
from nanocode.storage.objects import AlreadyExists, NotFound

Key = tuple[str, int]
TOLD_TO_LEAVE = (Exit.PREEMPTED, -15)
NEVER_WORTH_ANOTHER = (Exit.CONFIGURATION, Exit.USAGE)


class Assignment(BaseModel):
    """An attempt that is to run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    stage: str
    attempt: int
    image: str

    @property
    def container(self) -> str:
        return f"nanocode-{self.stage}-{self.attempt}"


class WorkerNote(BaseModel):
    """`worker-<i>.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    of: int
    """VMs of the slice."""
    at: float
    says: str = ""


def folder(slice: str) -> str:
    return f"vms/{slice}"


def assign(run: RunDirectory, slice: str, assignment: Assignment) -> None:
    """Have the slice run it; said before is no error."""
    with suppress(AlreadyExists):
        run.store.create(
            _name(slice, assignment.stage, assignment.attempt, "json"), assignment.model_dump_json().encode()
        )


def kill(run: RunDirectory, slice: str, stage: str, attempt: int) -> None:
    with suppress(AlreadyExists):
        run.store.create(_name(slice, stage, attempt, "kill"), b"{}")


def hosts_of(stage: str, vms: int) -> int:
    """On how many VMs of a slice it runs, counted from the first."""
    known = STAGES.get(stage)  # a newer controller may know more
    return min(vms, 1) if known is not None and known.one_host else vms


def _name(slice: str, stage: str, attempt: int, suffix: str) -> str:
    return f"{folder(slice)}/{stage}.{attempt}.{suffix}"


def keys(names: Iterable[str], suffix: str) -> set[Key]:
    """The attempts among the names of a slice's folder that end so."""
    found = set()
    for name in names:
        stage, _, rest = name.partition(".")
        number, _, ending = rest.partition(".")
        if ending == suffix and number.isascii() and number.isdecimal():
            found.add((stage, int(number)))
    return found


def assignment(run: RunDirectory, slice: str, key: Key) -> Assignment | None:
    """One of them; None where it cannot be read."""
    with suppress(NotFound, ValidationError):
        return Assignment.model_validate_json(run.store.read(_name(slice, *key, "json")))
    return None


def exit_name(run: RunDirectory, key: Key, worker: int) -> str:
    return f"{run.attempt_folder(*key)}/EXIT-{worker}.json"


def exits(run: RunDirectory, key: Key, names: Iterable[str]) -> dict[int, ExitRecord]:
    """How the containers of an attempt ended, by worker; `names`: what is in its folder."""
    found = {}
    for name in names:
        stem = name.removeprefix("EXIT-").removesuffix(".json")
        if name.startswith("EXIT-") and stem.isascii() and stem.isdecimal():
            with suppress(NotFound, ValidationError):
                text = run.store.read(f"{run.attempt_folder(*key)}/{name}")
                found[int(stem)] = ExitRecord.model_validate_json(text)
    return found


def verdict(ended: Mapping[int, ExitRecord], of: int) -> Seen | None:
    """What became of an attempt by the word of its VMs; None while some of them may still tell.

    When one host goes, its peers crash first, with ordinary exit codes: a failure counts as one when all have ended and
    none was told to leave.
    """
    for worker, end in sorted(ended.items()):
        if end.code in NEVER_WORTH_ANOTHER:
            return _as_seen(end, worker, of)
    if not ended or len(ended) < of:
        return None
    wrong = sorted((pair for pair in ended.items() if pair[1].code != Exit.DONE), key=lambda pair: pair[1].at)
    if not wrong:
        return Seen(Process.EXITED, Exit.DONE, since=max(end.at for end in ended.values()))
    worker, end = next((pair for pair in wrong if pair[1].code in TOLD_TO_LEAVE), wrong[0])
    return _as_seen(end, worker, of)


def _as_seen(end: ExitRecord, worker: int, of: int) -> Seen:
    said = f"host {worker}: {end.reason}" if of > 1 and end.reason else end.reason
    return Seen(Process.EXITED, end.code, since=end.at, reason=said)
