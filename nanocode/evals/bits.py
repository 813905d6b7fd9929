"""Bits per byte on packed rows: the loss in a unit that does not depend on the tokenizer."""

import lzma
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from nanocode.data.shards import Rows
from nanocode.evals.totals import Totals
from nanocode.model.transformer import Transformer
from nanocode.text.tokenizer import Tokenizer
from nanocode.train.loss import bits_per_byte
from nanocode.train.step import make_score


class BitsPerByte:
    """Measures a model on rows of one context, compiled once; every host makes the same calls."""

    def __init__(self, mesh: Mesh, model: Transformer, tokenizer: Tokenizer) -> None:
        sizes = np.zeros(model.shape.vocab_size, np.int32)
        sizes[: tokenizer.vocab_size] = [len(one) for one in tokenizer.bytes_of]
        score = make_score(model, tokenizer.bos)

        def sums(weights: PyTree, rows: Int[Array, "B T1"]) -> tuple[Array, Array]:
            losses, counts, _ = score(weights, rows)
            return jnp.sum(losses * counts), jnp.sum(jnp.asarray(sizes)[rows[:, 1:]] * (counts > 0))

        self._totals = Totals(mesh, model.shape.context, tokenizer.bos, sums)

    def __call__(self, weights: PyTree, rows: Rows, limit: int | None = None) -> float:
        """Over the first `limit` rows; bytes are those of the tokens that were predicted."""
        nats, size = self._totals(weights, rows, limit)
        return bits_per_byte(nats, int(size))


def xz_bits_per_byte(texts: Iterable[str]) -> float:
    """What `xz -9e` makes of the same documents, each compressed on its own: a reference anyone can repeat."""
    compressed = size = 0
    for text in texts:
        data = text.encode("utf-8", "surrogateescape")
        compressed += len(lzma.compress(data, lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME))
        size += len(data)
    if not size:
        raise ValueError("no text to compress: give validation documents")
    return 8 * compressed / size
