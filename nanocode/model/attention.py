"""Causal attention within packed documents: one reference, and one kernel per platform that must agree with it.

A query sees the keys at and before its own position that carry its segment id.

Axes: B batch, T query, S key, N query heads, K kv heads, G query heads per kv head, H head width.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # finite on purpose: a row with no visible key becomes uniform, not nan

Kernel = Callable[
    [Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"], Int[Array, "B T"]],
    Float[Array, "B T N H"],
]


def attend(
    q: Float[Array, "B T K G H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    visible: Bool[Array, "B T S"],
) -> Float[Array, "B T K G H"]:
    """Average `v` over the visible keys, weighted by softmax(q·k / √H)."""
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(visible[:, None, None], scores * q.shape[-1] ** -0.5, MASKED)
    # Softmax stays in float32: bfloat16 has 8 significant bits, too few to sum S weights.
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v)


def visible_keys(segments: Int[Array, "B T"], keys: Int[Array, "B S"], first: int = 0) -> Bool[Array, "B T S"]:
    """Whether each query (at position `first` + t) may see each key: same segment, and not later."""
    position = first + jnp.arange(segments.shape[1])
    causal = position[:, None] >= jnp.arange(keys.shape[1])[None, :]
    return causal[None] & (segments[:, :, None] == keys[:, None, :])


def attend_reference(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], segments: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    """`attend` over whole rows: every kernel below is tested against it."""
    return _grouped(q, k, v, visible_keys(segments, segments))


QUERY_BLOCK = 128


def attend_causal_blocks(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], segments: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    """The CPU path: each block of queries meets only the keys up to its own end.

    Lengths are static, so the upper half of the score matrix is mostly never computed: (1 + block / T) / 2 of it is.
    """
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, axis=2) if groups > 1 else x for x in (k, v))
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * q.shape[-1] ** -0.5, k, v))
    return _blocks(q, k, v, segments).transpose(0, 2, 1, 3)


@jax.custom_vjp
def _blocks(
    q: Float[Array, "B N T H"], k: Float[Array, "B N T H"], v: Float[Array, "B N T H"], segments: Int[Array, "B T"]
) -> Float[Array, "B N T H"]:
    return _blocks_forward(q, k, v, segments)[0]


def _block_ends(length: int) -> list[tuple[int, int]]:
    return [(first, min(first + QUERY_BLOCK, length)) for first in range(0, length, QUERY_BLOCK)]


def _blocks_forward(q: Array, k: Array, v: Array, segments: Array) -> tuple[Array, tuple[Array, ...]]:
    keys, out, weights = k.swapaxes(2, 3), [], []
    for first, end in _block_ends(q.shape[2]):
        visible = visible_keys(segments[:, first:end], segments[:, :end], first)
        scores = jnp.matmul(q[:, :, first:end], keys[..., :end], preferred_element_type=jnp.float32)
        weights.append(jax.nn.softmax(jnp.where(visible[:, None], scores, MASKED), axis=-1).astype(v.dtype))
        out.append(weights[-1] @ v[:, :, :end])
    whole = jnp.concatenate(out, axis=2)
    return whole, (q, k, v, whole, *weights)


def _blocks_backward(saved: tuple[Array, ...], d_out: Array) -> tuple[Array, Array, Array, None]:
    """Only arrays of width H are transposed, never the T x T weights: that traffic took longer than the products."""
    q, k, v, out, *weights = saved
    values = v.swapaxes(2, 3)
    along = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    d_q, d_keys, d_values = [], jnp.zeros_like(values), jnp.zeros_like(values)
    for (first, end), weight in zip(_block_ends(q.shape[2]), weights, strict=True):
        d_block, rows = d_out[:, :, first:end], q[:, :, first:end]
        d_weight = jnp.matmul(d_block, values[..., :end], preferred_element_type=jnp.float32)
        d_score = (weight * (d_weight - along[:, :, first:end])).astype(q.dtype)
        d_q.append(d_score @ k[:, :, :end])
        rest = [(0, 0), (0, 0), (0, 0), (0, q.shape[2] - end)]
        d_keys += jnp.pad(rows.swapaxes(2, 3) @ d_score, rest)
        d_values += jnp.pad(d_block.swapaxes(2, 3) @ weight, rest)
    return jnp.concatenate(d_q, axis=2), d_keys.swapaxes(2, 3), d_values.swapaxes(2, 3), None


_blocks.defvjp(_blocks_forward, _blocks_backward)


def attend_splash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """The TPU path: Pallas splash attention, which skips the blocks above the diagonal. T is a multiple of 128."""
    length, heads = q.shape[1], q.shape[2]
    if length % 128:
        raise ValueError(f"context {length} is not a multiple of 128, the TPU kernel's block: change model.context")
    block = next(size for size in (512, 256, 128) if length % size == 0)
    mask = splash_mask.MultiHeadMask([splash_mask.CausalMask((length, length))] * heads)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    # The kernel's own group axis serves kv_heads < heads (it reads each key head once per group).
    make = splash.make_splash_mha if k.shape[2] == heads else splash.make_splash_mqa
    if k.shape[2] not in (1, heads):
        k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k, v))
        make = splash.make_splash_mha
    kernel = make(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    q = q * q.shape[-1] ** -0.5  # the kernel does not scale
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    if make is splash.make_splash_mqa:
        k, v = k[:, 0], v[:, 0]
    out = jax.vmap(kernel)(q, k, v, segment_ids=splash.SegmentIds(q=segments, kv=segments))
    return out.transpose(0, 2, 1, 3).astype(v.dtype)


def attend_cudnn(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], segments: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    """The NVIDIA path: cuDNN flash attention, which takes only 16-bit inputs; float32 falls to the reference."""
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return attend_reference(q, k, v, segments)
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=same, is_causal=True, implementation="cudnn")


KERNELS: dict[str, Kernel] = {"cpu": attend_causal_blocks, "tpu": attend_splash, "gpu": attend_cudnn}


def kernel_for(platform: str) -> Kernel:
    """The attention kernel of a jax platform name (`cpu`, `tpu`, `gpu`)."""
    if platform not in KERNELS:
        raise ValueError(f"no attention kernel for platform {platform!r}: one of {', '.join(KERNELS)}")
    return KERNELS[platform]


def attention(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], segments: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    """Causal attention within segments, by the kernel of the default platform."""
    return kernel_for(jax.default_backend())(q, k, v, segments)


@partial(jax.named_call, name="attend")
def _grouped(
    q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], visible: Bool[Array, "B T S"]
) -> Float[Array, "B T N H"]:
    batch, length, heads, width = q.shape
    groups = heads // k.shape[2]
    out = attend(q.reshape(batch, length, k.shape[2], groups, width), k, v, visible)
    return out.reshape(batch, length, heads, width)
