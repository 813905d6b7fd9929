"""Keeps one attempt: starts its process, passes signals on, keeps what it says on stderr, and records how it ended.

    python -m deploy.local.keeper --run-dir RUN --stage S --attempt N                          on this machine
    python -m deploy.local.keeper --run-dir RUN --stage S --attempt N --worker I --of HOSTS    in a pod, one per host

On a machine it runs in a session of its own and outlives the controller that started it. SIGTERM and SIGINT go on to
the process; SIGUSR2 ends it by force, after the stacks of its threads. Nothing survives a keeper that is killed: that
is what a vanished host looks like. Beside the claim it notes `keeper.json` when it begins, `EXIT.json` when it is over.

In a pod it is the container's first process, and ends with the stage's exit code, which the kubelet reports beside its
last line on stderr. SIGTERM is all that a pod is ever told: the stacks of an attempt that hangs are written before.
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
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from nanocode.run.attempts import ExitRecord, Stop, record, recorded, superseded
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import Exit
from nanocode.run.graph import STAGES
from nanocode.run.segments import SegmentWriter
from nanocode.run.streams import outlive_listeners
from nanocode.storage.objects import AlreadyExists, StorageError, open_store

NAME = "keeper.json"
SECONDS_FOR_STACKS = 1.0
SECONDS_FOR_LAST_WORDS = 2.0
"""A process that left others behind keeps its stderr open."""
LONGEST_REASON = 400
TRIES_TO_RECORD = 5
PR_SET_PDEATHSIG = 1
SECONDS_TO_ASK_WHY = 3.0
"""Of the 15 that a preempted pod has; a bucket that takes longer to say why we are told to leave is not waited for."""
TERMINATION_LOG = Path("/dev/termination-log")
"""What a container writes here is the message of its ending (Kubernetes' default `terminationMessagePath`)."""


@dataclass(frozen=True)
class Pod:
    """One of the pods of an attempt."""

    worker: int
    of: int
    termination_log: Path = TERMINATION_LOG

    @property
    def suffix(self) -> str:
        return f"-{self.worker}" if self.of > 1 else ""

    def tell(self, reason: str) -> None:
        """Have the kubelet report it."""
        with suppress(OSError):
            if reason and self.termination_log.exists():
                self.termination_log.write_text(reason)


class Kept:
    """The process of the attempt, in a group of its own, and what it is told."""

    def __init__(self, is_hung: Callable[[], bool] = lambda: False) -> None:
        """`is_hung`: whether whoever says SIGTERM does so because the attempt hangs."""
        self._process: subprocess.Popen[bytes] | None = None
        self._told: list[int] = []
        self._told_at: float | None = None
        self.by_force = ""
        """That the process was ended by force, if it was, and after how long."""
        self._is_hung = is_hung
        self.keep_what_was_said: Callable[[], None] = lambda: None
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
        elif process.returncode is not None:
            return  # its last words are being kept: we may hold the very lock that keeping them takes
        elif number == signal.SIGUSR2:
            if self.by_force:
                return  # asked again while the stacks are being written
            self.by_force = "ended by force"
            if self._told_at is not None:
                self.by_force += f", {time.monotonic() - self._told_at:.0f} s after it was told to leave"
            self._have_stacks_written(process)
            self.end()
        else:
            self._told_at = self._told_at or time.monotonic()
            if number == signal.SIGTERM and self._is_hung():
                self._have_stacks_written(process)
                self.keep_what_was_said()  # before whoever has lost patience ends us as well
            process.send_signal(number)

    @staticmethod
    def _have_stacks_written(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGUSR1)  # `jobs.stage` does
        time.sleep(SECONDS_FOR_STACKS)

    def reap(self, number: int, frame: FrameType | None) -> None:
        """Take the exit codes of processes that others left behind: nobody else is there for a pod's first process."""
        with suppress(ChildProcessError):
            while (one := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if self._process is None or one.si_pid == self._process.pid:
                    return
                os.waitpid(one.si_pid, 0)

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


def keep(run: RunDirectory, stage: str, attempt: int, command: Sequence[str], pod: Pod | None = None) -> int:
    """See one attempt to its end; leaves at once when it is over, or another keeper has it."""
    kept = Kept(lambda: pod is not None and _is_hung(run, stage, attempt))
    if reason := superseded(run, stage, attempt):
        return _leave(reason, pod)
    suffix = pod.suffix if pod is not None else ""
    note = {"host": socket.gethostname(), "pid": os.getpid(), "at": time.time()}
    try:
        run.store.create(
            f"{run.attempt_folder(stage, attempt)}/{NAME.replace('.', f'{suffix}.')}", json.dumps(note).encode()
        )
    except AlreadyExists:
        if pod is None:
            return _leave(f"attempt {attempt} of {stage} has a keeper already", pod)
        # This worker was begun again, by the Job, which sees to it that there is only one.
    process = kept.start(command, _environment())
    if pod is not None:
        signal.signal(signal.SIGCHLD, kept.reap)
    assert process.stderr is not None
    with process.stderr, SegmentWriter(run.store, stage, attempt, "log", f"keeper{suffix}") as log:

        def flush() -> None:
            with suppress(StorageError):  # how it ended is worth more than what it said
                log.flush()

        kept.keep_what_was_said = flush
        tee = Tee(process.stderr.fileno(), log)
        code = _ended(process)
        tee.join(SECONDS_FOR_LAST_WORDS)
        kept.end()
        flush()
        reason = tee.last_line.removeprefix("nanocode: ")[:LONGEST_REASON] if code else ""
        if kept.by_force and code == -signal.SIGKILL:
            reason = kept.by_force  # its last line is of the stacks
        if pod is None:
            _record(run, stage, attempt, ExitRecord(code=code, at=time.time(), reason=reason))
            return Exit.DONE
        pod.tell(reason)
    return code if code >= 0 else 128 - code  # as a shell has it: what a container returns is never negative


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Its exit code, once it has ended; a wait without a limit misses a signal that comes just before it."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=60)


def _is_hung(run: RunDirectory, stage: str, attempt: int) -> bool:
    """Whether the attempt was told to stop because it hangs, by what can be learnt in a moment."""
    found: list[Stop | None] = []

    def ask() -> None:
        with suppress(StorageError):
            found.append(recorded(run, stage, attempt, Stop))

    asking = threading.Thread(target=ask, name="why", daemon=True)
    asking.start()
    asking.join(SECONDS_TO_ASK_WHY)
    return any(stop is not None and stop.hung for stop in found)


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


def _leave(reason: str, pod: Pod | None) -> int:
    print(f"nanocode: {reason}", file=sys.stderr)
    if pod is not None:
        pod.tell(reason)
    return Exit.PREEMPTED


def main() -> int:
    parser = argparse.ArgumentParser("python -m deploy.local.keeper", description="Keep one attempt at a stage.")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--stage", required=True, choices=STAGES)
    parser.add_argument("--attempt", required=True, type=int)
    parser.add_argument("--worker", type=int, help="in a pod: which one of the attempt's, from 0")
    parser.add_argument("--of", type=int, default=1, help="in a pod: how many there are")
    parser.add_argument("--termination-log", type=Path, default=TERMINATION_LOG, help="in a pod: for its last line")
    options = parser.parse_args()
    outlive_listeners()
    pod = Pod(options.worker, options.of, options.termination_log) if options.worker is not None else None
    stage = STAGES[options.stage]
    try:
        run = RunDirectory(open_store(options.run_dir))
        command = [sys.executable, "-m", stage.module, "--run-dir", run.store.url, "--attempt", str(options.attempt)]
        if pod is not None and stage.split:
            command += ["--worker", str(pod.worker), "--of", str(pod.of)]
        return keep(run, options.stage, options.attempt, command, pod)
    except StorageError as error:
        print(f"nanocode: {error}", file=sys.stderr)
        if pod is not None:
            pod.tell(str(error))
        return Exit.FAILED


if __name__ == "__main__":
    sys.exit(main())
