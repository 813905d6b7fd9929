"""Being told to leave: SIGTERM, Ctrl-C, or a terminal that closes."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def held_back() -> Iterator[None]:
    """What we are told meanwhile we hear afterwards; a process that is begun here, once it has a `Told` of its own."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Told:
    """Whether we were told to leave; there is something to read on `handle` when that is new."""

    def __init__(self) -> None:
        self.times = 0
        self.handle, self._writable = os.pipe()
        os.set_blocking(self._writable, False)
        os.set_blocking(self.handle, False)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._tell) for number in NUMBERS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.handle)
        os.close(self._writable)

    def news(self) -> bool:
        """Whether we were told (again) since this was last asked."""
        try:
            return bool(os.read(self.handle, 64))
        except BlockingIOError:
            return False

    def _tell(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self.times:
            return  # of a terminal that closes both the shell and the kernel say so: nobody is impatient
        self.times += 1
        os.write(self._writable, b"!")
