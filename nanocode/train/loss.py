"""Next-token cross-entropy that never holds the logits of a whole batch.

Chunk by chunk of positions the forward computes logits, loss and both gradients, so that nothing is recomputed in
the backward: 3 matmuls of the head instead of 4, and B·C·V floats of logits instead of B·T·V. Chunks cut the position
axis, not the batch axis: the batch is what a mesh shards, and every device has its share of every chunk.

Axes: B batch, T position, D width, V vocabulary, C positions of a chunk.
"""

from collections.abc import Callable
from functools import partial
from math import log
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CHUNK_TOKENS = 1024
"""B·C in one chunk: at V 32768 that is 128 MB of float32 logits. On 2 CPU cores 512 to 2048 are equally fast."""


class LossSums(NamedTuple):
    """Divide the first by the second, after summing both over accumulation steps."""

    loss: Float[Array, ""]
    weight: Float[Array, ""]


class _Saved(NamedTuple):
    d_hidden: Float[Array, "B T D"]
    d_head: Float[Array, "D V"]
    losses: Float[Array, "B T"]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def next_token_loss(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    softcap: float = 15.0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> LossSums:
    """Weighted sum of the tokens' losses in nats, and the sum of weights. Weight 0 masks a token."""
    return _forward(hidden, head, targets, weights, softcap, chunk_tokens)[0]


def token_losses(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    softcap: float = 15.0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Float[Array, "B T"], Int[Array, "B T"]]:
    """Each token's loss in nats and the likeliest token in its place; for evaluation, without gradients."""
    narrow = head.astype(hidden.dtype)

    def step(_: None, chunk: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        x, target = chunk
        logits = softcap * jnp.tanh(_logits(x, narrow) / softcap)
        picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        return None, (jax.nn.logsumexp(logits, axis=-1) - picked, jnp.argmax(logits, axis=-1))

    split, join = _chunks(targets.shape, chunk_tokens)
    _, (losses, likeliest) = jax.lax.scan(step, None, (split(hidden), split(targets)))
    return join(losses), join(likeliest)


def bits_per_byte(nats: float, byte_count: int) -> float:
    """Loss that does not depend on the tokenizer: total nats over the UTF-8 bytes of the same text, in bits."""
    if byte_count <= 0:
        raise ValueError(f"byte_count {byte_count} is not positive: the text whose loss is measured is empty")
    return nats / (byte_count * log(2))


def _logits(x: Float[Array, "B C D"], head: Float[Array, "D V"]) -> Float[Array, "B C V"]:
    flat = jnp.matmul(x.reshape(-1, x.shape[-1]), head, preferred_element_type=jnp.float32)
    return flat.reshape(*x.shape[:-1], -1)


def _chunks(shape: tuple[int, ...], chunk_tokens: int) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """How to split [B, T, ...] into [chunks, B, C, ...], the last chunk padded with zeros, and back."""
    batch, length = shape
    chunk = max(1, min(length, chunk_tokens // batch))
    count = -(-length // chunk)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(batch, count, chunk, *x.shape[2:]), 1, 0)

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(batch, count * chunk, *x.shape[3:])[:, :length]

    return split, join


def _forward(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    softcap: float,
    chunk_tokens: int,
) -> tuple[LossSums, _Saved]:
    narrow = head.astype(hidden.dtype)
    weights = weights.astype(jnp.float32)

    def step(
        d_head: Float[Array, "D V"], chunk: tuple[Array, Array, Array]
    ) -> tuple[Float[Array, "D V"], tuple[Float[Array, "B C D"], Float[Array, "B C"]]]:
        x, target, weight = chunk
        squashed = jnp.tanh(_logits(x, narrow) / softcap)
        logits = softcap * squashed
        total = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        is_target = jnp.arange(logits.shape[-1])[None, None] == target[..., None]
        error = jnp.exp(logits - total[..., None]) - is_target.astype(jnp.float32)
        # d tanh: the softcap's slope is 1 - tanh².
        d_logits = (weight[..., None] * error * (1 - jnp.square(squashed))).astype(x.dtype)
        flat_x, flat_d = x.reshape(-1, x.shape[-1]), d_logits.reshape(-1, d_logits.shape[-1])
        d_head = d_head + jnp.matmul(flat_x.T, flat_d, preferred_element_type=jnp.float32)
        d_x = jnp.matmul(flat_d, narrow.T, preferred_element_type=jnp.float32)
        return d_head, (d_x.astype(x.dtype).reshape(x.shape), total - picked)

    split, join = _chunks(targets.shape, chunk_tokens)
    d_head, (d_hidden, losses) = jax.lax.scan(
        step, jnp.zeros(head.shape, jnp.float32), (split(hidden), split(targets), split(weights))
    )
    losses = join(losses)
    sums = LossSums(jnp.sum(losses * weights), jnp.sum(weights))
    return sums, _Saved(join(d_hidden), d_head.astype(head.dtype), losses)


def _backward(
    softcap: float, chunk_tokens: int, saved: _Saved, cotangent: LossSums
) -> tuple[Float[Array, "B T D"], Float[Array, "D V"], None, Float[Array, "B T"]]:
    scale = cotangent.loss
    return (
        saved.d_hidden * scale.astype(saved.d_hidden.dtype),
        saved.d_head * scale.astype(saved.d_head.dtype),
        None,
        scale * saved.losses + cotangent.weight,
    )


next_token_loss.defvjp(_forward, _backward)
