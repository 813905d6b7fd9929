"""The corpus: documents of weighted sources, tokenized, de-duplicated, mixed and packed into shards of rows.

1. Every worker tokenizes its units (`nanocode.text.units`). 2. Worker 0 plans: exact duplicates go (the first one
stays), the sources are mixed by share, and `plan.npz` says which documents make which shard. 3. Every worker packs
its shards; worker 0 packs the validation text and writes `index.json`, last.

Every object is immutable, and its content depends on neither the number of workers nor on who was killed when.
Memory: a process holds the documents of a unit or of a shard (about 4M tokens), worker 0 also 40 bytes a document.
"""

import io
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import structlog

from nanocode.data.packing import pack, waste
from nanocode.data.shards import INDEX, Index, Shard, SourceUse, dtype_for, index_bytes, read_index, write_rows
from nanocode.storage.objects import Store
from nanocode.text.mixture import Weighted
from nanocode.text.sources import SourceError
from nanocode.text.tokenizer import Tokenizer
from nanocode.text.units import Encoded, counted, encode_source, loaded, processes, published

log = structlog.get_logger()

SHARD_TOKENS = 4_000_000
# A small corpus is cut too, so that several processes have something to do.
FEWEST_SHARDS = 8
VALIDATION_BYTES = 2_000_000
POLL_SECONDS = 1.0

Show = Callable[[str, float, float, str], None]


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


def build(
    store: Store,
    tokenizer: bytes,
    sources: Sequence[Weighted],
    *,
    tokens: int,
    context: int,
    seed: int,
    validation_share: float,
    workers: int = 0,
    worker: int = 0,
    of: int = 1,
    show: Show = lambda phase, done, total, unit: None,
) -> Index | None:
    """Build, or go on building, the corpus in a store of its own; None for a worker other than 0, whose part is out.

    `workers` processes (0: one per core), `tokenizer` the content of its `tokenizer.json`. Raises `SourceError` for
    input that cannot be used, `SourceUnavailable` and `StorageError` for what is worth another try.
    """
    if store.exists(INDEX):
        return read_index(store)
    width = workers or len(os.sched_getaffinity(0))
    with processes(width) as run:
        quotas = [round(one.share * tokens) for one in sources]
        ends = []
        for number, (one, quota) in enumerate(zip(sources, quotas, strict=True)):
            ends.append(
                encode_source(
                    store, number, one, quota, tokenizer, validation_share, run, width, worker, of,
                    partial(_show_tokens, show, one.name, quota),
                )
            )  # fmt: skip
        uses: list[SourceUse] = []
        if worker == 0:
            uses = plan_shards(store, sources, quotas, ends, loaded(tokenizer), context)
        elif not _wait_for(lambda: store.exists("plan.npz"), show):
            return None
        plan = Plan.from_bytes(store.read("plan.npz"))
        mine = [shard for shard in range(len(plan.ends)) if shard % of == worker]
        todo = [shard for shard in mine if not store.exists(f"train-{shard:05d}.json")]
        bos, vocab_size = loaded(tokenizer).bos, loaded(tokenizer).vocab_size
        jobs = [(store, shard, context, bos, vocab_size) for shard in todo]
        for done, _ in enumerate(run(pack_shard, jobs), len(mine) - len(todo) + 1):
            show("packing", done, len(mine), "shards")
    if worker != 0:
        return None
    names = [f"train-{shard:05d}.json" for shard in range(len(plan.ends))]
    _wait_for(lambda: all(store.exists(name) for name in names), show)
    train = tuple(Shard.model_validate_json(store.read(name)) for name in names)
    valid, held_out = json.loads(store.read("valid.json")).values()
    index = Index(
        context=context,
        dtype=dtype_for(vocab_size),
        bos=bos,
        vocab_size=vocab_size,
        seed=seed,
        train=train,
        valid={kind: Shard.model_validate(shard) for kind, shard in valid.items()},
        sources=tuple(uses),
        held_out=tuple(held_out),
    )
    store.create(INDEX, index_bytes(index))
    return index


def plan_shards(
    store: Store,
    sources: Sequence[Weighted],
    quotas: Sequence[int],
    ends: Sequence[int | None],
    tokenizer: Tokenizer,
    context: int,
) -> list[SourceUse]:
    """Publish validation shards and `plan.npz`, which comes last; what each source gives."""
    names = [
        wait_for_units(store, number, quota, end) for number, (quota, end) in enumerate(zip(quotas, ends, strict=True))
    ]
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
        first = len(lengths)
        for name in its_names:
            encoded = Encoded.from_bytes(store.read(name))
            fresh = first_of_kind(encoded.hashes, seen)
            use["duplicates"] += int((~fresh).sum())
            for reason, count in encoded.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
            validation.add(encoded, fresh & encoded.valid)
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
        if use["tokens"] < quota and ends:
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
    store.write("plan.npz", plan.to_bytes())
    return uses


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


def pack_shard(store: Store, number: int, context: int, bos: int, vocab_size: int) -> str:
    """Pack one shard of the plan and publish it: `train-<n>.bin`, then `.json`, which says it is whole."""
    plan = Plan.from_bytes(store.read("plan.npz"))
    begin, end = int(plan.ends[number - 1]) if number else 0, int(plan.ends[number])
    unit_of, position = plan.unit[begin:end], plan.position[begin:end]
    documents: list[npt.NDArray[np.unsignedinteger]] = [np.empty(0, np.uint16)] * len(unit_of)
    size = 0
    for unit in np.unique(unit_of).tolist():
        encoded = Encoded.from_bytes(store.read(plan.units[unit]))
        its = encoded.documents()
        for place in np.flatnonzero(unit_of == unit).tolist():
            documents[place] = its[position[place]]
            size += int(encoded.sizes[position[place]])
    shard = rows_shard(store, f"train-{number:05d}.bin", documents, size, context, bos, vocab_size)
    name = f"train-{number:05d}.json"
    store.write(name, shard.model_dump_json().encode())
    return name


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


def wait_for_units(store: Store, source: int, quota: int, end: int | None) -> list[str]:
    """The names of the units that count, once all workers have published theirs."""
    while (names := counted(published(store, source), quota, end)) is None:
        time.sleep(POLL_SECONDS)
    return names


def _show_tokens(show: Show, name: str, quota: int, done: int) -> None:
    show(f"tokenizing {name}", done, quota, "tokens")


def _wait_for(ready: Callable[[], bool], show: Show) -> bool:
    while not ready():
        show("waiting for other workers", 0, 1, "")
        time.sleep(POLL_SECONDS)
    return True


def validation_texts(store: Store, kind: str) -> list[str]:
    """The validation documents of a kind, exactly those of its rows."""
    return [json.loads(line) for line in store.read(f"valid-{kind}.jsonl").splitlines()]
