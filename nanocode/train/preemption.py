"""Being told to leave: SIGTERM or Ctrl-C, and what is left of the grace after it. A second Ctrl-C ends at once.

One process: a thread of ours sees the signal at once, even while the main thread compiles or waits for storage. Inside
the loop the step ends, saves if there is time and raises; anywhere else the process leaves with exit 75 right away,
which is safe because everything it writes survives a kill at any instruction.
Several processes: JAX's preemption service agrees on one step for all hosts (it takes SIGTERM for itself; Python's
handler and the service exclude each other, so exactly one of them is installed). Ctrl-C is handed to it as SIGTERM.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from nanocode.run.exits import Exit

EXIT_MARGIN_SECONDS = 1.0
"""The process leaves by itself this long before SIGKILL would come."""

ONE_KEYPRESS_SECONDS = 0.5
"""Ctrl-C reaches a child twice, from the terminal and from `nanocode run`: so close together it is one."""


class Preempted(Exception):
    """The stage was told to leave; the run goes on from the last checkpoint. Exit 75."""


class Preemption:
    """Installed once per process, before anything slow."""

    def __init__(self, grace_seconds: float = 15.0) -> None:
        self.grace_seconds = grace_seconds
        self._told_at: float | None = None
        self._first_signal_at: float | None = None
        self._in_loop = False
        self._agrees_with_others = False
        readable, writable = os.pipe()
        os.set_blocking(writable, False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _ignore)  # a handler must exist for the wakeup byte to be written
        signal.set_wakeup_fd(writable)
        threading.Thread(target=self._watch, args=(readable,), name="preemption", daemon=True).start()

    def agree_with_other_hosts(self) -> None:
        """Call after `jax.distributed.initialize()`, whose service has taken the signal from here on."""
        self._agrees_with_others = True

    @contextmanager
    def loop(self) -> Iterator[None]:
        """The span in which `reached` is asked at every step, so that leaving can be orderly."""
        self._in_loop = True
        if self._told_at is not None:
            leave()
        try:
            yield
        finally:
            self._in_loop = False

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; with several hosts every one must ask at every step."""
        if self._agrees_with_others:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self._told_at = self._told_at or time.monotonic()
        return self._told_at is not None

    def allows(self, save_seconds: float | None) -> bool:
        """Whether a save that was measured to take so long fits into what is left; an unmeasured one is tried."""
        assert self._told_at is not None
        left = self.grace_seconds - EXIT_MARGIN_SECONDS - (time.monotonic() - self._told_at)
        return left > (save_seconds or 0.0)

    def _watch(self, readable: int) -> None:
        while True:
            numbers = self._signals_within(readable, self._seconds_left())
            if not numbers:
                leave()
            now, first = time.monotonic(), self._first_signal_at
            self._first_signal_at = first or now
            if first is not None and signal.SIGINT in numbers and now - first > ONE_KEYPRESS_SECONDS:
                leave()
            if self._agrees_with_others:
                if first is None:
                    os.kill(os.getpid(), signal.SIGTERM)
            elif first is None:
                self._told_at = now
                if not self._in_loop:
                    leave()

    def _seconds_left(self) -> float | None:
        """Until the process leaves by itself; None while nothing makes it leave."""
        if self._told_at is None or self._agrees_with_others:  # there the hosts leave together or not at all
            return None
        return max(0.0, self._told_at + self.grace_seconds - EXIT_MARGIN_SECONDS - time.monotonic())

    @staticmethod
    def _signals_within(readable: int, seconds: float | None) -> bytes:
        ready, _, _ = select.select([readable], [], [], seconds)
        return os.read(readable, 64) if ready else b""


def leave() -> None:
    """End the process now, as preempted, whatever its threads are doing."""
    with suppress(OSError):  # nobody may be there to hear it
        os.write(2, b"nanocode: told to leave; the same command goes on from the last checkpoint\n")
    os._exit(Exit.PREEMPTED)


def _ignore(number: int, frame: FrameType | None) -> None:
    """The watcher thread acts; Python runs this only when the main thread comes back to the interpreter."""
