"""The controllers of one run on one host: while another one is at work, Ctrl-C in one need not stop what runs.

Each holds a shared lock on a file of the host, which the kernel takes from whoever dies. One that is told to leave
gives it up and asks for the whole lock: of several that are told at once exactly one gets it, and stops what runs.
It keeps the whole lock until it has ended; whoever begins meanwhile gets a share only then, and `stay` asks for it.
"""

import fcntl
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self


class Peers:
    """As one of them, within `with`. Where no lock can be had we are alone."""

    def __init__(self, url: str) -> None:
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        self._path = Path(tempfile.gettempdir(), f"nanocode-{os.getuid()}", f"{name}.lock")
        self._handle: int | None = None
        self._seen = False
        """Whether we have what others see us by, or want it no more."""

    def __enter__(self) -> Self:
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self.there = not self._lock(fcntl.LOCK_EX)
        """Whether another one was at work when we began."""
        self.stay()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._handle is not None:
            os.close(self._handle)

    def stay(self) -> None:
        """Be seen by the others: for every look, until it has come to that."""
        self._seen = self._seen or self._lock(fcntl.LOCK_SH)

    def leave(self) -> bool:
        """Be none of them any more; whether another one goes on."""
        self._seen = True
        self._lock(fcntl.LOCK_UN)
        return not self._lock(fcntl.LOCK_EX)

    def _lock(self, how: int) -> bool:
        if self._handle is not None:
            try:
                fcntl.flock(self._handle, how | fcntl.LOCK_NB)
            except OSError:
                return False
        return True
