"""Decoding with the engine, beside what the machine could do: read the weights once per token, or multiply them.

Engine and bound take turns, so that both see the same machine, and the best of each is compared: whatever else the
machine does only adds time, and a decode call is too long to be spared by all of it when a matmul is.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nanocode.config.settings import load
from nanocode.config.shape import ModelShape
from nanocode.generate.engine import Engine, Request, Sampling
from nanocode.model.transformer import Transformer, parameters
from nanocode.train.step import abstract_model

TURNS = 20
PROMPT, NEW = 128, 32
Result = dict[str, float | str]


def engine_of(shape: ModelShape, slots: int) -> Engine:
    return Engine(abstract_model(shape, "float32"), parameters(Transformer(shape, nnx.Rngs(0))), slots)


def seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def requests(shape: ModelShape, count: int, prompt: int, new: int) -> list[Request]:
    dice = np.random.default_rng()
    return [Request([0, *dice.integers(1, shape.vocab_size, prompt - 1).tolist()], new, seed) for seed in range(count)]


def seconds_per_step(engine: Engine, asked: list[Request]) -> float:
    """Of decoding alone: the prompts are in the cache."""
    return seconds(lambda: engine.generate(asked)) / asked[0].max_new


def beside_bandwidth(preset: str) -> Result:
    """One conversation: every token reads all matrices, so the bound is their bytes over the read bandwidth."""
    shape = load(preset).model
    engine, (asked,) = engine_of(shape, 1), requests(shape, 1, PROMPT, NEW)
    matrices = jnp.ones((shape.matmul_parameters() // 1024, 1024), jnp.float32)
    read = jax.jit(jnp.sum)
    steps, reads = [], []
    for turn in range(TURNS + 1):
        step, sweep = seconds_per_step(engine, [asked]), seconds(lambda: read(matrices))
        if turn:  # the first one compiles
            steps.append(step)
            reads.append(sweep)
    step, sweep = min(steps), min(reads)
    return {
        "tokens/s": 1 / step,
        "read bandwidth, GB/s": matrices.nbytes / sweep / 1e9,
        "tokens/s if only weights were read": 1 / sweep,
        "share of the bound": sweep / step,
    }


def beside_matmuls(preset: str, rows: int) -> Result:
    """Many conversations: the bound is the time of the model's own matmuls, each alone."""
    shape = load(preset).model
    engine, asked = engine_of(shape, rows), requests(shape, rows, PROMPT, NEW)
    width, heads = shape.width, (shape.heads + 2 * shape.key_heads) * shape.head_width
    sizes = [(width, heads), (width, width), (width, shape.mlp_width), (shape.mlp_width, width)]
    counts = dict.fromkeys(sizes, shape.layers) | {(width, shape.vocab_size): 1}
    pairs = {size: (jnp.ones((rows, size[0])), jnp.ones(size)) for size in counts}
    multiply = jax.jit(jnp.matmul)
    # As the engine lays it out, which is faster than the plain matrix.
    head = engine._weights["head"]
    pairs[width, shape.vocab_size] = (jnp.ones((rows, width)), head)
    in_blocks = jax.jit(lambda x, w: jnp.einsum("bd,nvd->nbv", x, w))
    steps, sums = [], []
    for turn in range(TURNS + 1):
        step = seconds_per_step(engine, asked)
        alone = {
            size: seconds(partial(multiply if pair[1].ndim == 2 else in_blocks, *pair)) for size, pair in pairs.items()
        }
        if turn:
            steps.append(step)
            sums.append(alone)
    step = min(steps)
    total = sum(count * min(alone[size] for alone in sums) for size, count in counts.items())
    return {
        "tokens/s": rows / step,
        "tokens/s of its matmuls alone": rows / total,
        "share of the bound": total / step,
    }


def throughput(preset: str, rows: int) -> Result:
    """Prompts of 200 tokens and 128 new ones each, drawn at temperature 1."""
    shape, dice = load(preset).model, Sampling(temperature=1.0)
    engine = engine_of(shape, rows)
    prefills, decodes = [], []
    for turn in range(6):
        asked = requests(shape, rows, 200, 1)
        prefill = seconds(partial(engine.generate, asked, dice))
        longer = [Request(each.tokens, 128, each.seed) for each in asked]
        decode = seconds(partial(engine.generate, longer, dice))
        if turn:
            prefills.append(prefill)
            decodes.append(decode)
    prefill, decode = min(prefills), min(decodes)
    return {
        "prompt tokens/s": rows * 200 / prefill,
        "new tokens/s": rows * 128 / decode,
        "new tokens/s, prompts included": rows * 128 / (prefill + decode),
        "ms per step": decode / 128 * 1e3,
    }
