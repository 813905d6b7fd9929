"""The plan of a corpus: which documents make which shard, and which are held out for validation.

valid-<kind>.bin, valid-<kind>.jsonl, valid.json     the validation documents, as rows and as text
sources.json                                         what each source gave
plan.npz                                             the training documents, shard after shard; written last
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import structlog

from nanocode.data.packing import pack, waste
from nanocode.data.shards import Shard, SourceUse, dtype_for, write_rows
from nanocode.storage.objects import Store
from nanocode.text.mixture import Weighted
from nanocode.text.sources import SourceError
from nanocode.text.tokenizer import Tokenizer
from nanocode.text.units import Encoded

log = structlog.get_logger()

PLAN, SOURCES = "plan.npz", "sources.json"
SHARD_TOKENS = 4_000_000
# A small corpus is cut too, so that several processes have something to do.
FEWEST_SHARDS = 8
VALIDATION_BYTES = 2_000_000


@dataclass
class Plan:
    """Training documents in the order of the shards: entry i is document `position[i]` of unit `unit[i]`."""

    unit: npt.NDArray[np.int32]
    """Into `units`."""
    position: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]
    """Where each shard ends."""
    units: list[str]

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        names = np.frombuffer(json.dumps(self.units).encode(), np.uint8)
        np.savez(buffer, unit=self.unit, position=self.position, ends=self.ends, units=names)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Plan":
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            names = json.loads(found["units"].tobytes())
            return cls(found["unit"], found["position"], found["ends"], names)


def plan_shards(
    store: Store,
    sources: Sequence[Weighted],
    quotas: Sequence[int],
    names: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
    context: int,
) -> None:
    """Publish validation shards, what each source gives, and the plan, which comes last.

    `names`: of each source, the units that count, in order.
    """
    seen: set[int] = set()
    units: list[str] = []
    order: list[npt.NDArray[np.float64]] = []
    unit_of: list[npt.NDArray[np.int32]] = []
    position: list[npt.NDArray[np.int32]] = []
    lengths: list[npt.NDArray[np.int64]] = []
    uses: list[SourceUse] = []
    validation = Validation(tokenizer)
    for one, quota, its_names in zip(sources, quotas, names, strict=True):
        use = {"tokens": 0, "documents": 0, "bytes": 0, "duplicates": 0}
        dropped: dict[str, int] = {}
        offered = 0
        first = len(lengths)
        for name in its_names:
            encoded = Encoded.from_bytes(store.read(name))
            fresh = first_of_kind(encoded.hashes, seen)
            use["duplicates"] += int((~fresh).sum())
            for reason, count in encoded.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
            validation.add(encoded, fresh & encoded.valid)
            offered += int(encoded.lengths[~encoded.valid].sum())
            usable = fresh & ~encoded.valid & (encoded.lengths > 0)
            before = np.cumsum(encoded.lengths * usable) - encoded.lengths * usable
            chosen = np.flatnonzero(usable & (use["tokens"] + before < quota))
            unit_of.append(np.full(len(chosen), len(units), np.int32))
            position.append(chosen.astype(np.int32))
            lengths.append(encoded.lengths[chosen])
            units.append(name)
            use["tokens"] += int(encoded.lengths[chosen].sum())
            use["documents"] += len(chosen)
            use["bytes"] += int(encoded.sizes[chosen].sum())
        if not use["documents"]:
            raise SourceError(f"source {one.name} has no document to train on{_why_none(use['duplicates'], dropped)}")
        if offered < quota:  # units are counted with their duplicates: fewer means that there are no more
            log.warning("source has less than its share", source=one.name, tokens=use["tokens"], wanted=quota)
        # Where a document begins within its source, as a share of it: sorting by it spreads every source evenly.
        own = np.concatenate(lengths[first:])
        order.append((np.cumsum(own) - own) / max(use["tokens"], 1))
        uses.append(
            SourceUse(name=one.name, licence=one.licence, share=one.share, wanted_tokens=quota,
                      units=len(its_names), dropped=dropped, **use)
        )  # fmt: skip
    validation.publish(store, context)
    mixed = np.argsort(np.concatenate(order), kind="stable")
    total = np.cumsum(np.concatenate(lengths)[mixed])
    size = max(1, min(SHARD_TOKENS, -(-int(total[-1]) // FEWEST_SHARDS)))
    shard_ends = np.unique(np.searchsorted(total, np.arange(size, int(total[-1]) + size, size), side="left") + 1)
    shard_ends = np.minimum(shard_ends, len(total))
    plan = Plan(np.concatenate(unit_of)[mixed], np.concatenate(position)[mixed], np.unique(shard_ends), units)
    store.write(SOURCES, json.dumps([use.model_dump(mode="json") for use in uses]).encode())
    store.write(PLAN, plan.to_bytes())


def is_planned(store: Store) -> bool:
    return store.exists(PLAN) and store.exists(SOURCES)


def read_plan(store: Store) -> Plan:
    return Plan.from_bytes(store.read(PLAN))


def _why_none(duplicates: int, dropped: dict[str, int]) -> str:
    """What became of a source's documents, the most frequent first, and the next move."""
    reasons = {**dropped, "duplicate": duplicates}
    told = [f"{reason}: {count}" for reason, count in sorted(reasons.items(), key=lambda one: -one[1]) if count]
    if not told:
        return ", nothing was dropped: it has none, or all are held out for validation; check its path and column"
    return f"; dropped were {', '.join(told)} (see nanocode/text/filters.py): check its path and column"


def first_of_kind(hashes: npt.NDArray[np.uint64], seen: set[int]) -> npt.NDArray[np.bool_]:
    """Which of the hashes were not seen before; from now on they are."""
    fresh = np.zeros(len(hashes), np.bool_)
    for place, one in enumerate(hashes.tolist()):
        fresh[place] = one not in seen
        seen.add(one)
    return fresh


class Validation:
    """The validation documents, by kind, up to 2 MB each: enough to measure on, quick to evaluate."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._documents: dict[str, list[npt.NDArray[np.unsignedinteger]]] = {"code": [], "english": []}
        self._bytes = {"code": 0, "english": 0}
        self._held_out: set[str] = set()

    def add(self, encoded: Encoded, chosen: npt.NDArray[np.bool_]) -> None:
        self._held_out.update(encoded.held_out)
        documents = encoded.documents() if chosen.any() else []
        for number in np.flatnonzero(chosen).tolist():
            kind = "code" if encoded.code[number] else "english"
            if self._bytes[kind] < VALIDATION_BYTES and len(documents[number]):
                self._documents[kind].append(documents[number])
                self._bytes[kind] += int(encoded.sizes[number])

    def publish(self, store: Store, context: int) -> None:
        """`valid-<kind>.bin`, the texts in `valid-<kind>.jsonl`, and `valid.json`, last."""
        shards = {}
        tokenizer = self._tokenizer
        for kind, documents in self._documents.items():
            if not documents:
                continue
            lines = [json.dumps(tokenizer.decode(ids, "surrogateescape")) + "\n" for ids in documents]
            store.write(f"valid-{kind}.jsonl", "".join(lines).encode())
            shard = rows_shard(
                store, f"valid-{kind}.bin", documents, self._bytes[kind], context, tokenizer.bos, tokenizer.vocab_size
            )
            shards[kind] = shard.model_dump(mode="json")
        if not shards:
            raise SourceError(
                "no document was held out for validation: raise corpus.validation_share or give more text"
            )
        store.write("valid.json", json.dumps({"valid": shards, "held_out": sorted(self._held_out)}).encode())


def rows_shard(
    store: Store,
    name: str,
    documents: Sequence[npt.NDArray[np.unsignedinteger]],
    size: int,
    context: int,
    bos: int,
    vocab_size: int,
) -> Shard:
    """Pack documents of `size` bytes into rows and publish them."""
    rows = np.stack(list(pack(documents, context, bos)))
    tokens = sum(map(len, documents))
    return write_rows(
        store, name, rows, dtype_for(vocab_size),
        documents=len(documents), tokens=tokens, size=size, waste=waste(rows, bos),
    )  # fmt: skip
