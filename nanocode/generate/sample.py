"""A few short continuations to look at during training. No KV cache: each new token costs a forward pass."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from nanocode.model.transformer import Transformer, whole_rows
from nanocode.train.step import with_weights

# Lengths are rounded up to it, for few compilations and for the TPU kernel, whose blocks are of this size.
LENGTH_MULTIPLE = 128


class Sampler:
    """Continues prompts; compiled once per length of the rows."""

    def __init__(self, model: Transformer, new_tokens: int) -> None:
        self.context, self.new_tokens = model.shape.context, new_tokens
        self._generate = jax.jit(partial(_generate, model, new_tokens))

    def __call__(self, weights: PyTree, prompts: list[list[int]], temperature: float, seed: int) -> list[list[int]]:
        """The new ids after each prompt (with its BOS); temperature 0 takes the likeliest.

        `ValueError` if a prompt and its continuation do not fit into the model's context.
        """
        context = self.context
        longest = max(map(len, prompts)) + self.new_tokens
        if longest > context:
            raise ValueError(f"{longest} tokens do not fit into context {context}: ask for fewer new tokens")
        rows = np.zeros((len(prompts), min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, context)), np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            row[: len(prompt)] = prompt
        ends = np.array([len(prompt) for prompt in prompts], np.int32)
        filled = self._generate(weights, rows, ends, jnp.float32(temperature), jax.random.key(seed))
        return [
            row[end : end + self.new_tokens].tolist() for row, end in zip(jax.device_get(filled), ends, strict=True)
        ]


def _generate(
    model: Transformer,
    new_tokens: int,
    weights: PyTree,
    rows: Int[Array, "B T"],
    ends: Int[Array, " B"],
    temperature: Array,
    key: Array,
) -> Int[Array, "B T"]:
    filled = with_weights(model, weights)
    segments, positions = whole_rows(rows)
    every = jnp.arange(rows.shape[0])

    def step(count: Array, rows: Int[Array, "B T"]) -> Int[Array, "B T"]:
        # What stands right of a row's end does not matter: attention is causal.
        hidden = filled.hidden(rows, segments, positions)[every, ends + count - 1]
        logits = filled.logits(hidden)
        drawn = jax.random.categorical(jax.random.fold_in(key, count), logits / jnp.maximum(temperature, 1e-6))
        token = jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1))
        return rows.at[every, ends + count].set(token.astype(rows.dtype))

    return jax.lax.fori_loop(0, new_tokens, step, rows)
