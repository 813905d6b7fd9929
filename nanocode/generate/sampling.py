"""Drawing a token from logits: greedy, or by temperature within the top k and the top p.

A row's token follows from its logits and one uniform number, so that it cannot depend on the rest of the batch. The
edges of both sets are found bit by bit and not by sorting: positive floats order as their bits do, and 30 passes over
[B, V] take less than a sort on every platform.

Axes: B rows, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nanocode.model.attention import MASKED

PROBABILITY_BITS = 30  # 1.0 is 0x3F800000


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature divides the logits, then the k likeliest stay (0: all), then of those the
    likeliest whose probabilities sum to `top_p`. Tokens as likely as the last one that stays stay too."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature {self.temperature} is negative: 0 takes the likeliest token, 1 samples")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} is negative: 0 keeps all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is not in (0, 1]: 1 keeps all tokens")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def filtered(self) -> bool:
        return self.top_k > 0 or self.top_p < 1


class Knobs(NamedTuple):
    """The numbers of a `Sampling` on the device: changing them compiles nothing."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]


def uniforms(seeds: Int[Array, " B"], positions: Int[Array, " B"]) -> Float[Array, " B"]:
    """One number in [0, 1) per row, from its own seed and position alone."""
    return jax.vmap(lambda seed, position: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position)))(
        seeds, positions
    )


def likeliest(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The first of the largest logits."""
    # XLA's argmax on a CPU is a scalar loop; a maximum and a minimum are vectorized.
    index = jnp.arange(logits.shape[1], dtype=jnp.int32)[None]
    best = jnp.max(logits, axis=1, keepdims=True)
    return jnp.min(jnp.where(logits == best, index, logits.shape[1] - 1), axis=1)


def draw(
    logits: Float[Array, "B V"],
    allowed: Bool[Array, "B V"] | None,
    uniform: Float[Array, " B"],
    knobs: Knobs,
    greedy: bool,
    filtered: bool,
) -> Int[Array, " B"]:
    """One token per row, never one that is not allowed."""
    if allowed is not None:
        logits = jnp.where(allowed, logits, MASKED)
    if greedy:
        return likeliest(logits)
    scaled = logits / knobs.temperature
    chances = jnp.exp(scaled - jnp.max(scaled, axis=1, keepdims=True))
    if filtered:
        chances = keep_likeliest(chances, knobs.top_k, knobs.top_p)
    return invert(chances, uniform)


def keep_likeliest(chances: Float[Array, "B V"], top_k: Int[Array, ""], top_p: Float[Array, ""]) -> Float[Array, "B V"]:
    """Zero outside the top k (0: all) and then outside the top p of what is left. Chances are at most 1."""
    bits = jax.lax.bitcast_convert_type(chances, jnp.int32)
    top_k = jnp.where(top_k > 0, top_k, chances.shape[1])
    edge = _largest(lambda least: jnp.sum(bits >= least, axis=1) >= top_k, len(chances))
    chances = jnp.where(bits >= edge[:, None], chances, 0)
    wanted = top_p * jnp.sum(chances, axis=1)
    edge = _largest(lambda least: jnp.sum(jnp.where(bits >= least, chances, 0), axis=1) >= wanted, len(chances))
    return jnp.where(bits >= edge[:, None], chances, 0)


def _largest(holds: Callable[[Int[Array, "B 1"]], Bool[Array, " B"]], rows: int) -> Int[Array, " B"]:
    """Per row the largest number below 2^30 for which the claim, true at 0 and false from some number on, holds."""

    def step(count: Int[Array, ""], found: Int[Array, " B"]) -> Int[Array, " B"]:
        more = found + (1 << (PROBABILITY_BITS - 1 - count))
        return jnp.where(holds(more[:, None]), more, found)

    return jax.lax.fori_loop(0, PROBABILITY_BITS, step, jnp.zeros(rows, jnp.int32))


def invert(chances: Float[Array, "B V"], uniform: Float[Array, " B"]) -> Int[Array, " B"]:
    """The token at which the running sum of the (not normalized) chances passes `uniform` of their total.

    In two levels, a block of tokens and then a token of it: a running sum over all of V is slow on every platform.
    """
    rows, size = chances.shape
    block = 1 << (size.bit_length() // 2)
    blocks = jnp.pad(chances, ((0, 0), (0, -size % block))).reshape(rows, -1, block)
    sums = jnp.sum(blocks, axis=2)
    running = jnp.cumsum(sums, axis=1)
    target = uniform * running[:, -1]
    which = _first_past(sums, running, target)
    every = jnp.arange(rows)
    within = blocks[every, which]
    running_within = jnp.cumsum(within, axis=1) + (running - sums)[every, which][:, None]
    return which * block + _first_past(within, running_within, target)


def _first_past(
    chances: Float[Array, "B M"], running: Float[Array, "B M"], target: Float[Array, " B"]
) -> Int[Array, " B"]:
    """The first place with a chance whose running sum exceeds the target; the last with one if rounding leaves none."""
    index = jnp.arange(chances.shape[1], dtype=jnp.int32)[None]
    possible = chances > 0
    past = jnp.min(jnp.where(possible & (running > target[:, None]), index, chances.shape[1]), axis=1)
    return jnp.minimum(past, jnp.max(jnp.where(possible, index, 0), axis=1))
