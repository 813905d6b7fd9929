"""The four tools on a folder: what Read, Edit, Grep and Bash answer to a model, text in and text out.

No path leaves the folder: each file is opened relative to the root's descriptor, and the kernel refuses `..`, absolute
paths and symbolic links at that moment, so that nothing can be swapped in between. Only regular files of UTF-8 text up
to `FILE_BYTES` are touched. Every refusal is a `ToolError` of one short line.
"""

import errno
import os
import re
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import regex

from nanocode.agent import kernel
from nanocode.agent.sandbox import Grade, Limits, Refused, Sandbox

FILE_BYTES = 1_000_000
# A pattern that backtracks for longer is the model's mistake, not the machine's work.
GREP_SECONDS = 2.0
# Folders deeper than this are not searched: nobody made them by hand, and every level holds a descriptor.
DEPTH = 64
SKIPPED = frozenset({".git"})
CONTEXT_LINES = 0
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO would wait for its other end.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC


class ToolError(Exception):
    """The tool could not do it; the text, after "error: ", is for the model."""


class Workspace:
    """A folder and what may be done in it. `limits.output_bytes` bounds every answer."""

    def __init__(
        self, root: Path, limits: Limits = Limits(), grade: Grade | None = None, unsafe_bash: bool = False
    ) -> None:
        self.root = root.resolve()
        self.limits = limits
        self.sandbox = Sandbox(self.root, limits, grade, unsafe_bash)

    def read(self, path: str, start: int | None = None, end: int | None = None) -> str:
        """Lines start..end of a file, counted from 1, both included, each as `    7→text`."""
        lines = _lines(self._text(path))
        first, last = 1 if start is None else start, len(lines) if end is None else end
        if first < 1 or last < first and (start is not None or end is not None):
            raise ToolError(f"bad line range {first}-{last}")
        if first > max(len(lines), 1):
            raise ToolError(f"{path} has {_counted(len(lines), 'line')}")
        return self._cut(_numbered(lines[first - 1 : last], first))

    def edit(self, path: str, old: str, new: str) -> str:
        """Replace the one occurrence of `old`, or with an empty `old` create the file; the lines that changed."""
        if "\0" in new or _not_utf8(new):
            raise ToolError("new text is not plain text")
        if old == "":
            self._create(path, new)
            return self._cut(_numbered(_lines(new), 1))
        with self._folder(path) as (folder, name):
            text, mode = _read_text(folder, name, path)
            if "\r\n" in text and "\r" not in old + new:
                # The model sees and writes plain line ends; the file keeps its own.
                old, new = old.replace("\n", "\r\n"), new.replace("\n", "\r\n")
            count = _occurrences(text, old)
            if count != 1:
                raise ToolError(f"old text found {_counted(count, 'time')} in {path}, must be exactly 1")
            at = text.index(old)
            changed = text[:at] + new + text[at + len(old) :]
            _write(folder, name, changed.encode(), path, mode)
        first = len(_lines(text[:at] + "x"))
        last = max(first, len(_lines(changed[: at + len(new)])))
        return self._cut(_numbered(_lines(changed)[first - 1 : last], first))

    def grep(self, pattern: str, path: str = ".") -> str:
        """`path:line:text` of every line in which the regular expression is found, files in sorted order."""
        try:
            compiled = regex.compile(pattern)
        except (regex.error, RecursionError, OverflowError) as error:
            raise ToolError(f"bad pattern: {error}") from error
        found: list[str] = []
        size = 0
        deadline = _Deadline(GREP_SECONDS)
        for name, text in self._searched(path):
            for number, line in enumerate(_lines(text), start=1):
                try:
                    hit = compiled.search(line, timeout=deadline.left())
                except TimeoutError as error:
                    raise ToolError(f"pattern takes more than {GREP_SECONDS:g} s") from error
                if hit:
                    found.append(f"{name}:{number}:{line}")
                    size += len(found[-1]) + 1
            if size > 64 * self.limits.output_bytes:
                break  # far more than will be shown
        return self._cut("\n".join(found)) if found else "no matches"

    def bash(self, command: str) -> str:
        """What the command printed, after a line that begins with "error: " unless it succeeded."""
        try:
            done = self.sandbox.run(command)
        except Refused as error:
            raise ToolError(f"Bash is refused: {error}") from error
        output = done.output + ("\n[output cut]" if done.truncated else "")
        if done.timed_out:
            return f"error: timed out after {self.limits.wall_seconds:g} s\n{output}"
        return f"error: exit status {done.exit_code}\n{output}" if done.exit_code else output

    def files(self) -> dict[str, str]:
        """The text files by relative path, sorted; what is no text is left out."""
        return dict(self._searched("."))

    # -- paths ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def _folder(self, path: str, make: bool = False) -> Iterator[tuple[int, str]]:
        """The open folder that holds `path`, and its name there; with `make` folders that are missing are made."""
        *parents, name = _parts(path) or [""]
        if not name:
            raise ToolError(f"not a file: {path}")
        with _translated(path):
            here = os.open(self.root, _FOLDER)
        try:
            for parent in parents:
                with _translated(path):
                    if make:
                        with suppress(FileExistsError):
                            os.mkdir(parent, dir_fd=here)
                    below = _open(here, parent, _FOLDER)
                os.close(here)
                here = below
            yield here, name
        finally:
            os.close(here)

    def _text(self, path: str) -> str:
        with self._folder(path) as (folder, name):
            return _read_text(folder, name, path)[0]

    def _create(self, path: str, text: str) -> None:
        with self._folder(path) as (folder, name):
            pass
