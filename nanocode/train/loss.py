"""Next-token cross-entropy that never holds the logits of a whole batch.

Chunk by chunk of token rows the forward computes logits, loss and both gradients, so that nothing is recomputed in
the backward: 3 matmuls of the head instead of 4, and V·chunk floats of logits instead of V·N.

Axes: N tokens, D width, V vocabulary, C tokens of a chunk.
"""

from functools import partial
from math import log
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class LossSums(NamedTuple):
    """Divide the first by the second, after summing both over hosts and accumulation steps."""

    loss: Float[Array, ""]
    weight: Float[Array, ""]


class _Saved(NamedTuple):
    d_hidden: Float[Array, "N D"]
    d_head: Float[Array, "D V"]
    losses: Float[Array, " N"]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def next_token_loss(
    hidden: Float[Array, "N D"],
    head: Float[Array, "D V"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    softcap: float = 15.0,
    chunk: int = 1024,
) -> LossSums:
    """Weighted sum of the tokens' losses in nats, and the sum of weights. Weight 0 masks a token."""
    return _forward(hidden, head, targets, weights, softcap, chunk)[0]


def _forward(
    hidden: Float[Array, "N D"],
    head: Float[Array, "D V"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    softcap: float,
    chunk: int,
) -> tuple[LossSums, _Saved]:
    count = hidden.shape[0]
    chunk = min(chunk, count)
    padding = -count % chunk  # padded rows have weight 0

    def chunked(x: Array) -> Array:
        return jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, chunk, *x.shape[1:])

    narrow = head.astype(hidden.dtype)
    matmul = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def step(
        d_head: Float[Array, "D V"], rows: tuple[Array, Array, Array]
    ) -> tuple[Float[Array, "D V"], tuple[Float[Array, "C D"], Float[Array, " C"]]]:
        x, target, weight = rows
        squashed = jnp.tanh(matmul("cd,dv->cv", x, narrow) / softcap)
        logits = softcap * squashed
        total = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
        is_target = jnp.arange(logits.shape[1])[None, :] == target[:, None]
        error = jnp.exp(logits - total[:, None]) - is_target.astype(jnp.float32)
        # d tanh: the softcap's slope is 1 - tanh².
        d_logits = (weight[:, None] * error * (1 - jnp.square(squashed))).astype(x.dtype)
        d_head = d_head + matmul("cd,cv->dv", x, d_logits)
        return d_head, (matmul("cv,dv->cd", d_logits, narrow).astype(x.dtype), total - picked)

    d_head, (d_hidden, losses) = jax.lax.scan(
        step,
        jnp.zeros(head.shape, jnp.float32),
        (chunked(hidden), chunked(targets), chunked(weights.astype(jnp.float32))),
    )
    losses = losses.reshape(-1)[:count]
    sums = LossSums(jnp.sum(losses * weights.astype(jnp.float32)), jnp.sum(weights.astype(jnp.float32)))
    return sums, _Saved(d_hidden.reshape(-1, hidden.shape[1])[:count], d_head.astype(head.dtype), losses)


def _backward(
    softcap: float, chunk: int, saved: _Saved, cotangent: LossSums
) -> tuple[Float[Array, "N D"], Float[Array, "D V"], None, Float[Array, " N"]]:
    scale = cotangent.loss
    d_weights = scale * saved.losses + cotangent.weight
    return (
        saved.d_hidden * scale.astype(saved.d_hidden.dtype),
        saved.d_head * scale.astype(saved.d_head.dtype),
        None,
        d_weights,
    )


next_token_loss.defvjp(_forward, _backward)


def bits_per_byte(nats: float, byte_count: int) -> float:
    """Loss that does not depend on the tokenizer: total nats over the UTF-8 bytes of the same text, in bits."""
    if byte_count <= 0:
        raise ValueError(f"byte_count {byte_count} is not positive: the text whose loss is measured is empty")
    return nats / (byte_count * log(2))
