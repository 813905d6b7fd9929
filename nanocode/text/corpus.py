"""The corpus: documents of weighted sources, tokenized, de-duplicated, mixed and packed into shards of rows.

1. Every worker tokenizes its units (`nanocode.text.units`). 2. Who has share 0 plans (`nanocode.text.plan`): exact
duplicates go (the first one stays), and the sources are mixed by their shares. 3. Every worker packs its shards; who
finds that all are there writes `index.json`, last. What a worker does that is not there, others do until it comes
(`nanocode.run.leases`).

Every object is immutable, and its content depends on neither the number of workers nor on who was killed when.
Memory: a process holds the documents of a unit or of a shard (about 4M tokens), the planner also 40 bytes a document.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from nanocode.data.shards import INDEX, Index, Shard, SourceUse, dtype_for, index_bytes, read_index
from nanocode.run.leases import Leases
from nanocode.storage.objects import Store
from nanocode.text.mixture import Weighted
from nanocode.text.plan import SOURCES, is_planned, plan_shards, read_plan, rows_shard
from nanocode.text.units import Encoded, Run, counted, encode_source, loaded, processes, published

POLL_SECONDS = 1.0

Show = Callable[[str, float, float, str], None]


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
    leases: Leases | None = None,
    show: Show = lambda phase, done, total, unit: None,
) -> Index | None:
    """Build, or go on building, the corpus in a store of its own; None when others do what is missing.

    `workers` processes (0: one per core), `tokenizer` the content of its `tokenizer.json`. Raises `SourceError` for
    input that cannot be used, `SourceUnavailable` and `StorageError` for what is worth another try.
    """
    if store.exists(INDEX):
        return read_index(store)
    leases, width = leases or Leases(), workers or cores()
    leases.take_back()
    bos, vocab_size = loaded(tokenizer).bos, loaded(tokenizer).vocab_size

    def wait() -> None:
        show("waiting for other workers", 0, 1, "")
        time.sleep(POLL_SECONDS)

    with processes(width) as run:
        _plan(store, tokenizer, sources, tokens, context, validation_share, run, width, leases, show, wait)
        shards = range(len(read_plan(store).ends))

        def unpacked() -> list[int]:
            there = set(store.list("train-"))
            return [shard for shard in shards if _packed(shard) not in there]

        def pack_share(share: int) -> None:
            jobs = [(store, one, context, bos, vocab_size) for one in unpacked() if one % leases.of == share]
            for done, _ in enumerate(run(pack_shard, jobs), 1):
                show("packing", done, len(jobs), "shards")
                if share not in leases.held:  # its own worker has come
                    return

        if not leases.work_off(pack_share, lambda: {shard % leases.of for shard in unpacked()}, wait):
            return None
    valid, held_out = json.loads(store.read("valid.json")).values()
    index = Index(
        context=context,
        dtype=dtype_for(vocab_size),
        bos=bos,
        vocab_size=vocab_size,
        seed=seed,
        train=tuple(Shard.model_validate_json(store.read(_packed(shard))) for shard in shards),
        valid={kind: Shard.model_validate(shard) for kind, shard in valid.items()},
        sources=tuple(SourceUse.model_validate(one) for one in json.loads(store.read(SOURCES))),
        held_out=tuple(held_out),
    )
    store.write(INDEX, index_bytes(index))
    return index


def _plan(
    store: Store,
    tokenizer: bytes,
    sources: Sequence[Weighted],
    tokens: int,
    context: int,
    validation_share: float,
    run: Run,
    width: int,
    leases: Leases,
    show: Show,
    wait: Callable[[], None],
) -> None:
    """Tokenize our units, and those of workers that are not there, until there is a plan."""
    quotas = [round(one.share * tokens) for one in sources]
    changes = None
    ends: list[int | None] = []
    while not is_planned(store):
        if leases.changes != changes:  # a share that was lost and came back may lack units of the sources in between
            changes = leases.changes
            ends = [
                encode_source(
                    store, number, one, quota, tokenizer, validation_share, run, width, leases,
                    partial(_show_tokens, show, one.name, quota),
                )
                for number, (one, quota) in enumerate(zip(sources, quotas, strict=True))
            ]  # fmt: skip
        elif 0 in leases.held and (names := _units(store, quotas, ends)) is not None:
            plan_shards(store, sources, quotas, names, loaded(tokenizer), context)
        elif leases.take_over(range(leases.of)) is None:
            wait()


def _units(store: Store, quotas: Sequence[int], ends: Sequence[int | None]) -> list[list[str]] | None:
    """The names of the units that count, of each source; None while one of them is missing."""
    found = []
    for number, (quota, end) in enumerate(zip(quotas, ends, strict=True)):
        names = counted(published(store, number), quota, end)
        if names is None:
            return None
        found.append(names)
    return found


def cores() -> int:
    """How many this process may use; where the system does not say (a Mac), how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pack_shard(store: Store, number: int, context: int, bos: int, vocab_size: int) -> str:
    """Pack one shard of the plan and publish it: `train-<n>.bin`, then `.json`, which says it is whole."""
    plan = read_plan(store)
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
    store.write(_packed(number), shard.model_dump_json().encode())
    return _packed(number)


def _packed(number: int) -> str:
    """The object that says that a shard is whole."""
    return f"train-{number:05d}.json"


def _show_tokens(show: Show, name: str, quota: int, done: int) -> None:
    show(f"tokenizing {name}", done, quota, "tokens")


def validation_texts(store: Store, kind: str) -> list[str]:
    """The validation documents of a kind, exactly those of its rows."""
    return [json.loads(line) for line in store.read(f"valid-{kind}.jsonl").splitlines()]
