"""The four tools on a folder: what Read, Edit, Grep and Bash answer to a model, text in and text out.

No path leaves the folder: it is walked from the root's descriptor one name at a time, each opened with O_NOFOLLOW below
the last, so that nothing can be swapped in between. Only regular files of UTF-8 text up to `FILE_BYTES` are touched.
Every refusal is a `ToolError` of one short line.
"""

import errno
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nanocode.agent.sandbox import DEFAULT_LIMITS, Grade, Limits, Refused, Sandbox
from nanocode.agent.server import NoAnswer, ask

FILE_BYTES = 1_000_000
# A pattern that backtracks for longer is the model's mistake, not the machine's work.
GREP_SECONDS = 2.0
# Folders deeper than this are not searched: nobody made them by hand, and every level holds a descriptor.
DEPTH = 64
# Folders that hold what programs made or fetched: a hit there is none of the user's. Named as `path`, one is searched.
SKIPPED = frozenset(
    {
        ".git", ".hg", ".svn", "node_modules", "site-packages", "__pycache__", ".tox", ".nox",
        ".eggs", ".cache", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints",
    }
)  # fmt: skip
# Names that a user's own folders have too: these are skipped for what they hold, as `_is_made` says.
ENVIRONMENTS = frozenset({".venv", "venv"})
RUNS = "runs"
PATTERN_CHARACTERS = 1000
# Grep stops when it has this many times what it may answer: nobody sees the rest.
KEPT_ANSWERS = 64
# Text that goes to the searching process in one message.
BATCH_CHARACTERS = 8 << 20
BOM = "\ufeff"
_RUN_CONFIG = re.compile(r"[0-9]+\.yaml")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO would wait for its other end.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC


class ToolError(Exception):
    """The tool could not do it; the text, after "error: ", is for the model."""


class Workspace:
    """A folder and what may be done in it. `limits.output_bytes` bounds every answer."""

    def __init__(
        self,
        root: Path,
        limits: Limits = DEFAULT_LIMITS,
        grade: Grade | None = None,
        unsafe_bash: bool = False,
        shown_as: str | None = None,
    ) -> None:
        """`shown_as`: what Bash's output calls the folder, for one whose real name is chance."""
        self.root = root.resolve()
        self.limits = limits
        self._shown_as = shown_as
        self.sandbox = Sandbox(self.root, limits, grade, unsafe_bash)

    def read(self, path: str, start: int | None = None, end: int | None = None) -> str:
        """Lines start..end of a file, counted from 1, both included, each as `    7→text`."""
        lines = _lines(self._text(path))
        first, last = 1 if start is None else start, len(lines) if end is None else end
        if first < 1 or (end is not None and end < first):
            raise ToolError(f"bad line range {first}-{last}")
        if first > max(len(lines), 1):
            raise ToolError(f"{_short(path)} has {_counted(len(lines), 'line')}")
        return self._cut(_numbered(lines[first - 1 : last], first))

    def edit(self, path: str, old: str, new: str) -> str:
        """Replace the one occurrence of `old`, or with an empty `old` create the file; the lines that are now there.

        Text is compared without regard to CRLF, and what is put in takes the line ends that the file has.
        """
        if not _is_text(new):
            raise ToolError("new text must be UTF-8 without NUL")
        if old == new:
            raise ToolError("old and new text are the same")
        with self._folder(path, make=old == "") as (folder, name):
            if old == "":
                _write(folder, name, new, path, None)
                return self._cut(_numbered(_lines(new), 1))
            text, status = _read_text(folder, name, path)
            places = _places(text, old)
            if len(places) != 1:
                raise ToolError(f"old text found {_counted(len(places), 'time')} in {_short(path)}, must be exactly 1")
            before, after = text[: places[0][0]], text[places[0][1] :]
            if "\r" not in old + new and 2 * text.count("\r\n") > text.count("\n"):
                new = new.replace("\n", "\r\n")
            _write(folder, name, before + new + after, path, status)
        first = len(_lines(before + "x"))
        last = max(first, len(_lines(before + new)))
        return self._cut(_numbered(_lines(before + new + after)[first - 1 : last], first))

    def grep(self, pattern: str, path: str = ".") -> str:
        """`path:line:text` of every line in which the regular expression is found, files in sorted order."""
        if len(pattern) > PATTERN_CHARACTERS:
            raise ToolError(f"bad pattern: longer than {PATTERN_CHARACTERS} characters")
        found: list[str] = []
        most = KEPT_ANSWERS * self.limits.output_bytes
        deadline = time.monotonic() + GREP_SECONDS
        for batch in _batches(self._searched(path)):
            texts = [lines for _, lines in batch]
            for file, number in _matches(pattern, texts, deadline - time.monotonic(), most):
                name, lines = batch[file]
                found.append(f"{name}:{number + 1}:{lines[number]}")
                most -= len(found[-1]) + 1
            if most <= 0:
                break
        return self._cut("\n".join(found)) if found else "no matches"

    def bash(self, command: str) -> str:
        """What the command printed, after a line that begins with "error: " unless it succeeded."""
        try:
            done = self.sandbox.run(command)
        except Refused as error:
            raise ToolError(f"Bash is refused: {error}") from error
        output = done.output + ("\n[output cut]" if done.truncated else "")
        if self._shown_as is not None:
            output = output.replace(str(self.root), self._shown_as)
        if done.timed_out:
            return f"error: timed out after {self.limits.wall_seconds:g} s\n{output}"
        return f"error: exit status {done.exit_code}\n{output}" if done.exit_code else output

    def files(self) -> dict[str, str]:
        """The text files by relative path, sorted; what is no text is left out."""
        return dict(self._searched("."))

    def put(self, path: str, text: str) -> None:
        """Place a file for a task or its check, whatever stood there: not a tool, the agent cannot call it."""
        with self._folder(path, make=True) as (folder, name):
            with _translated(path), suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            _write(folder, name, text, path, None)

    def _cut(self, text: str) -> str:
        """The beginning of the text, in whole lines if possible, and how much is missing."""
        data = text.encode()
        most = self.limits.output_bytes
        if len(data) <= most:
            return text
        kept = data[: data.rfind(b"\n", 0, most + 1)] if b"\n" in data[: most + 1] else data[:most]
        return kept.decode(errors="ignore") + f"\n[{len(data) - len(kept)} more bytes not shown]"

    @contextmanager
    def _folder(self, path: str, make: bool = False) -> Iterator[tuple[int, str]]:
        """The open folder that holds `path`, and its name there; with `make`, missing folders are made."""
        parts = _parts(path)
        if not parts:
            raise ToolError(f"not a file: {_short(path)}")
        with self._opened(parts[:-1], path, make) as folder:
            yield folder, parts[-1]

    @contextmanager
    def _opened(self, parts: list[str], path: str, make: bool = False) -> Iterator[int]:
        """The folder reached by these names; `path` is what errors call it."""
        with _translated(path):
            here = os.open(self.root, _FOLDER)
        try:
            for part in parts:
                with _translated(path):
                    if make:
                        with suppress(FileExistsError):
                            os.mkdir(part, dir_fd=here)
                    below = os.open(part, _FOLDER, dir_fd=here)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    def _text(self, path: str) -> str:
        with self._folder(path) as (folder, name):
            return _read_text(folder, name, path)[0]

    def _searched(self, path: str) -> Iterator[tuple[str, str]]:
        """Relative path and text of a file, or of every text file below a folder, sorted."""
        parts = _parts(path)
        if parts:
            with self._folder(path) as (folder, name):
                with _translated(path):
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    yield "/".join(parts), _read_text(folder, name, path)[0]
                    return
        with self._opened(parts, path) as folder:
            yield from _walk(folder, "".join(part + "/" for part in parts), DEPTH)


def _batches(files: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, list[str]]]]:
    """The files with their lines, so many at a time that a message holds them; at least one batch, be it empty."""
    batch: list[tuple[str, list[str]]] = []
    size = 0
    for name, text in files:
        batch.append((name, _lines(text)))
        size += len(text)
        if size > BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch


def _matches(pattern: str, texts: list[list[str]], seconds: float, most: int) -> list[tuple[int, int]]:
    """Text and line, from 0, of the matches, until `most` characters; `ToolError` for a bad or a slow pattern."""
    slow = f"search takes more than {GREP_SECONDS:g} s: simplify the pattern or give a path"
    if seconds <= 0:
        raise ToolError(slow)
    try:
        request = {"pattern": pattern, "texts": texts, "seconds": seconds, "most": most}
        answer, _ = ask("search", request, seconds + 5)
    except NoAnswer as error:
        raise ToolError(slow) from error
    if answer["error"]:
        raise ToolError(f"bad pattern: {_short(answer['error'])}")
    return [(text, line) for text, line in answer["hits"]]


def _walk(folder: int, prefix: str, depth: int, called: str = "") -> Iterator[tuple[str, str]]:
    """Every text file below the open folder; what is none, or goes away meanwhile, is left out.

    `called`: the folder's name, unless the search began there.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        # With its slash a folder sorts among the files as full paths do.
        kinds = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_folder in sorted(kinds, key=lambda kind: kind[0] + "/" * kind[1]):
            if (is_folder and name in SKIPPED) or not name.isprintable():
                continue
            if not is_folder:
                with suppress(ToolError):
                    yield prefix + name, _read_text(folder, name, name)[0]
            elif depth:
                try:
                    below = os.open(name, _FOLDER, dir_fd=folder)
                except OSError:
                    continue
                try:
                    if not _is_made(below, name, called):
                        yield from _walk(below, f"{prefix}{name}/", depth - 1, name)
                finally:
                    os.close(below)


def _is_made(folder: int, name: str, within: str) -> bool:
    """Whether the open folder is a virtual environment, or a run directory (config/<n>.yaml) within `runs`."""
    with suppress(OSError):
        if name in ENVIRONMENTS:
            return stat.S_ISREG(os.stat("pyvenv.cfg", dir_fd=folder, follow_symlinks=False).st_mode)
        if within == RUNS:
            config = os.open("config", _FOLDER, dir_fd=folder)
            try:
                return any(_RUN_CONFIG.fullmatch(one) for one in os.listdir(config))
            finally:
                os.close(config)
    return False


def _parts(path: str) -> list[str]:
    """The names of a relative path; `ToolError` for one that would leave the folder."""
    if path.startswith("/") or ".." in path.split("/"):
        raise ToolError(f"outside the workspace: {_short(path)}")
    if not _is_text(path):
        raise ToolError("bad path: not plain text")
    return [part for part in path.split("/") if part not in ("", ".")]


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """`OSError` as the short text that a model can act on."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise ToolError(f"no such file: {_short(path)}") from error
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise ToolError(f"symbolic link refused: {_short(path)}") from error
        if error.errno == errno.EEXIST:
            raise ToolError(f"file exists: {_short(path)}") from error
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise ToolError(f"not a regular file: {_short(path)}") from error
        raise ToolError(f"{(error.strerror or 'cannot access').lower()}: {_short(path)}") from error


def _read_text(folder: int, name: str, path: str) -> tuple[str, os.stat_result]:
    """The text of a regular file, and its mode and owner; `path` is what errors call it."""
    with _translated(path):
        # Asked first: to open a device may set something off.
        _refuse_special(os.stat(name, dir_fd=folder, follow_symlinks=False), path)
        descriptor = os.open(name, _READ, dir_fd=folder)
    with _translated(path), open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        _refuse_special(status, path)
        data = file.read(FILE_BYTES + 1)
    if len(data) > FILE_BYTES:
        raise ToolError(f"file too large: {_short(path)} ({max(status.st_size, len(data))} bytes)")
    if b"\0" in data:
        raise ToolError(f"binary file: {_short(path)}")
    try:
        return data.decode(), status
    except UnicodeDecodeError as error:
        raise ToolError(f"not UTF-8 text: {_short(path)}") from error


def _refuse_special(status: os.stat_result, path: str) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise ToolError(f"symbolic link refused: {_short(path)}")
    if stat.S_ISDIR(status.st_mode):
        raise ToolError(f"is a folder: {_short(path)}")
    if not stat.S_ISREG(status.st_mode):
        raise ToolError(f"not a regular file: {_short(path)}")


def _write(folder: int, name: str, text: str, path: str, replaced: os.stat_result | None) -> None:
    """Write the file aside and put it in its place whole; without `replaced` only where nothing has its name."""
    data = text.encode()
    if len(data) > FILE_BYTES:
        raise ToolError(f"file would be too large: {_short(path)} ({len(data)} bytes)")
    aside = f".aside-{uuid.uuid4().hex}"
    with _translated(path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(aside, flags, 0o666, dir_fd=folder)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                if replaced is not None:
                    with suppress(PermissionError):
                        os.fchown(descriptor, replaced.st_uid, replaced.st_gid)
                    os.fchmod(descriptor, stat.S_IMODE(replaced.st_mode) & 0o777)
            if replaced is None:
                os.link(aside, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            else:
                os.rename(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=folder)


def _places(text: str, old: str) -> list[tuple[int, int]]:
    """Where `old` begins and ends in the text, overlapping ones too, a line end of it being LF or CRLF."""
    pattern = re.escape(old) if "\r" in old else r"\r?\n".join(re.escape(line) for line in old.split("\n"))
    return [hit.span(1) for hit in re.finditer(f"(?=({pattern}))", text)]


def _lines(text: str) -> list[str]:
    """The lines as a model sees them: without line ends, and without a byte order mark."""
    lines = text.removeprefix(BOM).split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _numbered(lines: list[str], first: int) -> str:
    return "\n".join(f"{n:5d}→{line}" for n, line in enumerate(lines, start=first))


def _is_text(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _short(text: str) -> str:
    """One line that leaves room in a small context, and that can be encoded."""
    text = " ".join(text.encode(errors="replace").decode().split())
    return text if len(text) <= 100 else text[:60] + "..." + text[-37:]


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
