"""Where text comes from: documents in units, each unit small enough to be one worker's task.

`units()` is lazy and always in the same order; a unit streams its documents. Units and sources are plain data, so
that a worker process can be handed one. Trouble in the input is a `SourceError` that names file and row.
"""

import gzip
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol, cast

from nanocode.run.exits import ConfigurationError
from nanocode.storage.objects import StorageError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

Kind = Literal["code", "english"]

UNIT_FILES = 256
UNIT_BYTES = 4 << 20
# Lines of a JSONL file in one unit: each unit reads the file from its beginning, so this is a compromise.
UNIT_LINES = 1 << 16
# Rows that are decoded at once: with 100 KB documents, 12 MB.
ROW_BATCH = 128
CODE_SUFFIXES = frozenset(
    {
        ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".go", ".rs", ".java", ".js", ".ts",
        ".tsx", ".jsx", ".rb", ".php", ".sh", ".sql", ".swift", ".kt", ".scala", ".cs", ".lua",
    }
)  # fmt: skip
ENGLISH_SUFFIXES = frozenset({".md", ".rst", ".txt"})
PATTERN = re.compile(r"[*?\[]")
SKIPPED_FOLDERS = frozenset({".git", "__pycache__", "node_modules", ".venv", ".hg", ".svn"})


class SourceError(ConfigurationError):
    """The input cannot be used; one line with the file, the row and the next move."""


class SourceUnavailable(StorageError):
    """The input cannot be reached now; one line with the file and the reason. Worth another try."""


@dataclass(frozen=True)
class Document:
    """One text. `origin` says where it is from, `held_out` whether it is for validation (None: by its hash)."""

    text: str
    kind: Kind
    origin: str
    package: str = ""
    held_out: bool | None = None


@dataclass(frozen=True)
class Unit:
    """Some documents of a source; `read` streams them and may raise `SourceError`."""

    name: str
    read: Callable[[], Iterator[Document]]


class Source(Protocol):
    """Anything that has units. Its `repr` is its identity: a resumed build must come with an equal one."""

    def units(self) -> Iterator[Unit]:
        """All units, in an order that is always the same."""


@dataclass(frozen=True)
class Files:
    """A text file or a tree of them; the kind follows the file's suffix unless given."""

    path: str
    kind: Kind | None = None

    def units(self) -> Iterator[Unit]:
        """Files by name, in groups of at most 256 files or about 4 MB."""
        root = Path(self.path)
        if not root.exists():
            raise SourceError(f"{root} is not there: check the path of the source")
        paths = [root] if root.is_file() else [path for path in walk(root) if kind_of(path, self.kind)]
        if not paths:
            raise SourceError(f"{root} has no text or source files: check the path of the source")
        for group in grouped(paths):
            yield Unit(str(group[0]), partial(read_files, tuple(map(str, group)), str(root), self.kind))


@dataclass(frozen=True)
class JsonLines:
    """A `.jsonl` file (`.gz` too), or a folder of them, local or of any fsspec scheme; `column` holds the text."""

    path: str
    kind: Kind
    column: str = "text"

    def units(self) -> Iterator[Unit]:
        """65536 lines each; where a file ends is found by reading it."""
        for path in matching(self.path, (".jsonl", ".jsonl.gz", ".json.gz")):
            start, more = 0, True
            while more:
                yield Unit(f"{path}:{start + 1}", partial(read_lines, path, start, UNIT_LINES, self.kind, self.column))
                start += UNIT_LINES
                more = has_line(path, start)


@dataclass(frozen=True)
class Parquet:
    """A parquet file or a folder of them: local, `gs://...`, or `hf://datasets/ORG/NAME@REVISION[/folder]`."""

    path: str
    kind: Kind
    column: str = "text"

    def units(self) -> Iterator[Unit]:
        """One row group each; a file's footer is read when its turn comes."""
        for path in matching(self.path, (".parquet",)):
            with opened_parquet(path, self.column) as file:
                groups = file.num_row_groups
            for group in range(groups):
                yield Unit(f"{path}#{group}", partial(read_row_group, path, group, self.kind, self.column))


def walk(root: Path) -> Iterator[Path]:
    """All files below, sorted by path, without what version control and caches leave."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)
        yield from (Path(folder, name) for name in sorted(names))


def kind_of(path: Path, given: Kind | None = None) -> Kind | None:
    """What a file holds by its suffix; None if it is no text we know."""
    suffix = path.suffix.lower()
    if suffix in CODE_SUFFIXES:
        return given or "code"
    if suffix in ENGLISH_SUFFIXES:
        return given or "english"
    return None


def grouped(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Consecutive files in groups of at most `UNIT_FILES`, closed when they pass `UNIT_BYTES`."""
    group: list[Path] = []
    size = 0
    for path in paths:
        group.append(path)
        size += path.stat().st_size
        if len(group) == UNIT_FILES or size >= UNIT_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def read_files(paths: tuple[str, ...], root: str, kind: Kind | None) -> Iterator[Document]:
    """One document a file. Bytes that are no UTF-8 become U+FFFD, by which the filters know them."""
    for path in paths:
        try:
            text = Path(path).read_bytes().decode("utf-8", "replace")
        except OSError as error:
            raise SourceError(f"cannot read {path} ({error.strerror}): check the file or leave it out") from error
        origin = os.path.relpath(path, root) if path != root else path
        yield Document(text, kind_of(Path(path), kind) or kind or "english", origin)


@contextmanager
def named(path: str, row: str = "") -> Iterator[None]:
    """Turn whatever a file system, a network or a decoder raises into a `SourceError` about `path`."""
    import pyarrow

    try:
        yield
    except (SourceError, SourceUnavailable):
        raise
    except FileNotFoundError as error:
        raise SourceError(f"{path} is not there: check the path of the source") from error
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"{path}{row} is damaged or truncated ({reason}): fetch the file again") from error
    except Exception as error:
        if type(error) is OSError and error.errno is None:  # how pyarrow says that it cannot make sense of bytes
            reason = " ".join(str(error).split())[:200]
            raise SourceError(f"{path}{row} is damaged or truncated ({reason}): fetch the file again") from error
        # Network file systems raise what their HTTP client raises: no smaller class covers them.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise SourceUnavailable(f"cannot read {path}{row} ({reason}): check network, credentials and path") from error


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path inside it."""
    import fsspec

    if path.startswith("hf://"):
        from huggingface_hub import HfFileSystem  # reads HF_TOKEN itself

        return HfFileSystem(), path.removeprefix("hf://")
    return cast(tuple[Any, str], fsspec.core.url_to_fs(path))


def opened(path: str) -> IO[bytes]:
    """The file for reading, decompressed if it ends in `.gz`."""
    system, inside = filesystem(path)
    file = system.open(inside, "rb")
    return cast(IO[bytes], gzip.open(file) if path.endswith(".gz") else file)


def matching(path: str, suffixes: tuple[str, ...]) -> list[str]:
    """The file, what a pattern matches, or all files below a folder that end so, sorted; `SourceError` if none."""
    scheme = path.partition("://")[0] + "://" if "://" in path else ""
    with named(path):
        system, inside = filesystem(path)
        if PATTERN.search(inside):
            found = sorted(name for name in system.glob(inside) if name.endswith(suffixes))
            if not found:
                raise SourceError(f"{path} matches no {' or '.join(suffixes)} files: check the path of the source")
            return [scheme + name for name in found]
        if system.isfile(inside):
            return [path]
        if not system.exists(inside):
            raise SourceError(f"{path} is not there: check the path of the source")
        found = sorted(name for name in system.find(inside) if name.endswith(suffixes))
    if not found:
        raise SourceError(f"{path} has no {' or '.join(suffixes)} files: check the path of the source")
    return [scheme + name for name in found]


def has_line(path: str, number: int) -> bool:
    """Whether a file has more than `number` lines."""
    with named(path), opened(path) as file:
        return any(count == number for count, _ in enumerate(file))


def read_lines(path: str, start: int, count: int, kind: Kind, column: str) -> Iterator[Document]:
    """The documents of `count` lines from line `start`, counted from 0."""
    import itertools

    with named(path), opened(path) as file:
        for number, line in enumerate(itertools.islice(file, start, start + count), start + 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise SourceError(f"{path}, line {number} is not JSON ({error}): mend or remove the line") from error
            text = record.get(column) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise SourceError(f"{path}, line {number} has no text in {column!r}: name the source's column")
            yield Document(text, kind, f"{path}:{number}")


@contextmanager
def opened_parquet(path: str, column: str) -> "Iterator[pq.ParquetFile]":
    """A parquet file that has the column, as text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with named(path), opened(path) as raw, pq.ParquetFile(raw) as file:
        schema = file.schema_arrow
        if column not in schema.names:
            raise SourceError(f"{path} has no column {column!r}, only {', '.join(schema.names)}: name the column")
        if schema.field(column).type not in (pa.string(), pa.large_string()):
            raise SourceError(f"{path}: column {column!r} is {schema.field(column).type}, not text: name another")
        yield file


def read_row_group(path: str, group: int, kind: Kind, column: str) -> Iterator[Document]:
    """The documents of one row group; rows without text are passed over."""
    row = 0
    try:
        with opened_parquet(path, column) as file:
            for batch in file.iter_batches(ROW_BATCH, row_groups=[group], columns=[column]):
                for text in batch.column(0).to_pylist():
                    if text is not None:
                        yield Document(text, kind, f"{path}#{group}:{row}")
                    row += 1
    except (SourceError, SourceUnavailable) as error:
        raise type(error)(f"row group {group}, row {row} of {error}") from error
