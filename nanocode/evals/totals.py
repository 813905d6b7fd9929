"""Two sums over stored rows, in batches of one shape: what a mean over a corpus is made of."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from nanocode.data.shards import Rows
from nanocode.train import mesh as meshes

BATCH_TOKENS = 16_384

Sums = Callable[[PyTree, Int[Array, "B T1"]], tuple[Array, Array]]
"""From weights and a batch of rows to the two sums; rows of nothing but BOS have to count nothing."""


class Totals:
    """Compiled once; every host makes the same calls, and each has its share of every batch."""

    def __init__(self, mesh: Mesh, context: int, bos: int, sums: Sums) -> None:
        self._mesh, self._bos = mesh, bos
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        self._batch_rows = max(1, BATCH_TOKENS // context // ways) * ways
        self._sums = jax.jit(sums, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, weights: PyTree, rows: Rows, limit: int | None = None) -> tuple[float, float]:
        """Over the first `limit` rows."""
        one, other = 0.0, 0.0
        stop = min(len(rows), limit or len(rows))
        share = self._batch_rows // jax.process_count()
        first = jax.process_index() * share
        for start in range(0, stop, self._batch_rows):
            batch = np.full((self._batch_rows, rows.index.context + 1), self._bos, np.int32)
            found = rows.rows(start, min(start + self._batch_rows, stop))
            batch[: len(found)] = found
            mine = meshes.global_batch(self._mesh, batch[first : first + share])
            more_one, more_other = jax.device_get(self._sums(weights, mine))
            one, other = one + float(more_one), other + float(more_other)
        return one, other
