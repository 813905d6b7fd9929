"""The transformer's forward pass over a key/value cache: prefill of prompts, and decoding of many tokens in one call.

`Transformer.hidden` is the reference: tests compare the two. Neither function here copies the cache: both read the
part of it that is asked for, and write only the new columns, in place (callers donate it). Within a decode call new
keys and values go to a small array of `DECODE_STEPS` columns, at the same column for every row: that is one slice
update, where rows at different positions would need a scatter per layer and token.

A key that is made from the previous token (`previous_token_keys`) stands at the column of the token that it serves, one
later than its own. So the cache of the first s tokens holds all that token s needs, at any s: prefixes can be cut.

Axes: B rows, T new positions, S cached positions, K key heads, G query heads per key head, H head width, D width,
V vocabulary, A automaton states.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from nanocode.config.shape import ModelShape
from nanocode.generate.sampling import Knobs, draw, uniforms
from nanocode.model.attention import MASKED
from nanocode.model.linear import linear, rms_norm
from nanocode.model.transformer import SOFTCAP, mlp, rope_angles, rotate

DECODE_STEPS = 32
"""The most tokens of one decode call."""


class Cache(NamedTuple):
    """One array per layer, so that each is updated in place."""

    keys: tuple[Float[Array, "B K S H"], ...]
    values: tuple[Float[Array, "B K S H"], ...]


class Table(NamedTuple):
    """An automaton on the device."""

    next: Int[Array, "A V"]
    needed: Int[Array, "A V"]  # tokens to a stop if this one is taken, itself included
    distance: Int[Array, " A"]


class Rows(NamedTuple):
    """What decoding knows of each row, a slot each. One with none left to generate only fills up the batch."""

    slot: Int[Array, " B"]
    token: Int[Array, " B"]  # the newest, not yet in the cache
    position: Int[Array, " B"]  # its position, which is how many are in the cache
    left: Int[Array, " B"]  # new tokens that may still come
    seed: Int[Array, " B"]
    state: Int[Array, " B"]  # of the automaton


def empty_cache(shape: ModelShape, slots: int, length: int, dtype: jnp.dtype) -> Cache:
    def arrays() -> tuple[Array, ...]:
        return tuple(jnp.zeros((slots, shape.key_heads, length, shape.head_width), dtype) for _ in range(shape.layers))

    return Cache(arrays(), arrays())


def grow(cache: Cache, length: int) -> Cache:
    """The cache with room for `length` columns."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0))), cache)


def prepare(shape: ModelShape, dtype: jnp.dtype, weights: PyTree) -> PyTree:
    """The weights as decoding reads them: in the compute dtype, one dict per layer, query, key and value in one."""
    head = weights["embed"] if shape.tied_embeddings else weights["head"].T
    stacked = {name: weight.astype(dtype) for name, weight in weights["layers"].items()}
    stacked["qkv"] = jnp.concatenate([stacked.pop(name) for name in ("query", "key", "value")], axis=2)
    return {
        "embed": weights["embed"].astype(dtype),
        "head": head.reshape(_head_blocks(shape.vocab_size), -1, shape.width).astype(dtype),
        "value_embed": weights["value_embed"].astype(dtype) if shape.value_embeddings else None,
        "layers": [{name: weight[number] for name, weight in stacked.items()} for number in range(shape.layers)],
    }


def _head_blocks(vocab_size: int) -> int:
    """In how many blocks the head multiplies. On a CPU 16 rows x 384 x 32768 take 3.7 ms in 8 blocks, 7.1 ms in one."""
    blocks = 1
    while vocab_size % (2 * blocks) == 0 and vocab_size // (2 * blocks) >= 4096:
        blocks *= 2
    return blocks


class _Inputs(NamedTuple):
    """What every layer reads besides the residual stream."""

    embedded: Float[Array, "B T D"]
    extra_values: Float[Array, "B T K H"] | None
    angles: tuple[Array, Array]
    next_angles: tuple[Array, Array]  # of the position after each token's own


def _inputs(shape: ModelShape, weights: PyTree, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]) -> _Inputs:
    extra = None
    if shape.value_embeddings:
        extra = weights["value_embed"][tokens].reshape(*tokens.shape, shape.key_heads, shape.head_width)
    return _Inputs(
        rms_norm(weights["embed"][tokens]), extra, rope_angles(shape, positions), rope_angles(shape, positions + 1)
    )


def _project(
    shape: ModelShape, layer: dict[str, Array], x: Float[Array, "B T D"], inputs: _Inputs
) -> tuple[Array, Array, Array, Array]:
    """Queries [B, T, N, H]; the keys that serve the next position, those that serve their own, and values."""
    heads = linear(x, layer["qkv"]).reshape(*x.shape[:2], -1, shape.head_width)
    q, k, v = jnp.split(heads, [shape.heads, shape.heads + shape.key_heads], axis=2)
    if inputs.extra_values is not None:
        v = v + layer["value_gain"][None, None, :, None] * inputs.extra_values
    later, own = k[:, :, : shape.shifted_key_heads], k[:, :, shape.shifted_key_heads :]
    q = rms_norm(rotate(q, *inputs.angles)) * jnp.asarray(shape.head_width**-0.5, x.dtype)
    return q, rms_norm(rotate(later, *inputs.next_angles)), rms_norm(rotate(own, *inputs.angles)), v


def _enter(shape: ModelShape, layer: dict[str, Array], x: Array, inputs: _Inputs) -> Array:
    if shape.residual_scalars:
        return layer["residual_scale"] * x + layer["embedding_scale"] * inputs.embedded
    return x


def _attend(
    q: Float[Array, "B T N H"],
    parts: list[tuple[Float[Array, "B K S H"], Float[Array, "B K S H"], Bool[Array, "B T S"]]],
) -> Float[Array, "B T D"]:
    """One softmax over the keys of all parts; queries are scaled already."""
    rows, length, heads, width = q.shape
    kv_heads = parts[0][0].shape[1]
    q = q.reshape(rows, length, kv_heads, heads // kv_heads, width)
    scores = jnp.concatenate(
        [
            jnp.where(
                visible[:, None, None],
                jnp.einsum("btkgh,bksh->bkgts", q, k.astype(q.dtype), preferred_element_type=jnp.float32),
                MASKED,
            )
            for k, _, visible in parts
        ],
        axis=-1,
    )
    weights, first = jax.nn.softmax(scores, axis=-1).astype(q.dtype), 0
    mixed = []
    for _, v, visible in parts:
        part = weights[..., first : first + visible.shape[-1]]
        mixed.append(jnp.einsum("bkgts,bksh->btkgh", part, v.astype(q.dtype)))
        first += visible.shape[-1]
    return sum(mixed[1:], mixed[0]).reshape(rows, length, heads * width)


def _finish(layer: dict[str, Array], x: Array, mixed: Array) -> Array:
    x = x + linear(mixed, layer["out"])
    return x + mlp(layer, rms_norm(x))


def _write(
    arrays: tuple[Array, ...], new: list[Array], slots: Int[Array, " B"], starts: Int[Array, " B"], count: Array | int
) -> tuple[Array, ...]:
    """Put [K, T, H] of each of the first `count` rows into its slot from column `start`; the heads are the last K."""

    def step(row: Array, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(
            jax.lax.dynamic_update_slice(
                array,
                jax.lax.dynamic_index_in_dim(part, row).astype(array.dtype),
                (slots[row], 0, starts[row], 0),
            )
            for array, part in zip(arrays, new, strict=True)
        )

    return jax.lax.fori_loop(0, count, step, arrays)


def prefill(
    shape: ModelShape,
    weights: PyTree,
    cache: Cache,
    tokens: Int[Array, "B T"],
    slots: Int[Array, " B"],
    starts: Int[Array, " B"],
    count: Int[Array, ""],
    *,
    prefix: int,
) -> Cache:
    """The cache with the keys and values of `tokens`, which follow the first `starts` (at most `prefix`) of each slot.

    What stands right of a row's end does not matter: no query sees it before it is overwritten.
    """
    rows, length = tokens.shape
    shifted = shape.shifted_key_heads
    inputs = _inputs(shape, weights, tokens, starts[:, None] + jnp.arange(length)[None])
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool))[None], (rows, length, length))
    cached = jnp.broadcast_to((jnp.arange(prefix)[None] < starts[:, None])[:, None], (rows, length, prefix))
    x, keys, values = inputs.embedded, [], []
    for number, layer in enumerate(weights["layers"]):
        x = _enter(shape, layer, x, inputs)
        q, later, own, v = _project(shape, layer, rms_norm(x), inputs)
        later, own, v = (part.swapaxes(1, 2) for part in (later, own, v))
        if shifted:
            # The key at the first new position was made by the last cached token.
            first = cache.keys[number][slots, :shifted, starts]
            first = jnp.where((starts > 0)[:, None, None], first, 0).astype(later.dtype)
            later = jnp.concatenate([first[:, :, None], later], axis=2)
            # One column more, for the position after; nobody reads it before the other heads have theirs.
            own = jnp.pad(own, ((0, 0), (0, 0), (0, 1), (0, 0)))
        k = jnp.concatenate([later, own], axis=1) if shifted else own
        parts = [(k[:, :, :length], v, causal)]
        if prefix:
            old = (cache.keys[number][slots, :, :prefix], cache.values[number][slots, :, :prefix], cached)
            parts.insert(0, old)
        x = _finish(layer, x, _attend(q, parts))
        keys.append(k)
        values.append(v)
    return Cache(
        _write(cache.keys, keys, slots, starts, count),
        _write(cache.values, values, slots, starts, count),
    )


def decode(
    shape: ModelShape,
    weights: PyTree,
    cache: Cache,
    rows: Rows,
    steps: Int[Array, ""],
    is_stop: Bool[Array, " V"],
    table: Table | None,
    knobs: Knobs,
    *,
    prefix: int,
    greedy: bool,
    filtered: bool,
) -> tuple[Cache, Int[Array, "T B"], Int[Array, " B"]]:
    """Up to `steps` new tokens per row, -1 after its end, and each row's state of the automaton.

    A row ends at a stop token, in a stop state, or when it has none `left`. `prefix` is at least every position. The
    cache has room for `DECODE_STEPS` + 1 columns after every position; if every slot has a row, row i is slot i.
    """
    size, shifted = rows.slot.shape[0], shape.shifted_key_heads
    if size == cache.keys[0].shape[0]:  # nothing to gather, and nothing is copied if `prefix` is all there is
        old_keys, old_values = ([x[:, :, :prefix] for x in part] for part in cache)
    else:
        old_keys, old_values = ([x[rows.slot, :, :prefix] for x in part] for part in cache)
    block = (size, shape.key_heads, DECODE_STEPS + 1, shape.head_width)
    new_keys = [jnp.zeros(block, weights["embed"].dtype) for _ in cache.keys]
    new_values = [jnp.zeros(block, weights["embed"].dtype) for _ in cache.values]
    if shifted:
        for number, keys in enumerate(cache.keys):
            first = keys[rows.slot, :shifted, rows.position]
            first = jnp.where((rows.position > 0)[:, None, None], first, 0).astype(new_keys[number].dtype)
            new_keys[number] = new_keys[number].at[:, :shifted, 0].set(first)
    is_cached = (jnp.arange(prefix)[None] < rows.position[:, None])[:, None]
    drawn_at = rows.position[:, None] + 1 + jnp.arange(DECODE_STEPS)[None]
    chances = jnp.zeros((DECODE_STEPS, size))
    if not greedy:
        chances = jax.vmap(uniforms, (None, 1))(rows.seed, drawn_at)

    def put(new: Array, part: Array, first_head: int, column: Array) -> Array:
        part = part.swapaxes(1, 2).astype(new.dtype)
        return jax.lax.dynamic_update_slice(new, part, (0, first_head, column, 0))

    def more(carry: tuple) -> Array:  # type: ignore[type-arg]
        step, _, _, done, *_ = carry
        return (step < steps) & ~jnp.all(done)

    def body(carry: tuple) -> tuple:  # type: ignore[type-arg]
        step, token, state, done, out, new_keys, new_values = carry
        new_keys, new_values = list(new_keys), list(new_values)
        inputs = _inputs(shape, weights, token[:, None], (rows.position + step)[:, None])
        is_new = jnp.broadcast_to((jnp.arange(DECODE_STEPS + 1) <= step)[None, None], (size, 1, DECODE_STEPS + 1))
        x = inputs.embedded
        for number, layer in enumerate(weights["layers"]):
            x = _enter(shape, layer, x, inputs)
            q, later, own, v = _project(shape, layer, rms_norm(x), inputs)
            new_keys[number] = put(new_keys[number], own, shifted, step)
            new_values[number] = put(new_values[number], v, 0, step)
            if shifted:
                new_keys[number] = put(new_keys[number], later, 0, step + 1)
            old = (old_keys[number], old_values[number], is_cached)
            x = _finish(layer, x, _attend(q, [old, (new_keys[number], new_values[number], is_new)]))
        blocks = jnp.einsum("btd,nvd->nbv", rms_norm(x), weights["head"], preferred_element_type=jnp.float32)
        raw = blocks.swapaxes(0, 1).reshape(size, -1)
        left = rows.left - step
        allowed = None
        if table is not None:
            # With fewer left than any way out takes, the shortest ways are as good as all others.
            allowed = table.needed[state] <= jnp.maximum(left, table.distance[state])[:, None]
        taken = draw(SOFTCAP * jnp.tanh(raw / SOFTCAP), allowed, chances[step], knobs, greedy, filtered)
        out = jax.lax.dynamic_update_index_in_dim(out, jnp.where(done, -1, taken), step, 0)
        ended = is_stop[taken] | (left <= 1)
        if table is not None:
            state = jnp.where(done, state, table.next[state, taken].astype(state.dtype))
            ended |= table.distance[state] == 0
        return step + 1, taken, state, done | ended, out, tuple(new_keys), tuple(new_values)

    out = jnp.full((DECODE_STEPS, size), -1, jnp.int32)
    start = (jnp.int32(0), rows.token, rows.state, rows.left <= 0, out, tuple(new_keys), tuple(new_values))
    _, _, state, _, out, found_keys, found_values = jax.lax.while_loop(more, body, start)
    cache = Cache(
        _write(cache.keys, list(found_keys), rows.slot, rows.position, size),
        _write(cache.values, list(found_values), rows.slot, rows.position, size),
    )
    return cache, out, state
