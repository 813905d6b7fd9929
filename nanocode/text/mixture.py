"""The weighted sources of a run, opened, and samples of their text for whoever needs no tokens."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanocode.config.settings import Source as SourceSettings
from nanocode.text.embedded import Embedded
from nanocode.text.filters import reason_to_drop
from nanocode.text.sources import Document, Files, JsonLines, Kind, Parquet, Source, SourceError

PARQUET = (".parquet",)
JSON_LINES = (".jsonl", ".jsonl.gz", ".json.gz", ".ndjson")
# A sample of one kind gives up on a source after reading so many times its size there.
PATIENCE = 20


@dataclass(frozen=True)
class Weighted:
    """One source and its part in the whole; the shares of a mixture add up to 1."""

    name: str
    share: float
    source: Source
    licence: str


def open_sources(settings: Iterable[SourceSettings]) -> tuple[Weighted, ...]:
    """The sources as configured; `embedded` becomes two, code and English, with half of its share each."""
    several = tuple(settings)
    total = sum(one.share for one in several)
    opened: list[Weighted] = []
    for one in several:
        if one.location == "embedded":
            for kind in ("code", "english"):
                half = one.share / total / 2
                opened.append(Weighted(f"embedded {kind}", half, Embedded(kind), one.licence))
        else:
            opened.append(Weighted(one.location, one.share / total, _open(one), one.licence))
    return tuple(opened)


def _open(settings: SourceSettings) -> Source:
    location, kind, column = settings.location, settings.kind, settings.column
    if location.endswith(PARQUET):
        return Parquet(location, kind, column)
    if location.endswith(JSON_LINES):
        return JsonLines(location, kind, column)
    if location.startswith("hf://"):
        return Parquet(location, kind, column)  # what every data set on the hub is converted to
    if "://" not in location and Path(location).is_dir():
        names = [name for _, _, files in os.walk(location) for name in files]
        if any(name.endswith(PARQUET) for name in names):
            return Parquet(location, kind, column)
        if any(name.endswith(JSON_LINES) for name in names):
            return JsonLines(location, kind, column)
    if "://" in location:
        raise SourceError(f"{location} is of no format we read: name its .parquet or .jsonl files, a pattern will do")
    return Files(location)


def validation(document: Document, share: float) -> bool:
    """Whether a document is held out: as its source says, or by the hash of its text."""
    if document.held_out is not None:
        return document.held_out
    return document_hash(document.text) < share * 2**64


def document_hash(text: str) -> int:
    """64 bits of BLAKE2b: of a billion documents, 0.03 pairs are expected to collide."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def training_texts(mixture: Iterable[Weighted], megabytes: float, validation_share: float) -> Iterator[str]:
    """Texts to train a tokenizer on: from each source its share of so many MB, nothing held out."""
    for one in mixture:
        left = one.share * megabytes * 1e6
        for unit in one.source.units():
            if left <= 0:
                break
            for document in unit.read():
                if left <= 0:
                    break
                if validation(document, validation_share) or reason_to_drop(document.text, document.kind):
                    continue
                left -= len(document.text)
                yield document.text


def held_out_texts(mixture: Iterable[Weighted], kind: Kind, megabytes: float, validation_share: float) -> Iterator[str]:
    """Validation texts of one kind, up to so many MB: to measure compression on."""
    left = megabytes * 1e6
    for one in mixture:
        patience = PATIENCE * megabytes * 1e6
        for document in (document for unit in one.source.units() for document in unit.read()):
            if left <= 0 or patience <= 0:
                break
            patience -= len(document.text)
            wanted = document.kind == kind and validation(document, validation_share)
            if wanted and not reason_to_drop(document.text, document.kind):
                left -= len(document.text)
                yield document.text
