"""Row shards: `train-00000.bin` holds rows of T+1 tokens, little-endian uint16 or uint32, and nothing else.

`index.json`, written last, says how to read them: rows and sha256 of every shard, context, dtype, and the same for
`valid-code` and `valid-english`. What a row means is told by `nanocode.data.packing`.

The order of training is a pure function: epoch e visits the shards in the order of rng(seed, e), and the rows of a
shard in the order of rng(seed, e, shard); global batch k is rows k*B..(k+1)*B of that endless order, and host h of H
reads its contiguous slice of it. So the batches of a run do not depend on the number of hosts.
"""

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from nanocode.config.refusals import requirement
from nanocode.run.exits import ConfigurationError
from nanocode.storage.objects import LocalStore, NotFound, Store

INDEX = "index.json"
VALIDATION = "valid-"
"""How the names of all begin that training does not read."""
Tokens = npt.NDArray[np.unsignedinteger]


class Shard(BaseModel):
    """One file of rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    rows: int
    sha256: str
    documents: int
    tokens: int
    """Tokens of documents: BOS is not among them."""
    bytes: int
    """UTF-8 bytes of the documents, whose share of the loss gives bits per byte."""
    waste: float = 0.0
    """Share of the slots that are padding."""


class SourceUse(BaseModel):
    """What a source gave to the training shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    licence: str
    share: float
    wanted_tokens: int
    tokens: int
    documents: int
    bytes: int
    units: int
    duplicates: int
    dropped: dict[str, int]
    """Documents that a filter dropped, by reason."""


class Index(BaseModel):
    """`index.json`: whoever reads it knows that the corpus is complete."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    context: int
    dtype: Literal["uint16", "uint32"]
    bos: int
    vocab_size: int
    seed: int
    train: tuple[Shard, ...]
    valid: dict[str, Shard]
    """By kind: `code`, `english`."""
    sources: tuple[SourceUse, ...]
    held_out: tuple[str, ...] = ()
    """Packages that no training row has anything of."""

    @property
    def waste(self) -> float:
        """Share of the training slots that are padding."""
        return sum(shard.waste * shard.rows for shard in self.train) / max(self.rows, 1)

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return sum(shard.rows for shard in self.train)

    @property
    def tokens(self) -> int:
        """Document tokens of an epoch."""
        return sum(shard.tokens for shard in self.train)


def dtype_for(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The smaller of the two types that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def write_rows(
    store: Store, name: str, rows: Tokens, dtype: str, *, documents: int, tokens: int, size: int, waste: float = 0.0
) -> Shard:
    """Publish rows as `name`, and say what `index.json` has to say of them; `size` is the documents' bytes."""
    data = rows.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    store.write(name, data)
    digest = hashlib.sha256(data).hexdigest()
    return Shard(name=name, rows=len(rows), sha256=digest, documents=documents, tokens=tokens, bytes=size, waste=waste)


def read_index(store: Store) -> Index:
    """The index; `ConfigurationError` naming the corpus if it is absent, damaged or of another format."""
    where = f"{store.url}/{INDEX}"
    try:
        return Index.model_validate_json(store.read(INDEX))
    except NotFound:
        raise ConfigurationError(
            f"no corpus at {store.url}: {INDEX} is not there, so run the corpus stage first"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigurationError(
            f"{where} is damaged ({place} {requirement(first)}): run the corpus stage again"
        ) from None


class Rows:
    """The rows of a finished corpus, `split` being `train`, `valid-code` or `valid-english`.

    Local files are memory-mapped. Others are downloaded to `cache` when first needed, whole, under their content's
    hash, and checked. Memory held: the permutations of a few shards, 8 bytes a row.
    """

    def __init__(self, store: Store, split: str = "train", cache: Path | None = None) -> None:
        self.index = read_index(store)
        self._store = store
        self._cache = cache or Path.home() / ".cache" / "nanocode" / "shards"
        if split == "train":
            self.shards = self.index.train
        elif (kind := split.removeprefix(VALIDATION)) in self.index.valid:
            self.shards = (self.index.valid[kind],)
        else:
            known = ["train", *(f"{VALIDATION}{kind}" for kind in self.index.valid)]
            raise ConfigurationError(f"the corpus at {store.url} has no split {split!r}: it has {', '.join(known)}")
        self.bytes = sum(shard.bytes for shard in self.shards)
        self._ends = np.cumsum([shard.rows for shard in self.shards])
        if not len(self):
            raise ConfigurationError(f"the corpus at {store.url} has no rows in {split!r}: give it more text")
        self._map = lru_cache(maxsize=None)(self._open)
        self._order = lru_cache(maxsize=8)(order_of_shards)
        self._permutation = lru_cache(maxsize=8)(order_of_rows)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def batch(self, step: int, batch_rows: int, seed: int, host: int = 0, hosts: int = 1) -> npt.NDArray[np.int32]:
        """This host's [batch_rows / hosts, T+1] of global batch `step`; `ValueError` if hosts do not divide it."""
        if batch_rows % hosts or not 0 <= host < hosts:
            raise ValueError(f"batch_rows {batch_rows} cannot be split for host {host} of {hosts}: take a multiple")
        share = batch_rows // hosts
        first = step * batch_rows + host * share
        out = np.empty((share, self.index.context + 1), np.int32)
        done = 0
        while done < share:
            epoch, offset = divmod(first + done, len(self))
            order, ends = self._order(self._counts, seed, epoch)
            place = int(np.searchsorted(ends, offset, side="right"))
            shard = int(order[place])
            rows = self.shards[shard].rows
            begin = offset - (int(ends[place]) - rows)
            chosen = self._permutation(rows, seed, epoch, shard)[begin : begin + share - done]
            out[done : done + len(chosen)] = self._map(shard)[chosen]
            done += len(chosen)
        return out

    def rows(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """Rows in stored order, [stop - start, T+1], fewer at the end: for evaluation."""
        parts = []
        for shard, end in enumerate(self._ends.tolist()):
            begin = end - self.shards[shard].rows
            low, high = max(start, begin), min(stop, end)
            if low < high:
                parts.append(self._map(shard)[low - begin : high - begin].astype(np.int32))
        return np.concatenate(parts) if parts else np.empty((0, self.index.context + 1), np.int32)

    @property
    def _counts(self) -> tuple[int, ...]:
        return tuple(shard.rows for shard in self.shards)

    def _open(self, number: int) -> Tokens:
        """Map a shard; `ConfigurationError` if its size is not what the index says."""
        shard = self.shards[number]
        path = self._local(shard)
        shape = (shard.rows, self.index.context + 1)
        dtype = np.dtype(self.index.dtype).newbyteorder("<")
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ConfigurationError(f"cannot read {path} ({error.strerror}): run the corpus stage again") from error
        if size != shape[0] * shape[1] * dtype.itemsize:
            expected = shape[0] * shape[1] * dtype.itemsize
            raise ConfigurationError(
                f"{path} has {size} bytes, not {expected}: it is damaged, run the corpus stage again"
            )
        if not shard.rows:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", shape=shape)

    def _local(self, shard: Shard) -> Path:
        if isinstance(self._store, LocalStore):
            return self._store.root / shard.name
        path = self._cache / f"{shard.sha256}.bin"
        if not path.exists():
            self._store.download(shard.name, path)
            if file_sha256(path) != shard.sha256:
                os.unlink(path)
                where = f"{self._store.url}/{shard.name}"
                raise ConfigurationError(f"{where} is not what its index says: run the corpus stage again")
        return path


def order_of_shards(
    counts: tuple[int, ...], seed: int, epoch: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The shards as epoch `epoch` visits them, and the number of rows after each."""
    order = np.random.default_rng((seed, epoch)).permutation(len(counts))
    return order, np.cumsum(np.asarray(counts, np.int64)[order])


def order_of_rows(rows: int, seed: int, epoch: int, shard: int) -> npt.NDArray[np.int64]:
    """The rows of a shard as epoch `epoch` visits them."""
    return np.random.default_rng((seed, epoch, shard)).permutation(rows)


def file_sha256(path: Path) -> str:
    """Hash of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def index_bytes(index: Index) -> bytes:
    """The content of `index.json`: the same index always gives the same bytes."""
    content: dict[str, Any] = index.model_dump(mode="json")
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
