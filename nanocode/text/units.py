"""Tokenized units: the first phase of a corpus, each unit one immutable object.

    units/<source>/<unit>.<training tokens>.npz     arrays without pickle; the name tells every worker what it adds

Unit u is of share u mod n. A unit counts when the units before it do not fill the source's quota yet, which does
not depend on who made which: so any number of workers makes the same corpus.
"""

import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from multiprocessing import get_context, parent_process

import numpy as np
import numpy.typing as npt

from nanocode.data.shards import dtype_for
from nanocode.run.exits import Exit
from nanocode.run.leases import Leases
from nanocode.storage.objects import Store
from nanocode.text.filters import reason_to_drop
from nanocode.text.mixture import Weighted, document_hash, validation
from nanocode.text.sources import Unit
from nanocode.text.tokenizer import Tokenizer

# Documents that are encoded at once: enough to amortise the call, little to hold.
BATCH_DOCUMENTS = 64
Run = Callable[[Callable[..., str], list[tuple]], Iterable[str]]


@dataclass
class Encoded:
    """The documents of a unit that passed the filters, one array entry each."""

    tokens: npt.NDArray[np.unsignedinteger]
    """Of all documents, one after the other."""
    lengths: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    """UTF-8 bytes."""
    hashes: npt.NDArray[np.uint64]
    valid: npt.NDArray[np.bool_]
    code: npt.NDArray[np.bool_]
    dropped: dict[str, int]
    held_out: list[str]

    def documents(self) -> list[npt.NDArray[np.unsignedinteger]]:
        return np.split(self.tokens, np.cumsum(self.lengths)[:-1])

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        info = json.dumps({"dropped": self.dropped, "held_out": self.held_out}, sort_keys=True).encode()
        arrays = {name: getattr(self, name) for name in ("tokens", "lengths", "sizes", "hashes", "valid", "code")}
        np.savez(buffer, info=np.frombuffer(info, np.uint8), **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Encoded":
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            info = json.loads(found["info"].tobytes())
            return cls(**{name: found[name] for name in found.files if name != "info"}, **info)


def encode_unit(store: Store, source: int, number: int, unit: Unit, tokenizer: bytes, validation_share: float) -> str:
    """Tokenize a unit and publish it; the name it got."""
    encoded = encode(unit, loaded(tokenizer), validation_share)
    count = int(encoded.lengths[~encoded.valid].sum())
    name = f"units/{source}/{number:07d}.{count}.npz"
    store.write(name, encoded.to_bytes())
    return name


def encode(unit: Unit, tokenizer: Tokenizer, validation_share: float) -> Encoded:
    """The unit's documents that pass the filters, in order. Memory: a batch of texts and the unit's tokens."""
    dropped: dict[str, int] = {}
    held_out: set[str] = set()
    rows: list[tuple[int, int, int, bool, bool]] = []
    parts: list[npt.NDArray[np.unsignedinteger]] = []
    dtype = np.dtype(dtype_for(tokenizer.vocab_size))
    documents = iter(unit.read())
    while batch := list(islice(documents, BATCH_DOCUMENTS)):
        reasons = [reason_to_drop(document.text, document.kind) for document in batch]
        for reason in filter(None, reasons):
            dropped[reason] = dropped.get(reason, 0) + 1
        kept = [document for document, reason in zip(batch, reasons, strict=True) if reason is None]
        for document, ids in zip(kept, tokenizer.encode_batch([one.text for one in kept]), strict=True):
            valid = validation(document, validation_share)
            size = len(document.text.encode("utf-8", "surrogatepass"))
            rows.append((len(ids), size, document_hash(document.text), valid, document.kind == "code"))
            parts.append(np.array(ids, dtype))
            if document.held_out and document.package:
                held_out.add(document.package)
    lengths, sizes, hashes, are_valid, are_code = zip(*rows, strict=True) if rows else ((),) * 5
    return Encoded(
        np.concatenate(parts) if parts else np.empty(0, dtype),
        np.array(lengths, np.int64),
        np.array(sizes, np.int64),
        np.array(hashes, np.uint64),
        np.array(are_valid, bool),
        np.array(are_code, bool),
        dict(sorted(dropped.items())),
        sorted(held_out),
    )


@cache
def loaded(tokenizer: bytes) -> Tokenizer:
    """One per process; its own threads would fight with the other processes for the cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return Tokenizer.from_bytes(tokenizer)


def published(store: Store, source: int) -> dict[int, tuple[str, int]]:
    """Unit number -> name and training tokens, of all workers' units so far."""
    found = {}
    for child in store.children(f"units/{source}"):
        number, count, _ = child.split(".")
        found[int(number)] = (f"units/{source}/{child}", int(count))
    return found


def counted(there: Mapping[int, tuple[str, int]], quota: int, last: int | None) -> list[str] | None:
    """Names of the units that count, in order; None while one of them is missing.

    `last` is how many units the source has, when its end was seen.
    """
    names: list[str] = []
    tokens = 0
    while tokens < quota and len(names) != last:
        if len(names) not in there:
            return None
        name, count = there[len(names)]
        names.append(name)
        tokens += count
    return names


def encode_source(
    store: Store,
    source: int,
    weighted: Weighted,
    quota: int,
    tokenizer: bytes,
    validation_share: float,
    run: Run,
    width: int,
    leases: Leases,
    show: Callable[[int], None],
) -> int | None:
    """Publish the units of our shares of one source until its quota is full; how many it has if the end was seen.

    Takes over, as it goes, the shares of workers that are not there: the further the others are, the less we do beyond
    what the quota needs.
    """
    changes = None
    while True:
        if leases.changes != changes:  # of a share that was taken over, the first units are missing too
            changes, held = leases.changes, leases.held
            units, seen = enumerate(weighted.source.units()), 0
        if not held:  # to walk on to where the source ends, with nothing to do, may take thousands of requests
            return None
        # Of the units ahead, `width` of our own: what all processes do in one go.
        ahead = list(islice(units, width * leases.of))
        seen += len(ahead)
        there = published(store, source)
        mine = []
        for number, unit in ahead:
            before = sum(count for other, (_, count) in there.items() if other < number)
            if before < quota and number not in there and number % leases.of in held:
                mine.append((store, source, number, unit, tokenizer, validation_share))
        for _ in run(encode_unit, mine):
            pass
        there = published(store, source)
        total = sum(count for _, count in there.values())
        show(min(total, quota))
        if len(ahead) < width * leases.of:
            return seen
        if sum(count for number, (_, count) in there.items() if number < seen) >= quota:
            return None
        leases.take_over(range(leases.of))


@contextmanager
def processes(workers: int) -> Iterator[Run]:
    """How to run tasks: in this process for one worker, else in a pool. Results come in the order of the tasks."""
    if workers == 1:
        yield lambda function, tasks: (function(*task) for task in tasks)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_live_no_longer_than_parent) as pool:
        yield lambda function, tasks: pool.map(function, *zip(*tasks, strict=True)) if tasks else ()


def _live_no_longer_than_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it: a pool's process would wait for tasks for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(Exit.PREEMPTED)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()
