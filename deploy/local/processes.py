"""Which processes of this host belong to a run. A number alone says nothing: numbers are used again."""

import os
import select
import signal
from contextlib import suppress

import psutil

KEEPER = "deploy.local.keeper"
CLOCK_SECONDS = 2.0
"""The kernel counts from the boot, whose time is known to about a second."""
MISSING = (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied)


def keepers(url: str) -> dict[tuple[str, int], int]:
    """Stage and attempt -> process, of every keeper of this run that lives; those of pods are not this machine's."""
    found: dict[tuple[str, int], int] = {}
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if KEEPER in arguments and url in arguments and "--worker" not in arguments:
            with suppress(ValueError, IndexError):
                key = (_value(arguments, "--stage"), int(_value(arguments, "--attempt")))
                found[key] = min(process.pid, found.get(key, process.pid))  # what it has just forked looks like it
    return found


def keeps(pid: int, stage: str, attempt: int) -> bool:
    """Whether this process is a keeper of an attempt of this name."""
    with suppress(*MISSING, ValueError, IndexError):
        arguments = psutil.Process(pid).cmdline()  # empty for one that has ended and is not reaped yet
        named = (_value(arguments, "--stage"), _value(arguments, "--attempt"))
        return KEEPER in arguments and named == (stage, str(attempt))
    return False


def was_there(pid: int, at: float) -> bool:
    """Whether this process lives, and did so at that time."""
    with suppress(*MISSING):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= at + CLOCK_SECONDS
    return False


def end_session(leader: int, began: float) -> None:
    """Kill what a process that began then to lead a session, and is gone, has left behind.

    Nothing where the number is somebody else's by now: while it names a session, the kernel gives it to no process, so
    one that has it leads a session of its own, as after a restart of the machine all sessions are others. The leader
    itself may still be there for a moment, without a command line any more, and not yet a zombie.
    """
    with suppress(*MISSING):
        if psutil.Process(leader).create_time() > began + CLOCK_SECONDS:
            return
    if psutil.boot_time() > began:
        return
    for pid in psutil.pids():
        with suppress(OSError):
            if pid != leader and os.getsid(pid) == leader:
                os.kill(pid, signal.SIGKILL)


def wait_for_end(pids: list[int], seconds: float, others: list[int]) -> None:
    """Until one of the processes ends, or there is something to read on one of the other handles; at most so long."""
    if not hasattr(os, "pidfd_open"):  # no Linux: look often
        seconds = min(seconds, 0.2) if pids else seconds
    handles = [handle for pid in pids if (handle := _handle(pid)) is not None]
    try:
        if len(handles) < len(pids) and hasattr(os, "pidfd_open"):
            return  # one has ended already
        select.select([*handles, *others], [], [], seconds)
    finally:
        for handle in handles:
            os.close(handle)


def _handle(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _value(arguments: list[str], option: str) -> str:
    return arguments[arguments.index(option) + 1]
