"""Child processes that cannot outlive the test, and the little waiting that every part of the cluster does."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# The kernel ends a child when the *thread* that forked it ends (prctl(2), PR_SET_PDEATHSIG), so one thread that lives
# as long as the process forks them all.
_FORKS = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forks")
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


def fork(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Popen, by the thread that never ends. The command itself must ask to die with its parent."""
    return _FORKS.submit(lambda: subprocess.Popen(list(command), stdin=subprocess.DEVNULL, **options)).result()


def start(command: Sequence[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
    """A server of ours, killed by the kernel if this process dies; what it prints is appended to `log`."""
    with log.open("ab") as output:
        return fork([*DIES_WITH_US, *command], stdout=output, stderr=output, **options)


def stop(process: subprocess.Popen[bytes], seconds: float = 10) -> None:
    """SIGTERM, and SIGKILL for one that does not go in time."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """A signal for a process that may be gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listened on a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_until(what: str, happened: Callable[[], T | None], seconds: float = 60, every: float = 0.1) -> T:
    """The first true value of `happened()`; TimeoutError names what was waited for."""
    deadline = time.monotonic() + seconds
    while not (value := happened()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(every)
    return value
