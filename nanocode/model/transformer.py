"""The model: Hugging Face's `NanoChatForCausalLM`, layers stacked on a leading axis and scanned, extras as switches.

embed -> norm -> L x [x += attention(norm(x)); x += mlp(norm(x))] -> norm -> head -> 15·tanh(logits / 15)
RoPE, then RMS norm of queries and keys; ReLU² MLP; RMS norms without weights; no biases.
Layout and order of operations: transformers `models/nanochat/modeling_nanochat.py`, 5.23.0.

Axes: B batch, T position, D width, F feed-forward width, N query heads, K kv heads, H head width, V vocabulary,
L layers. `Q` is N·H and `C` is K·H, matrices stay two-dimensional for Muon.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from nanocode.config.shape import ModelShape
from nanocode.model.attention import attention
from nanocode.model.linear import linear, rms_norm

SOFTCAP = 15.0

Init = Callable[[jax.Array, tuple[int, ...]], Array]


def declare(rngs: nnx.Rngs, init: Init, **axes: int) -> nnx.Param[Array]:
    """A float32 parameter: its shape and logical axes are the keywords, in order; sharding reads them as `.axes`."""
    return nnx.Param(init(rngs.params(), tuple(axes.values())), axes=tuple(axes))


def zeros(key: jax.Array, shape: tuple[int, ...]) -> Array:
    return jnp.zeros(shape, jnp.float32)


def ones(key: jax.Array, shape: tuple[int, ...]) -> Array:
    return jnp.ones(shape, jnp.float32)


def normal(deviation: float) -> Init:
    return lambda key, shape: deviation * jax.random.normal(key, shape, jnp.float32)


def fan_in(key: jax.Array, shape: tuple[int, ...]) -> Array:
    """Uniform with deviation 1/√rows: no outliers, as in nanochat's `init_weights`."""
    limit = (3 / shape[-2]) ** 0.5
    return jax.random.uniform(key, shape, jnp.float32, -limit, limit)


class Layers(nnx.Module):
    """The parameters of all layers, stacked."""

    def __init__(self, shape: ModelShape, rngs: nnx.Rngs) -> None:
        n, d, f = shape.layers, shape.width, shape.mlp_width
        q, c = shape.heads * shape.head_width, shape.key_heads * shape.head_width
        self.query = declare(rngs, fan_in, layers=n, width=d, heads=q)
        self.key = declare(rngs, fan_in, layers=n, width=d, kv_heads=c)
        self.value = declare(rngs, fan_in, layers=n, width=d, kv_heads=c)
        # What writes into the residual stream begins at zero: each layer starts as the identity (nanochat).
        self.out = declare(rngs, zeros, layers=n, heads=q, width=d)
        self.up = declare(rngs, fan_in, layers=n, width=d, mlp=f)
        self.down = declare(rngs, zeros, layers=n, mlp=f, width=d)
        if shape.residual_scalars:
            self.residual_scale = declare(rngs, ones, layers=n)
            self.embedding_scale = declare(rngs, zeros, layers=n)
        if shape.value_embeddings:
            self.value_gain = declare(rngs, ones, layers=n, kv_head=shape.key_heads)


class Transformer(nnx.Module):
    """Tokens to hidden states to logits; the two apart, because the loss takes the vocabulary in chunks."""

    def __init__(
        self,
        shape: ModelShape,
        rngs: nnx.Rngs,
        compute_dtype: jnp.dtype = np.dtype("float32"),  # noqa: B008  (immutable)
        remat: bool = False,
        unroll: bool = False,
    ) -> None:
        self.shape, self.compute_dtype, self.remat, self.unroll = shape, compute_dtype, remat, unroll
        v, d = shape.vocab_size, shape.width
        # A norm follows the embedding, so its size matters only beside the learning rate. A tied one is the head too
        # and has to begin with small logits.
        self.embed = declare(rngs, normal(0.02 if shape.tied_embeddings else 1.0), vocab=v, width=d)
        if not shape.tied_embeddings:
            self.head = declare(rngs, normal(0.001), width=d, vocab=v)
        if shape.value_embeddings:
            self.value_embed = declare(rngs, normal(d**-0.5), vocab=v, width=shape.key_heads * shape.head_width)
        self.layers = Layers(shape, rngs)

    def hidden(
        self, tokens: Int[Array, "B T"], segments: Int[Array, "B T"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Final normed hidden states. Tokens see only their own segment; `positions` count from its start (RoPE)."""
        shape, dtype = self.shape, self.compute_dtype
        embedded = rms_norm(self.embed[...][tokens].astype(dtype))
        extra_values = self.value_embed[...][tokens].astype(dtype) if shape.value_embeddings else None
        angles = rope_angles(shape, positions)

        def step(x: Float[Array, "B T D"], layer: dict[str, Array]) -> tuple[Float[Array, "B T D"], None]:
            layer = {name: weight.astype(dtype) for name, weight in layer.items()}
            if shape.residual_scalars:
                x = layer["residual_scale"] * x + layer["embedding_scale"] * embedded
            q, k, v = project(shape, layer, rms_norm(x), segments, angles, extra_values)
            mixed = attention(q, k, v, segments)
            x = x + linear(mixed.reshape(*x.shape[:2], -1), layer["out"])
            return x + mlp(layer, rms_norm(x)), None

        if self.remat:
            step = jax.checkpoint(step, prevent_cse=False)
        stacked = nnx.to_pure_dict(nnx.state(self.layers, nnx.Param))
        if self.unroll:
            x = embedded
            for number in range(shape.layers):
                x, _ = step(x, {name: weights[number] for name, weights in stacked.items()})
        else:
            x, _ = jax.lax.scan(step, embedded, stacked)
        return rms_norm(x)

    def head_matrix(self) -> Float[Array, "D V"]:
        """What turns hidden states into logits; the embedding itself when tied."""
        return self.embed[...].T if self.shape.tied_embeddings else self.head[...]

    def logits(self, hidden: Float[Array, "*R D"]) -> Float[Array, "*R V"]:
        """Softcapped float32 logits of (few) hidden states."""
        raw = jnp.matmul(hidden, self.head_matrix().astype(hidden.dtype), preferred_element_type=jnp.float32)
        return SOFTCAP * jnp.tanh(raw / SOFTCAP)


def project(
    shape: ModelShape,
    layer: dict[str, Array],
    x: Float[Array, "B T D"],
    segments: Int[Array, "B T"],
    angles: tuple[Float[Array, "B T 1 R"], Float[Array, "B T 1 R"]],
    extra_values: Float[Array, "B T C"] | None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Queries, keys and values of one layer, ready for attention."""
    heads = (*x.shape[:2], -1, shape.head_width)
    q, k, v = (linear(x, layer[name]).reshape(heads) for name in ("query", "key", "value"))
    if shape.shifted_key_heads:
        k = shift_keys(k, segments, shape.shifted_key_heads)
    if extra_values is not None:
        v = v + layer["value_gain"][None, None, :, None] * extra_values.reshape(heads)
    return rms_norm(rotate(q, *angles)), rms_norm(rotate(k, *angles)), v


def shift_keys(k: Float[Array, "B T K H"], segments: Int[Array, "B T"], count: int) -> Float[Array, "B T K H"]:
    """The first `count` heads' keys moved one token later; zero at the start of a segment, which has no previous."""
    continues = jnp.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (1, 0)))
    previous = jnp.pad(k[:, :-1, :count], ((0, 0), (1, 0), (0, 0), (0, 0)))
    return jnp.concatenate([jnp.where(continues[:, :, None, None], previous, 0), k[:, :, count:]], axis=2)


def mlp(layer: dict[str, Array], x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """ReLU²: as good as a gated unit of the same size, with one matrix less (So et al. 2021, arXiv 2109.08668)."""
    return linear(jnp.square(jax.nn.relu(linear(x, layer["up"]))), layer["down"])


def rope_angles(
    shape: ModelShape, positions: Int[Array, "B T"]
) -> tuple[Float[Array, "B T 1 R"], Float[Array, "B T 1 R"]]:
    """Cosine and sine per position and rotating pair, float32: at position 4095 bfloat16 has lost the phase."""
    channels = shape.rope_channels
    frequency = shape.rope_theta ** -(jnp.arange(0, channels, 2, dtype=jnp.float32) / max(channels, 1))
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None]
    return jnp.cos(angle), jnp.sin(angle)


@jax.custom_vjp
def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T 1 R"], sin: Float[Array, "B T 1 R"]
) -> Float[Array, "B T N H"]:
    """Rotate channel i with channel i + R by the negative angle: NanoChat's sign, not Llama's. The rest stays."""
    pairs = cos.shape[-1]
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return jnp.concatenate([first * cos + second * sin, second * cos - first * sin, rest], axis=-1)


def _rotate_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, tuple[Array, Array]]:
    return rotate(x, cos, sin), (cos, sin)


def _rotate_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, None, None]:
    """A rotation's transpose is its inverse: one pass, where differentiating slices pads and adds four arrays."""
    cos, sin = saved
    return rotate(dy, cos, -sin), None, None


rotate.defvjp(_rotate_forward, _rotate_backward)


def whole_rows(tokens: Int[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Segments and positions of rows that hold one document each."""
    return jnp.zeros_like(tokens), jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


def parameters(model: Transformer) -> dict[str, PyTree]:
    """The model's weights as a plain nested dict of arrays (or of `ShapeDtypeStruct`, from an abstract model)."""
    return dict(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def logical_axes(model: Transformer) -> dict[str, PyTree]:
    """The same nested dict with each weight's tuple of logical axis names: what the sharding rules map."""
    state = nnx.state(model, nnx.Param)
    leaves = jax.tree.map(lambda p: p.get_metadata()["axes"], state, is_leaf=lambda p: isinstance(p, nnx.Variable))
    return dict(nnx.to_pure_dict(leaves))
