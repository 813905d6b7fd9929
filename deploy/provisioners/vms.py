"""Attempts in containers on the VMs of slices: assigned in the run directory, judged by what the VMs write there.

Nothing here talks to a VM. `start` writes an assignment, which the VMs of the slice take up, or the first one; that an
attempt is to leave is its STOP.json, which the journal has written by then. How it ended is in the EXIT objects of its
hosts; where none comes, it is the Cloud TPU API that says the slice is gone. A VM that does nothing of what it is told
is given up, and its slice with it. All of it is read anew at every look, but for how long a VM has been silent.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from pydantic import ValidationError

from deploy.controller.backend import Unreachable
from deploy.controller.observed import Process, Seen, Slice, Trouble
from deploy.local import keeper
from deploy.provisioners.vm import assignments
from deploy.provisioners.vm.assignments import Assignment, WorkerNote
from nanocode.run.attempts import NAMES, ExitRecord, Stop, record
from nanocode.run.directory import Claim, RunDirectory
from nanocode.run.exits import Exit
from nanocode.storage.objects import NotFound, StorageError

Key = tuple[str, int]

SECONDS_TO_OBEY = 60.0
"""A VM looks every 5 s; one that has not ended a container so long after it was told to will not."""
SECONDS_FOR_THE_CLOUD = 30.0
"""A failure is judged so long after it was seen: machines that are taken away crash first, and are reported later."""
TAKEN = (Trouble.PREEMPTED, Trouble.OTHER)


class SliceVms:
    """`Backend` of attempts on slices."""

    def __init__(
        self,
        run: RunDirectory,
        image: Callable[[], str | None],
        shown: Callable[[], Mapping[str, Slice] | None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`image`: that a new attempt runs. `shown`: the slices by the provisioner's last look; None before any."""
        self._run, self._image, self._shown, self._monotonic = run, image, shown, monotonic
        self._claims: dict[Key, Claim] = {}
        self._told_to_end: dict[Key, float] = {}
        self._failed: dict[Key, float] = {}
        self._broken: dict[str, str] = {}
        self.waits: dict[Key, str] = {}
        """What attempts wait for, in a sentence."""
        self.alive: set[Key] = set()
        """Those that have not ended, by the last look."""

    def broken(self, slice: str) -> str:
        """Why a slice is of no use though the cloud says that it is there; empty while it may be."""
        return self._broken.get(slice, "")

    def slice_of(self, key: Key) -> str | None:
        """The slice that an attempt was claimed for."""
        claim = self._claim(key)
        return claim.slice if claim is not None else None

    # -- Backend -------------------------------------------------------------------------------------------------------

    def observe(self, live: Sequence[Key]) -> Mapping[Key, Seen]:
        try:
            found = {key: self._seen(key) for key in live}
        except StorageError as error:
            raise Unreachable(str(error)) from error
        self.waits = {key: one.reason for key, one in found.items() if one.process is Process.PENDING}
        self.alive = {key for key, one in found.items() if one.process in (Process.PENDING, Process.RUNNING)}
        return found

    def start(self, stage: str, attempt: int, slice: str | None) -> None:
        image = self._image()
        try:
            if slice is not None and image is not None:
                assignments.assign(self._run, slice, Assignment(stage=stage, attempt=attempt, image=image))
                self.alive.add((stage, attempt))
        except StorageError as error:
            raise Unreachable(str(error)) from error

    def stop(self, stage: str, attempt: int) -> None:
        """Its VMs read that it is to leave where everybody does."""

    def kill(self, stage: str, attempt: int) -> None:
        self._told_to_end.setdefault((stage, attempt), self._monotonic())
        try:
            slice = self.slice_of((stage, attempt))
            if slice is not None:
                assignments.kill(self._run, slice, stage, attempt)
        except StorageError as error:
            raise Unreachable(str(error)) from error

    def forget(self, stage: str, attempt: int) -> None:
        self._told_to_end.pop((stage, attempt), None)
        self._failed.pop((stage, attempt), None)

    # -- one attempt ---------------------------------------------------------------------------------------------------

    def _seen(self, key: Key) -> Seen:
        slice = self.slice_of(key)
        if slice is None:
            return Seen(Process.ABSENT)
        there = self._run.store.children(self._run.attempt_folder(*key))
        ended = assignments.exits(self._run, key, there)
        told = self._run.store.children(assignments.folder(slice))
        hosts = assignments.hosts_of(key[0], self._vms(slice, told))
        gone = self._gone(slice)
        verdict = assignments.verdict(ended, hosts)
        if verdict is not None:
            return self._judged(key, verdict, gone)
        if gone:
            return Seen(Process.LOST, reason=gone)
        if self._disobeys(key):
            self._broken[slice] = "its VMs do not do what they are told"
            return Seen(Process.LOST, reason=f"the VMs of {slice} gave no sign when they were told to end it")
        if key not in assignments.keys(told, "json"):
            if NAMES[Stop] in there:
                return Seen(Process.ABSENT)
            self.start(*key, slice)  # whoever has claimed it ended before it came to that
        return self._under_way(key, slice, there, ended, hosts)

    def _under_way(
        self, key: Key, slice: str, there: Sequence[str], ended: Mapping[int, ExitRecord], hosts: int
    ) -> Seen:
        if ended:
            return Seen(Process.RUNNING, reason="one of its hosts has ended, and the others end")
        begun = [name for name in there if name.startswith(keeper.NAME.removesuffix(".json"))]
        if not begun:
            waits = f"the VMs of {slice} pull the image and begin" if hosts else f"the VMs of {slice} start up"
            return Seen(Process.PENDING, reason=waits)
        return Seen(Process.RUNNING)

    def _judged(self, key: Key, verdict: Seen, gone: str) -> Seen:
        """An ending, once it is known whether the machines were taken away."""
        failed = verdict.exit_code not in (Exit.DONE, *assignments.TOLD_TO_LEAVE, *assignments.NEVER_WORTH_ANOTHER)
        if failed and gone:
            return Seen(Process.EXITED, verdict.exit_code, disrupted=True, since=verdict.since, reason=gone)
        if failed:
            first = self._failed.setdefault(key, self._monotonic())
            if self._monotonic() - first < SECONDS_FOR_THE_CLOUD:
                return Seen(Process.RUNNING, reason="it has ended: were its machines taken away?")
        self._tell_everybody(key, verdict)
        return verdict

    def _tell_everybody(self, key: Key, verdict: Seen) -> None:
        """`EXIT.json`, as every attempt has one."""
        code = verdict.exit_code if verdict.exit_code is not None else Exit.FAILED
        record(self._run, *key, ExitRecord(code=code, at=verdict.since or time.time(), reason=verdict.reason))

    def _gone(self, slice: str) -> str:
        """Why an attempt on this slice cannot go on; empty while it may, and before anybody has looked."""
        shown = self._shown()
        if shown is None:
            return ""
        one = shown.get(slice)
        if one is None or not one.present:
            return f"{slice} is gone"
        return (one.reason or one.trouble.value) if one.trouble in TAKEN and one.trouble is not None else ""

    def _disobeys(self, key: Key) -> bool:
        told = self._told_to_end.get(key)
        return told is not None and self._monotonic() - told > SECONDS_TO_OBEY

    def _vms(self, slice: str, told: Sequence[str]) -> int:
        """How many VMs the slice has, by the word of any; 0 before one has spoken."""
        for name in (name for name in told if name.startswith("worker-")):
            with suppress(NotFound, ValidationError):
                text = self._run.store.read(f"{assignments.folder(slice)}/{name}")
                return WorkerNote.model_validate_json(text).of
        return 0

    def _claim(self, key: Key) -> Claim | None:
        if key not in self._claims:
            with suppress(NotFound, ValidationError):
                text = self._run.store.read(f"{self._run.attempt_folder(*key)}/claim.json")
                self._claims[key] = Claim.model_validate_json(text)
        return self._claims.get(key)
