"""What a process says, for as long as somebody is there to hear it.

A terminal that is closed answers every write with EIO, a pipe whose reader has left with EPIPE (`nanocode run | tee`,
where Ctrl-C ends tee as well): work that has a day behind it must not end on either.
"""

import io
import sys
from typing import Any, TextIO


class _Unheard(io.FileIO):
    """What cannot be written is lost."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def outlive_listeners() -> None:
    """From here on, no write to stdout or stderr fails; streams that somebody has replaced stay as they are."""
    if sys.__stdout__ is not None and sys.stdout is sys.__stdout__:
        sys.stdout = _lasting(sys.stdout)
    if sys.__stderr__ is not None and sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(sys.stderr)


def _lasting(stream: TextIO) -> TextIO:
    stream.flush()
    raw = io.BufferedWriter(_Unheard(stream.fileno(), "w", closefd=False))
    by_line = stream.isatty() or stream is sys.stderr
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=by_line)
