"""The attempts at a stage as the ledger takes them, read from the run directory.

Segments never change: whoever looks again and again passes a `read` that parses each only once.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence

from nanocode.run.attempts import End, Ending, ExitRecord, by_exit_code, recorded
from nanocode.run.directory import Claim, Marker, RunDirectory
from nanocode.run.exits import Exit
from nanocode.run.goodput import Ledger, Life, Record, ledger
from nanocode.run.graph import STAGES
from nanocode.run.liveness import last_sign, seems_alive
from nanocode.run.segments import records, segments
from nanocode.storage.objects import NotFound, Store

Read = Callable[[Store, str], Iterable[Record]]
"""The records of a segment."""


def stage_ledger(
    run: RunDirectory,
    stage: str,
    digest: str,
    marker: Marker | None,
    now: float | None = None,
    read: Read = records,
) -> Ledger:
    """Where the time of this stage went under this digest: until its marker, else until now, else its last record."""
    found = lives(run, [claim for claim in run.attempts(stage) if claim.input_digest == digest], now, read)
    last = max((life.ended or life.claimed for life in found), default=0.0)
    until = marker.ended.timestamp() if marker is not None else last if now is None else now
    waits = provisioning(run, until) if STAGES[stage].machine == "accelerator" else ()
    return ledger(found, until, STAGES[stage].trains, marker.attempt if marker else None, waits)


def lives(run: RunDirectory, claims: Sequence[Claim], now: float | None = None, read: Read = records) -> list[Life]:
    """The attempts with these claims, with their events and the times of their steps.

    Who recorded no ending and seems dead ended with its last record; without `now` everybody did.
    """
    return [_life(run, claim, now, read) for claim in claims]


def provisioning(run: RunDirectory, until: float) -> list[tuple[float, float]]:
    """When slices were asked for and not there, from their recorded facts."""
    found = []
    for name in run.store.children("slices"):
        facts = {fact: _at(run, f"slices/{name}/{fact}") for fact in run.store.children(f"slices/{name}")}
        begin = facts.pop("REQUEST.json", None)
        if begin is not None:
            # Until it was ready; one that never came, until it was given up.
            found.append((begin, min((at for at in facts.values() if at is not None), default=until)))
    return found


def ending(run: RunDirectory, claim: Claim) -> Ending | None:
    """What the end of an attempt counts as: as recorded, else by its exit code; None where that is unknown."""
    end = recorded(run, claim.stage, claim.attempt, End)
    if end is not None:
        return end.ending
    left = recorded(run, claim.stage, claim.attempt, ExitRecord)
    return None if left is None or left.code == Exit.DONE else by_exit_code(left.code)


def _at(run: RunDirectory, name: str) -> float | None:
    try:
        return float(json.loads(run.store.read(name))["at"])
    except (NotFound, ValueError, KeyError, TypeError):
        return None


def _life(run: RunDirectory, claim: Claim, now: float | None, read: Read) -> Life:
    code, at = _exit(run, claim), ended(run, claim, now)
    seen = code is not None and code.at == at
    return Life(claim.attempt, claim.claimed.timestamp(), at, tuple(_records(run, claim, read)), seen)


def ended(run: RunDirectory, claim: Claim, now: float | None) -> float | None:
    """When an attempt ended; None while it seems alive. Without `now`, nobody is."""
    code, end = _exit(run, claim), None
    if "END.json" in run.store.children(run.attempt_folder(claim.stage, claim.attempt)):
        end = recorded(run, claim.stage, claim.attempt, End)
    at = min((fact.at for fact in (code, end) if fact is not None), default=None)
    if at is None and (now is None or not seems_alive(claim, last_sign(run, claim), now)):
        at = last_sign(run, claim)
    return at


def _exit(run: RunDirectory, claim: Claim) -> ExitRecord | None:
    there = "EXIT.json" in run.store.children(run.attempt_folder(claim.stage, claim.attempt))
    return recorded(run, claim.stage, claim.attempt, ExitRecord) if there else None


def _records(run: RunDirectory, claim: Claim, read: Read) -> Iterator[Record]:
    """Of the first host: the others do the same at the same time. A worker of a CPU stage has its own attempt."""
    host = 0 if STAGES[claim.stage].machine == "accelerator" else None
    for segment in segments(run.store, claim.stage, "events", claim.attempt, host):
        yield from read(run.store, segment)
    for segment in segments(run.store, claim.stage, "metrics", claim.attempt, host):
        yield from (record for record in read(run.store, segment) if record.get("kind") == "time")
