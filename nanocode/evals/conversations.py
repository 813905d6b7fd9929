"""How well a model predicts what the agent wrote in conversations it was not trained on."""

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from nanocode.data.shards import Rows
from nanocode.evals.totals import Totals
from nanocode.model.transformer import Transformer
from nanocode.text.tokenizer import Tokenizer
from nanocode.train.preference import make_log_probability
from nanocode.train.supervision import assistant_targets


class AssistantLoss:
    """Mean nats per token that the assistant wrote; every host makes the same calls."""

    def __init__(self, mesh: Mesh, model: Transformer, tokenizer: Tokenizer) -> None:
        weigh = assistant_targets(tokenizer.special)
        log_probability = make_log_probability(model, tokenizer.bos, weigh)

        def sums(weights: PyTree, rows: Int[Array, "B T1"]) -> tuple[Array, Array]:
            return -jnp.sum(log_probability(weights, rows)), jnp.sum(weigh(rows))

        self._totals = Totals(mesh, model.shape.context, tokenizer.bos, sums)

    def __call__(self, weights: PyTree, rows: Rows, limit: int) -> float:
        """Over the first `limit` rows."""
        nats, tokens = self._totals(weights, rows, limit)
        return nats / max(tokens, 1.0)
