"""Reads the run directory on a VM of a slice, and says line by line what the startup script has to do.

    start CONTAINER IMAGE STAGE ATTEMPT HOSTS   run it as one of so many, unless it was begun before
    stop CONTAINER                              have it save and leave (SIGTERM)
    kill CONTAINER                              end it now
    alive                                       nothing to do; said at every look, so that silence means something
    leave                                       delete the slice

What containers have come to is what the script leaves in the state folder: `<container>.said` from when it was begun
(the last line of its stderr, when it has ended) and `<container>.code`.

The dead man's switch: when no controller has renewed its status for `unattended` seconds, or the slice was given back
minutes ago and is still there, what runs is told to save, and the slice is deleted. Time is counted here, by a clock
that nobody sets: how the controller's clock goes does not matter. A bucket that gives no answer counts as silence.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from deploy.controller.record import STATUS
from deploy.local import keeper
from deploy.provisioners.vm import assignments
from deploy.provisioners.vm.assignments import Assignment, Key, WorkerNote
from nanocode.run.attempts import ExitRecord, superseded
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import Exit
from nanocode.storage.objects import AlreadyExists, StorageError, open_store

SECONDS_BETWEEN_NOTES = 30.0
SECONDS_AFTER_RELEASE = 300.0
"""For the controller to have the slice deleted that it has given back."""
SECONDS_TO_SAVE = 120.0
"""For what runs on a slice that nobody looks after: nothing presses."""
SECONDS_FOR_PEERS = 30.0
"""After which the container of this host is ended when the one of another host has failed."""


@dataclass(frozen=True)
class Place:
    """Which VM this is."""

    slice: str
    worker: int
    of: int
    """VMs of the slice."""
    state: Path
    """Folder that is shared with the startup script, and empty after a boot."""


@dataclass
class _Kept:
    """What is remembered of an attempt; a watcher that begins anew finds it out again."""

    assignment: Assignment
    begun: bool = False
    over: bool = False
    stopping: bool = False
    killed: bool = False
    peer_failed: float | None = None


@dataclass
class Watcher:
    """One VM's."""

    run: RunDirectory
    place: Place
    unattended: float
    say: Callable[[str], object]
    now: Callable[[], float] = time.monotonic
    clock: Callable[[], float] = time.time
    _kept: dict[Key, _Kept] = field(default_factory=dict)
    _renewed: tuple[bytes, float] | None = None
    _released: float | None = None
    _leaving: float | None = None
    _noted: float | None = None

    def look(self) -> bool:
        """One look; whether there will be another."""
        try:
            self._attend()
            self._look_at_attempts()
            self._note()
        except StorageError as error:
            print(f"nanocode: the run directory gives no answer: {error}", file=sys.stderr, flush=True)
        self.say("alive")
        if self._leaving is None and self._is_alone():
            self._leaving = self.now()
        if self._leaving is None:
            return True
        running = [one for one in self._kept.values() if one.begun and not one.over]
        for one in running:
            self._stop(one)
        if self.now() - self._leaving < SECONDS_TO_SAVE and (running or self._first_vm_runs()):
            return True
        self.say("leave")
        return False

    # -- the switch ----------------------------------------------------------------------------------------------------

    def _attend(self) -> None:
        """Whether a controller has renewed its status, and whether the slice was given back."""
        status = b""
        with suppress(StorageError):
            status = self.run.store.read(STATUS)
        if self._renewed is None or (status and status != self._renewed[0]):
            self._renewed = (status, self.now())
        if self._released is None and {"released.json", "gone.json"} & set(
            self.run.store.children(f"slices/{self.place.slice}")
        ):
            self._released = self.now()

    def _is_alone(self) -> bool:
        if self._renewed is None:
            self._renewed = (b"", self.now())
        given_back = self._released is not None and self.now() - self._released > SECONDS_AFTER_RELEASE
        return given_back or self.now() - self._renewed[1] > self.unattended

    def _first_vm_runs(self) -> bool:
        """Whether it may still save, for all its peers or alone; not where the bucket gives no answer."""
        with suppress(StorageError):
            keys = assignments.keys(self.run.store.children(assignments.folder(self.place.slice)), "json")
            return any(not self.run.store.exists(assignments.exit_name(self.run, key, 0)) for key in keys)
        return False

    # -- attempts ------------------------------------------------------------------------------------------------------

    def _look_at_attempts(self) -> None:
        names = self.run.store.children(assignments.folder(self.place.slice))
        doomed = assignments.keys(names, "kill")
        for key in sorted(assignments.keys(names, "json")):
            if self.place.worker >= self._hosts(key):
                continue
            if key not in self._kept:
                found = assignments.assignment(self.run, self.place.slice, key)
                if found is None:
                    continue
                self._kept[key] = _Kept(found, begun=self._file(found, "said").exists())
            if not self._kept[key].over:
                self._look_at(key, self._kept[key], key in doomed)

    def _look_at(self, key: Key, one: _Kept, doomed: bool) -> None:
        there = self.run.store.children(self.run.attempt_folder(*key))
        if f"EXIT-{self.place.worker}.json" in there:
            one.over = True
        elif self._file(one.assignment, "code").exists():
            self._record(key, one, *self._how_it_ended(one.assignment))
        elif not one.begun:
            self._begin(key, one, there, doomed)
        elif doomed or "END.json" in there:
            if not one.killed:
                one.killed = True
                self.say(f"kill {one.assignment.container}")
        elif "STOP.json" in there or self._peers_have_failed(key, one, there):
            self._stop(one)

    def _begin(self, key: Key, one: _Kept, there: tuple[str, ...], doomed: bool) -> None:
        hosts = self._hosts(key)
        suffix = f"-{self.place.worker}" if hosts > 1 else ""
        if doomed or "STOP.json" in there or superseded(self.run, *key):
            self._record(key, one, Exit.PREEMPTED, "it was told to leave before it began")
        elif keeper.NAME.replace(".", f"{suffix}.") in there:
            self._record(key, one, Exit.PREEMPTED, "its VM was started again")
        elif self._leaving is None:
            one.begun = True
            work = one.assignment
            self.say(f"start {work.container} {work.image} {work.stage} {work.attempt} {hosts}")

    def _stop(self, one: _Kept) -> None:
        if not one.stopping:
            one.stopping = True
            self.say(f"stop {one.assignment.container}")

    def _peers_have_failed(self, key: Key, one: _Kept, there: tuple[str, ...]) -> bool:
        """Whether another host's container has failed so long ago that waiting for it is pointless."""
        if one.peer_failed is None:
            ended = assignments.exits(self.run, key, there)
            if any(end.code != Exit.DONE for end in ended.values()):
                one.peer_failed = self.now()
        return one.peer_failed is not None and self.now() - one.peer_failed > SECONDS_FOR_PEERS

    def _how_it_ended(self, work: Assignment) -> tuple[int, str]:
        code = int(self._file(work, "code").read_text())
        said = self._file(work, "said").read_text(errors="replace").strip() if code else ""
        return (128 - code if 128 < code < 128 + 65 else code), said  # a shell's way to write a signal

    def _record(self, key: Key, one: _Kept, code: int, reason: str) -> None:
        ended = ExitRecord(code=code, at=self.clock(), reason=reason)
        with suppress(AlreadyExists):
            name = assignments.exit_name(self.run, key, self.place.worker)
            self.run.store.create(name, ended.model_dump_json().encode())
        one.over = True

    def _hosts(self, key: Key) -> int:
        return assignments.hosts_of(key[0], self.place.of)

    def _file(self, work: Assignment, suffix: str) -> Path:
        return self.place.state / f"{work.container}.{suffix}"

    def _note(self) -> None:
        if self._noted is None or self.now() - self._noted >= SECONDS_BETWEEN_NOTES:
            running = [one.assignment.container for one in self._kept.values() if one.begun and not one.over]
            note = WorkerNote(
                of=self.place.of, at=self.clock(), says=f"runs {', '.join(running)}" if running else "waits"
            )
            name = f"{assignments.folder(self.place.slice)}/worker-{self.place.worker}.json"
            self.run.store.write(name, note.model_dump_json().encode())
            self._noted = self.now()


def main() -> int:
    parser = argparse.ArgumentParser("python -m deploy.provisioners.vm.watch", description="Watch a VM of a slice.")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--slice", required=True)
    parser.add_argument("--worker", required=True, type=int)
    parser.add_argument("--of", required=True, type=int)
    parser.add_argument("--state", required=True, type=Path, help="folder that the startup script keeps")
    parser.add_argument("--unattended", required=True, type=float, metavar="SECONDS")
    parser.add_argument("--seconds-between-looks", type=float, default=5.0, metavar="SECONDS")
    options = parser.parse_args()
    place = Place(options.slice, options.worker, options.of, options.state)
    run = RunDirectory(open_store(options.run_dir))
    watcher = Watcher(run, place, options.unattended, lambda line: print(line, flush=True))
    while watcher.look():
        time.sleep(options.seconds_between_looks)
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
