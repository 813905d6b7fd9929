"""Text that every machine has: the standard library and the installed packages, their sources and their docs.

English is the docs beside the sources, the descriptions in the packages' metadata, Python's own help topics, and
per module its docstrings joined. What there is depends on the machine, as the interpreter and its packages do.

Whole packages are held out for validation, chosen by the hash of their name: some of the standard library and some
installed ones, small ones so that little training text is lost. Documents for training that nearly repeat a held-out
one are dropped: half of their 8-word shingles are in it, or half of its shingles in them.
"""

import ast
import email
import hashlib
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from nanocode.text.sources import Document, Kind, SourceError, Unit, grouped, walk

HELD_OUT_SHARE = 0.05
# A package counts as small, and may be held out, from 20 KB (something to measure on) to 400 KB of Python.
HELD_OUT_BYTES = range(20_000, 400_000)
# Of either half: what is measured should be small beside what is trained on, and quick to evaluate.
HELD_OUT_TOTAL = 1_500_000
SHINGLE_WORDS = 8
# Every fourth shingle of a training document is looked up: the decision is at one half, so a sample will do.
SHINGLE_STEP = 4
SHORTEST_DOCSTRING = 80
SHORTEST_ENGLISH = 400
# Skipped: test data breaks encodings on purpose, and licences repeat each other word by word.
SKIPPED_PARTS = frozenset(
    {"test", "tests", "testing", "__pycache__", "site-packages", "idle_test", "licenses", "_vendor"}
)
SKIPPED_STEMS = re.compile(r"(?i)^(licen[sc]e|copying|copyright|notice|authors|record|top_level|entry_points|topics$)")
WORD = re.compile(r"\w+")


@dataclass(frozen=True, order=True)
class File:
    """A file and the package it belongs to; the standard library's are `stdlib:json` and the like."""

    package: str
    path: Path


@dataclass(frozen=True)
class Embedded:
    """The source code, or the English, of the running interpreter and its packages."""

    kind: Kind

    def units(self) -> Iterator[Unit]:
        """First the held-out packages, then the others' files in an order by hash: any prefix is a fair sample."""
        held = held_out()
        files = [file for file in installed() if self.kind == "english" or file.path.suffix == ".py"]
        if not files:
            raise SourceError(f"{sys.prefix} has no Python sources: use a Python with its library, or other sources")
        first = [file for file in files if file.package in held]
        owner = {file.path: file.package for file in files}
        for group in grouped([file.path for file in first]):
            part = tuple(File(owner[path], path) for path in group)
            yield Unit(f"held-out:{part[0].path}", partial(read_held_out, part, self.kind))
        rest = sorted((file for file in files if file.package not in held), key=lambda file: fraction(str(file.path)))
        for group in grouped([file.path for file in rest]):
            part = tuple(File(owner[path], path) for path in group)
            yield Unit(f"{part[0].path}", partial(read_training, part, self.kind))


def fraction(name: str) -> float:
    """A number in [0, 1) from the hash of a name."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=7).digest()) / (1 << 56)


@cache
def installed() -> tuple[File, ...]:
    """The Python and documentation files of the standard library and of the installed packages."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    found = {path: f"stdlib:{top(path, stdlib)}" for path in walk(stdlib) if usable(path.relative_to(stdlib))}
    for folder in sorted({Path(sysconfig.get_paths()[key]) for key in ("purelib", "platlib")}):
        names = {path.name: distribution_package(path) for path in sorted(folder.glob("*.dist-info"))}
        for path in walk(folder):
            if usable(path.relative_to(folder)):
                part = path.relative_to(folder).parts[0]
                found[path] = names.get(part) or top(path, folder)
    return tuple(sorted(File(package, path) for path, package in found.items()))


def usable(path: Path) -> bool:
    """Whether a file is source or docs, and not of the parts that are left out."""
    if SKIPPED_PARTS & set(path.parts[:-1]) or SKIPPED_STEMS.match(path.name):
        return path.name == "topics.py"
    return path.suffix in (".py", ".rst", ".md", ".txt") or path.name == "METADATA"


def top(path: Path, folder: Path) -> str:
    """The top-level name a file belongs to."""
    return path.relative_to(folder).parts[0].removesuffix(".py")


def distribution_package(info: Path) -> str:
    """The package that a `dist-info` folder describes: where most of its Python files are."""
    try:
        lines = (info / "RECORD").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    tops = Counter(line.split(",")[0].split("/")[0].removesuffix(".py") for line in lines if ".py," in line)
    return tops.most_common(1)[0][0] if tops else info.name.split("-")[0].lower()


@cache
def held_out() -> frozenset[str]:
    """The held-out packages: the first by hash of their names, 5% but at least 3, of each half."""
    sizes: Counter[str] = Counter()
    for file in installed():
        if file.path.suffix == ".py":
            sizes[file.package] += file.path.stat().st_size
    chosen: set[str] = set()
    for is_stdlib in (True, False):
        half = [name for name in sizes if name.startswith("stdlib:") == is_stdlib]
        wanted, total = max(3, round(HELD_OUT_SHARE * len(half))), 0
        for name in sorted((name for name in half if sizes[name] in HELD_OUT_BYTES), key=fraction)[:wanted]:
            total += sizes[name]
            if total > HELD_OUT_TOTAL:
                break
            chosen.add(name)
    return frozenset(chosen)


def documents(files: Sequence[File], kind: Kind) -> Iterator[Document]:
    """The texts of one kind in the files. A file that is gone or unreadable is passed over: nobody listed it."""
    for file in files:
        try:
            text = file.path.read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if kind == "english":
            text = english(file.path, text)
            if len(text) < SHORTEST_ENGLISH:
                continue
        if text.strip():
            yield Document(text, kind, str(file.path), file.package)


def english(path: Path, text: str) -> str:
    """The English of a file: a doc as it is, metadata's description, help topics, or a module's docstrings."""
    if path.name == "METADATA":
        payload = email.message_from_string(text).get_payload()
        return payload if isinstance(payload, str) else ""
    if path.suffix != ".py":
        return text
    return docstrings(text, topics=path.name == "topics.py")


def docstrings(source: str, topics: bool = False) -> str:
    """A module's docstrings of some length, in order, an empty line between; nothing for what does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's sources
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    if topics:  # pydoc_data/topics.py: a dictionary of the language reference's chapters
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        return "\n\n".join(str(node.value).strip() for node in nodes if len(str(node.value)) > SHORTEST_ENGLISH)
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, owners)]
    return "\n\n".join(text.strip() for text in texts if len(text) >= SHORTEST_DOCSTRING)


def read_held_out(files: Sequence[File], kind: Kind) -> Iterator[Document]:
    """The documents of held-out packages."""
    for document in documents(files, kind):
        yield Document(document.text, kind, document.origin, document.package, held_out=True)


def read_training(files: Sequence[File], kind: Kind) -> Iterator[Document]:
    """The documents of other packages that do not nearly repeat a held-out one."""
    known = held_out_shingles(kind)
    for document in documents(files, kind):
        if not known.near(document.text):
            yield Document(document.text, kind, document.origin, document.package, held_out=False)


class Shingles:
    """The 8-word shingles of some documents, and which of them has each. About 100 bytes a word."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._owner: dict[int, int] = {}
        self._sizes: list[int] = []
        for number, text in enumerate(texts):
            own = shingles(text, 1)
            self._sizes.append(len(own))
            for shingle in own:
                self._owner.setdefault(shingle, number)

    def near(self, text: str) -> bool:
        """Whether half of the text is in these documents, or half of one of these in the text."""
        own = shingles(text, SHINGLE_STEP)
        hits = Counter(self._owner[shingle] for shingle in own if shingle in self._owner)
        if 2 * hits.total() >= max(len(own), 1):
            return True
        return any(2 * SHINGLE_STEP * count >= self._sizes[number] for number, count in hits.items())


def shingles(text: str, step: int) -> set[int]:
    """Hashes of 8 consecutive words, at every `step`-th word. Python's hash will do: they leave no process."""
    words = WORD.findall(text)
    last = max(len(words) - SHINGLE_WORDS + 1, 1)
    return {hash(tuple(words[start : start + SHINGLE_WORDS])) for start in range(0, last, step)}


@cache
def held_out_shingles(kind: Kind) -> Shingles:
    """The shingles of the held-out documents of a kind, made once in a process."""
    held = held_out()
    files = [file for file in installed() if file.package in held and (kind == "english" or file.path.suffix == ".py")]
    return Shingles([document.text for document in documents(files, kind)])
