"""The model against a NumPy reference in float64, every extra on and off, and what packing promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nanocode.config.shape import ModelShape
from nanocode.model import attention
from nanocode.model.linear import linear, rms_norm
from nanocode.model.transformer import Transformer, parameters
from nanocode.train.step import abstract_model, unpack, with_weights
from tests.model.reference import logits as reference_logits

PLAIN = ModelShape(layers=2, width=32, heads=4, kv_heads=2, vocab_size=24, context=20)
SHAPES = {
    "plain": {},
    "previous-token keys": {"previous_token_keys": 0.5},
    "tied embeddings": {"tied_embeddings": True},
    "partial RoPE": {"rope_share": 0.5},
    "no RoPE": {"rope_share": 0.0},
    "residual scalars": {"residual_scalars": True},
    "value embeddings": {"value_embeddings": True},
    "all": {
        "previous_token_keys": 1.0,
        "tied_embeddings": True,
        "rope_share": 0.25,
        "residual_scalars": True,
        "value_embeddings": True,
    },
}
STARTS = [0, 7, 8]


def shape_of(name: str) -> ModelShape:
    return ModelShape(**{**PLAIN.model_dump(), **SHAPES[name]})


def random_weights(shape: ModelShape, seed: int = 0) -> dict:
    """All of them random: what begins at zero or one would hide what it multiplies."""
    zeros = parameters(Transformer(shape, nnx.Rngs(0)))
    dice = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(dice.normal(0, 0.3, x.shape), jnp.float32), zeros)


def row(seed: int = 0) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(1, PLAIN.vocab_size, PLAIN.context + 1)
    tokens[STARTS] = 0
    return tokens


def our_logits(shape: ModelShape, weights: dict, rows: np.ndarray, dtype: str = "float32", **more: bool) -> np.ndarray:
    unpacked = unpack(jnp.asarray(rows), 0)
    model = with_weights(nnx.eval_shape(lambda: Transformer(shape, nnx.Rngs(0), jnp.dtype(dtype), **more)), weights)
    return np.asarray(model.logits(model.hidden(unpacked.tokens, unpacked.segments, unpacked.positions)))


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_the_reference(name: str) -> None:
    shape = shape_of(name)
    weights, tokens = random_weights(shape), row()
    wanted = reference_logits(shape, weights, tokens[:-1].tolist(), STARTS)
    found = our_logits(shape, weights, tokens[None])[0]
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert np.abs(wanted).max() > 1, "the reference is not trivial"
    np.testing.assert_allclose(our_logits(shape, weights, tokens[None], unroll=True)[0], found, atol=1e-5)


def test_bfloat16_is_close() -> None:
    weights, rows = random_weights(PLAIN), row()[None]
    wide, narrow = our_logits(PLAIN, weights, rows), our_logits(PLAIN, weights, rows, "bfloat16")
    assert np.abs(wide - narrow).mean() < 0.03 * np.abs(wide).mean()


def test_parameters_are_counted_right() -> None:
    for name in SHAPES:
        shape = shape_of(name)
        assert sum(x.size for x in jax.tree.leaves(random_weights(shape))) == shape.parameters(), name


def test_no_token_sees_a_later_one_or_another_document() -> None:
    shape = shape_of("all")
    weights = random_weights(shape)
    before = our_logits(shape, weights, row()[None])[0]
    for changed in (3, 12):
        tokens = row()
        tokens[changed] = 1 + tokens[changed] % (PLAIN.vocab_size - 1)
        after = our_logits(shape, weights, tokens[None])[0]
        moved = np.abs(after - before).max(-1) > 1e-6
        end = min([s for s in STARTS if s > changed], default=PLAIN.context)
        assert moved[changed]
        assert not moved[:changed].any()
        assert not moved[end:].any()


def test_recomputing_activations_changes_no_gradient() -> None:
    weights, rows = random_weights(PLAIN), jnp.asarray(row()[None])
    unpacked = unpack(rows, 0)

    def gradient(remat: bool) -> dict:
        model = abstract_model(PLAIN, "float32", remat)
        return jax.jit(
            jax.grad(
                lambda w: jnp.sum(
                    with_weights(model, w).hidden(unpacked.tokens, unpacked.segments, unpacked.positions) ** 2
                )
            )
        )(weights)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), gradient(False), gradient(True))


def attention_inputs(length: int, kv_heads: int, width: int = 16) -> tuple:
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (2, length, 4, width))
    k, v = (jax.random.normal(key, (2, length, kv_heads, width)) for key in keys[1:])
    segments = jnp.asarray(np.stack([np.arange(length) // 90, np.zeros(length, int)]))
    return q, k, v, segments


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_blocks_of_queries_agree_with_the_reference_and_so_do_their_gradients(kv_heads: int) -> None:
    *arrays, segments = attention_inputs(300, kv_heads)

    def both(kernel):
        total = jax.jit(lambda *x: jnp.sum(jnp.sin(kernel(*x, segments))))
        return kernel(*arrays, segments), jax.grad(total, argnums=(0, 1, 2))(*arrays)

    found, wanted = both(attention.attend_causal_blocks), both(attention.attend_reference)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), found, wanted)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_tpu_kernel_agrees_with_the_reference(kv_heads: int) -> None:
    *arrays, segments = attention_inputs(128, kv_heads, 128)
    found = attention.attend_splash(*arrays, segments, interpret=True)
    np.testing.assert_allclose(found, attention.attend_reference(*arrays, segments), atol=2e-3)


def test_the_tpu_kernel_refuses_other_lengths() -> None:
    *arrays, segments = attention_inputs(100, 4)
    with pytest.raises(ValueError, match="context 100 is not a multiple of 128"):
        attention.attend_splash(*arrays, segments)


def test_the_nvidia_path_takes_float32_to_the_reference() -> None:
    """Without a GPU only this branch runs; cuDNN itself takes 16-bit inputs on NVIDIA devices."""
    *arrays, segments = attention_inputs(100, 2)
    found = attention.attend_cudnn(*arrays, segments)
    np.testing.assert_array_equal(found, attention.attend_reference(*arrays, segments))


def test_linear_and_norm_have_the_gradients_of_their_formulas() -> None:
    dice = np.random.default_rng(0)
    x, narrow, wide = (jnp.asarray(dice.normal(size=s), jnp.float32) for s in ((2, 5, 8), (8, 3), (8, 12)))

    def plain_norm(x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    for w in (narrow, wide):
        found = jax.grad(lambda x, w: jnp.sum(jnp.sin(linear(rms_norm(x), w))), (0, 1))(x, w)
        wanted = jax.grad(lambda x, w: jnp.sum(jnp.sin(plain_norm(x) @ w)), (0, 1))(x, w)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"heads": 5}, "width 32 is not divisible by heads 5"),
        ({"kv_heads": 3}, "heads 4 is not divisible by kv_heads 3"),
        ({"previous_token_keys": 0.3}, "set a multiple of 1/2"),
        ({"rope_share": 0.3}, "rope_share 0.3 of head width 8"),
        ({"width": 36, "heads": 4, "kv_heads": 4}, "head width 9 .* is odd"),
    ],
)
def test_an_impossible_shape_is_refused_with_the_next_move(change: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ModelShape(**{**PLAIN.model_dump(), **change})
