"""Keeps one attempt: starts its process, passes signals on, keeps what it says on stderr, and records how it ended.

    python -m deploy.local.keeper --run-dir RUN --stage S --attempt N

It runs in a session of its own and outlives the controller that started it. SIGTERM and SIGINT go on to the process;
SIGUSR2 ends it by force, after the stacks of its threads. Nothing survives a keeper that is killed: that is what a
vanished host looks like. Its notes, beside the claim: `keeper.json` when it begins, `EXIT.json` when it has ended.
"""

import argparse
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

from nanocode.run.attempts import ExitRecord, record, superseded
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import Exit
from nanocode.run.graph import STAGES
from nanocode.run.segments import SegmentWriter
from nanocode.storage.objects import AlreadyExists, StorageError, open_store

NAME = "keeper.json"
SECONDS_FOR_STACKS = 1.0
SECONDS_FOR_LAST_WORDS = 2.0
"""A process that left others behind keeps its stderr open."""
LONGEST_REASON = 400
TRIES_TO_RECORD = 5
PR_SET_PDEATHSIG = 1


class Kept:
    """The process of the attempt, in a group of its own, and what it is told."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._told: list[int] = []
        self._ending = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._tell)

    def start(self, command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        # From the main thread: the kernel's SIGKILL to the process comes when the thread ends that started it.
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,
            preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509  (no thread is running yet)
        )
        self._process = process
        for number in self._told:
            self._tell(number, None)
        return process

    def _tell(self, number: int, frame: FrameType | None) -> None:
        process = self._process
        if process is None:
            self._told.append(number)
        elif number == signal.SIGUSR2:
            if self._ending:
                return  # asked again while the stacks are being written
            self._ending = True
            process.send_signal(signal.SIGUSR1)  # `jobs.stage` has its stacks written
            time.sleep(SECONDS_FOR_STACKS)
            self.end()
        else:
            process.send_signal(number)

    def end(self) -> None:
        """Kill what is there of it."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


class Tee:
    """Shows a process's stderr as it comes, and keeps it line by line in the attempt's log."""

    def __init__(self, source: int, log: SegmentWriter) -> None:
        self._source, self._log = source, log
        self._rest = b""
        self.last_line = ""
        self._thread = threading.Thread(target=self._copy, name="stderr", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _copy(self) -> None:
        while data := os.read(self._source, 1 << 16):
            with suppress(OSError):  # the terminal may be gone: the log is not
                os.write(sys.stderr.fileno(), data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._keep(lines)
        self._keep([self._rest])

    def _keep(self, lines: list[bytes]) -> None:
        for line in (one.decode(errors="replace").rstrip() for one in lines):
            if line:
                self._log.write({"event": line, "stream": "stderr"})
                self.last_line = line


def keep(run: RunDirectory, stage: str, attempt: int, command: Sequence[str]) -> int:
    """See one attempt to its end; leaves at once when it is over, or another keeper has it."""
    kept = Kept()
    if reason := superseded(run, stage, attempt):
        return _leave(reason)
    note = {"host": socket.gethostname(), "pid": os.getpid(), "at": time.time()}
    try:
        run.store.create(f"{run.attempt_folder(stage, attempt)}/{NAME}", json.dumps(note).encode())
    except AlreadyExists:
        return _leave(f"attempt {attempt} of {stage} has a keeper already")
    process = kept.start(command, _environment())
    assert process.stderr is not None
    with process.stderr, SegmentWriter(run.store, stage, attempt, "log", "keeper") as log:
        tee = Tee(process.stderr.fileno(), log)
        code = process.wait()
        tee.join(SECONDS_FOR_LAST_WORDS)
        kept.end()
        with suppress(StorageError):  # how it ended is worth more than what it said
            log.flush()
        reason = tee.last_line.removeprefix("nanocode: ")[:LONGEST_REASON] if code else ""
        _record(run, stage, attempt, ExitRecord(code=code, at=time.time(), reason=reason))
    return Exit.DONE


def _record(run: RunDirectory, stage: str, attempt: int, ended: ExitRecord) -> None:
    for last in range(TRIES_TO_RECORD):
        try:
            record(run, stage, attempt, ended)
            return
        except StorageError as error:
            print(f"nanocode: cannot record how {stage} ended: {error}", file=sys.stderr)
            time.sleep(2.0**last)


def _environment() -> dict[str, str]:
    # Large pages for large arrays, which a step allocates anew each time: a tenth of its time on a CPU.
    # A stage that leaves at once leaves its pool's semaphores to Python's tracker, which removes them and complains.
    quiet = "ignore:resource_tracker:UserWarning"
    return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "PYTHONWARNINGS": quiet, **os.environ}


def _die_with(keeper: int) -> Callable[[], None] | None:
    """Has the kernel kill the child when its keeper dies; on other systems than Linux it goes on, as a zombie may."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(Exit.PREEMPTED)

    return ask


def _leave(reason: str) -> int:
    print(f"nanocode: {reason}", file=sys.stderr)
    return Exit.PREEMPTED


def main() -> int:
    parser = argparse.ArgumentParser("python -m deploy.local.keeper", description="Keep one attempt at a stage.")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--stage", required=True, choices=STAGES)
    parser.add_argument("--attempt", required=True, type=int)
    options = parser.parse_args()
    run = RunDirectory(open_store(options.run_dir))
    command = [sys.executable, "-m", STAGES[options.stage].module]
    command += ["--run-dir", run.store.url, "--attempt", str(options.attempt)]
    try:
        return keep(run, options.stage, options.attempt, command)
    except StorageError as error:
        print(f"nanocode: {error}", file=sys.stderr)
        return Exit.FAILED


if __name__ == "__main__":
    sys.exit(main())
