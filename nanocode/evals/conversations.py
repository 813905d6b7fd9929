"""How well a model predicts what the agent wrote in conversations it was not trained on."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from nanocode.data.shards import Rows
from nanocode.model.transformer import Transformer
from nanocode.text.tokenizer import Tokenizer
from nanocode.train import mesh as meshes
from nanocode.train.preference import make_log_probability
from nanocode.train.supervision import assistant_targets

BATCH_TOKENS = 16_384


class AssistantLoss:
    """Mean nats per token that the assistant wrote; every host makes the same calls."""

    def __init__(self, mesh: Mesh, model: Transformer, tokenizer: Tokenizer) -> None:
        self._mesh, self._bos = mesh, tokenizer.bos
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        self._batch_rows = max(1, BATCH_TOKENS // model.shape.context // ways) * ways
        weigh = assistant_targets(tokenizer.special)
        log_probability = make_log_probability(model, tokenizer.bos, weigh)

        def sums(weights: PyTree, rows: Int[Array, "B T1"]) -> tuple[Array, Array]:
            return -jnp.sum(log_probability(weights, rows)), jnp.sum(weigh(rows))

        self._sums = jax.jit(sums, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, weights: PyTree, rows: Rows, limit: int) -> float:
        """Over the first `limit` rows."""
        nats, tokens = 0.0, 0.0
        share = self._batch_rows // jax.process_count()
        first = jax.process_index() * share
        stop = min(len(rows), limit)
        for start in range(0, stop, self._batch_rows):
            batch = np.full((self._batch_rows, rows.index.context + 1), self._bos, np.int32)  # empty rows count nothing
            found = rows.rows(start, min(start + self._batch_rows, stop))
            batch[: len(found)] = found
            loss, count = jax.device_get(
                self._sums(weights, meshes.global_batch(self._mesh, batch[first : first + share]))
            )
            nats, tokens = nats + float(loss), tokens + float(count)
        return nats / max(tokens, 1.0)
