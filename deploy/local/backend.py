"""Attempts as processes of this machine: each has a keeper in a session of its own, which outlives whoever began it.

What is known of an attempt is read anew at every look: its keeper's notes in the run directory, and the processes that
are there. Only the keepers that this very process has started are remembered, for somebody has to reap them.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from pydantic import BaseModel, ValidationError

from deploy.controller.backend import Unreachable
from deploy.controller.observed import Process, Seen, Slice
from deploy.local import keeper, processes
from nanocode.run.attempts import ExitRecord, recorded
from nanocode.run.directory import Claim, RunDirectory
from nanocode.run.liveness import last_sign, seems_alive
from nanocode.storage.objects import NotFound, StorageError

Key = tuple[str, int]
THIS_MACHINE, ZONE = "this machine", "local"
"""The zone is what `controller.dollars_per_slice_hour` calls it."""
SECONDS_OF_SILENCE = 600.0
"""How long an attempt on another host may say nothing, as it does while it compiles, before it counts as lost."""
SECONDS_TO_OBEY = 5.0
"""A keeper that was asked to end its process by force, and is there so much later, is ended itself."""


class Note(BaseModel):
    """`keeper.json`."""

    host: str
    pid: int
    at: float


class LocalBackend:
    """`Backend` over keepers."""

    def __init__(self, run: RunDirectory, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: more of it, for the jobs."""
        self._run, self._environment = run, dict(environment or {})
        self._started: dict[Key, subprocess.Popen[bytes]] = {}
        self._shown: set[Key] = set()
        self._notes: dict[Key, Note] = {}
        self._claims: dict[Key, Claim] = {}
        self._told_to_end: dict[Key, float] = {}
        self.alive: dict[Key, int] = {}
        """The processes of this host that live, by the last look."""

    def observe(self, live: Sequence[Key]) -> Mapping[Key, Seen]:
        try:
            found = processes.keepers(self._run.store.url)
            self.alive = dict(found)
            return {key: Seen(Process.RUNNING) for key in found} | {key: self._seen(key) for key in live}
        except StorageError as error:
            raise Unreachable(str(error)) from error

    def start(self, stage: str, attempt: int, slice: str | None) -> None:
        if (stage, attempt) in self._started:
            return
        command = [sys.executable, "-m", processes.KEEPER, "--run-dir", self._run.store.url]
        command += ["--stage", stage, "--attempt", str(attempt)]
        # A session of its own: neither the terminal's Ctrl-C nor the end of whoever began it reaches it.
        try:
            self._started[stage, attempt] = subprocess.Popen(
                command, env={**os.environ, **self._environment}, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise Unreachable(f"cannot start a process ({error.strerror}): free some memory") from error
        self.alive[stage, attempt] = self._started[stage, attempt].pid
        self._shown.add((stage, attempt))

    def stop(self, stage: str, attempt: int) -> None:
        self._signal(stage, attempt, signal.SIGTERM)

    def hurry(self) -> None:
        """Have all that was told to leave do so at once, unsaved: what a second Ctrl-C means."""
        for stage, attempt in self.alive:
            self._signal(stage, attempt, signal.SIGINT)

    def kill(self, stage: str, attempt: int) -> None:
        key = (stage, attempt)
        first = self._told_to_end.setdefault(key, time.monotonic())
        if time.monotonic() - first > SECONDS_TO_OBEY:
            self._signal(stage, attempt, signal.SIGKILL)
        elif self._keeper(key) is not None:
            self._signal(stage, attempt, signal.SIGUSR2)
        else:
            self._signal(stage, attempt, signal.SIGUSR1)  # one begun by hand: its stacks now, SIGKILL when asked again

    def has_shown(self, stage: str, attempt: int) -> bool:
        """Whether what the attempt said on stderr appeared on ours."""
        return (stage, attempt) in self._shown

    def forget(self, stage: str, attempt: int) -> None:
        try:
            note = self._note((stage, attempt))
        except StorageError as error:
            raise Unreachable(str(error)) from error
        if note is not None and note.host == socket.gethostname():
            processes.end_session(note.pid, note.at)
        started = self._started.get((stage, attempt))
        if started is not None and started.poll() is not None:  # one that is ending still has to be reaped
            del self._started[stage, attempt]
        self._told_to_end.pop((stage, attempt), None)

    def wait(self, seconds: float, handle: int) -> None:
        """Until an attempt ends, or there is something to read on this handle; at most so long."""
        processes.wait_for_end(list(self.alive.values()), seconds, [handle])

    # -- one attempt ---------------------------------------------------------------------------------------------------

    def _seen(self, key: Key) -> Seen:
        note = self._note(key)
        if note is not None:
            return self._with_keeper(key, note)
        if key in self.alive:
            return Seen(Process.RUNNING)
        if (code := self._reaped(key)) is not None:
            if (note := self._note(key)) is not None:  # it came since we looked
                return self._with_keeper(key, note)
            killed = Seen(Process.LOST, reason=f"its keeper was ended by signal {-code} before it began")
            return killed if code < 0 else Seen(Process.EXITED, code, reason="its keeper could not begin")
        if key in self._started:
            self.alive[key] = self._started[key].pid  # so young that it does not look like a keeper yet
            return Seen(Process.RUNNING)
        return self._by_its_claim(key)

    def _with_keeper(self, key: Key, note: Note) -> Seen:
        self._reaped(key)
        here = note.host == socket.gethostname()
        if here and processes.keeps(note.pid, *key):
            self.alive[key] = note.pid
            return Seen(Process.RUNNING, since=note.at)
        ended = recorded(self._run, *key, ExitRecord)  # looked for last: it is written before the keeper goes
        if ended is not None:
            return Seen(Process.EXITED, ended.code, since=ended.at, reason=ended.reason)
        claim = self._claim(key)
        if (
            not here
            and claim is not None
            and seems_alive(claim, last_sign(self._run, claim), time.time(), SECONDS_OF_SILENCE)
        ):
            return Seen(Process.RUNNING, since=note.at)
        return Seen(Process.LOST, reason=f"process {note.pid} vanished from {note.host} without a word")

    def _by_its_claim(self, key: Key) -> Seen:
        """An attempt without a keeper: one begun by hand, or one whose controller has not come to starting it."""
        claim = self._claim(key)
        if claim is None:
            return Seen(Process.ABSENT)
        claimed = claim.claimed.timestamp()
        begun = re.fullmatch(r"(controller )?([^\s:]+):(\d+)( \S+)?", claim.who)
        if begun is None:
            return Seen(Process.ABSENT)
        by_controller, host, pid = begun[1] is not None, begun[2], int(begun[3])
        here = host == socket.gethostname()
        if by_controller:
            # Ours would have been started by now.
            if here and (pid == os.getpid() or not processes.was_there(pid, claimed)):
                return Seen(Process.LOST, reason="its controller ended before it began")
            return Seen(Process.ABSENT)
        if here and processes.was_there(pid, claimed):
            self.alive[key] = pid
            return Seen(Process.RUNNING, since=claimed)
        if not here and seems_alive(claim, last_sign(self._run, claim), time.time(), SECONDS_OF_SILENCE):
            return Seen(Process.RUNNING, since=claimed)
        return Seen(Process.LOST, reason=f"{claim.who} is gone" if here else f"{claim.who} gives no sign of life")

    def _signal(self, stage: str, attempt: int, number: int) -> None:
        pid = self.alive.get((stage, attempt))
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _keeper(self, key: Key) -> int | None:
        pid = self.alive.get(key)
        return pid if pid is not None and processes.keeps(pid, *key) else None

    def _reaped(self, key: Key) -> int | None:
        """The exit code of a keeper that we have started, once it has ended."""
        started = self._started.get(key)
        return started.poll() if started is not None else None

    def _note(self, key: Key) -> Note | None:
        if key not in self._notes:
            with suppress(NotFound, ValidationError):
                text = self._run.store.read(f"{self._run.attempt_folder(*key)}/{keeper.NAME}")
                self._notes[key] = Note.model_validate_json(text)
        return self._notes.get(key)

    def _claim(self, key: Key) -> Claim | None:
        if key not in self._claims:
            with suppress(NotFound, ValidationError):
                text = self._run.store.read(f"{self._run.attempt_folder(*key)}/claim.json")
                self._claims[key] = Claim.model_validate_json(text)
        return self._claims.get(key)


class ThisMachine:
    """`Provisioner` of what is there anyway: one slice, ours for as long as we like, which may have a price."""

    def __init__(self, dollars_per_hour: Callable[[], float] = lambda: 0.0) -> None:
        self._dollars_per_hour = dollars_per_hour

    def observe(self) -> Mapping[str, Slice]:
        return {THIS_MACHINE: Slice(THIS_MACHINE, ZONE, self._dollars_per_hour(), permanent=True, usable=True)}

    def request(self, name: str, zone: str) -> None:
        """Never asked: it is permanent."""

    def release(self, name: str) -> None:
        """Nor is this; a slice that an earlier backend has asked for is its own to give back."""
