"""The sets that top-k and top-p keep, and the distribution that is drawn, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanocode.generate.sampling import Knobs, Sampling, draw, invert, keep_likeliest, likeliest, uniforms

DRAWS = 3000


def reference(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities of one row by sorting, in float64."""
    chances = np.exp((logits - logits.max()).astype(np.float64) / sampling.temperature)
    order = np.argsort(-chances)
    if sampling.top_k:
        chances[order[sampling.top_k :]] = 0
    before = np.cumsum(chances[order]) - chances[order]
    chances[order[before >= sampling.top_p * chances.sum()]] = 0
    return chances / chances.sum()


@pytest.mark.parametrize("size", [7, 1000])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.7, top_k=1),
        Sampling(1.3, top_k=5),
        Sampling(1.0, top_p=0.3),
        Sampling(2.0, top_p=0.9),
        Sampling(1.0, top_k=6, top_p=0.8),
        Sampling(1.0, top_p=1e-6),
    ],
    ids=str,
)
def test_draws_stay_in_the_set_and_come_as_often_as_they_should(size: int, sampling: Sampling) -> None:
    logits = np.random.default_rng(size).normal(0, 2, size).astype(np.float32)
    wanted = reference(logits, sampling)
    uniform = uniforms(jnp.zeros(DRAWS, jnp.int32), jnp.arange(DRAWS))
    knobs = Knobs(*map(jnp.asarray, (sampling.temperature, sampling.top_k, sampling.top_p)))
    rows = jnp.broadcast_to(jnp.asarray(logits), (DRAWS, size))
    drawn = np.asarray(jax.jit(draw, static_argnums=(4, 5))(rows, None, uniform, knobs, False, sampling.filtered))
    counts = np.bincount(drawn, minlength=size)
    assert not counts[wanted == 0].any()
    # Uniform numbers are independent, so counts are multinomial: five deviations.
    assert (np.abs(counts - DRAWS * wanted) <= 5 * np.sqrt(DRAWS * wanted * (1 - wanted)) + 1).all()


def test_tokens_as_likely_as_the_last_one_stay() -> None:
    chances = jnp.asarray([[1.0, 0.5, 0.5, 0.25]])
    kept = keep_likeliest(chances, jnp.asarray(2), jnp.asarray(1.0))
    np.testing.assert_array_equal(kept, [[1.0, 0.5, 0.5, 0.0]])


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24, 1.0])
def test_what_has_no_chance_is_never_drawn_at_the_edges(uniform: float) -> None:
    chances = np.random.default_rng(0).random((50, 333)).astype(np.float32)
    chances *= np.random.default_rng(1).random(chances.shape) < 0.05
    chances[:, 100] = 1.0
    drawn = np.asarray(invert(jnp.asarray(chances), jnp.full(50, uniform, jnp.float32)))
    assert (chances[np.arange(50), drawn] > 0).all()


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = jnp.asarray([[5.0, 1.0, 0.0]] * 64)
    allowed = jnp.asarray([[False, True, True]] * 64)
    uniform = uniforms(jnp.arange(64), jnp.zeros(64, jnp.int32))
    knobs = Knobs(*map(jnp.asarray, (1.0, 0, 1.0)))
    for greedy, wanted in ((False, {1, 2}), (True, {1})):
        drawn = jax.jit(draw, static_argnums=(4, 5))(logits, allowed, uniform, knobs, greedy, False)
        assert set(np.asarray(drawn).tolist()) == wanted


def test_the_likeliest_is_the_first_of_equals() -> None:
    assert likeliest(jnp.asarray([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"temperature": -1.0}, "temperature -1.0 is negative"),
        ({"top_k": -3}, "top_k -3 is negative"),
        ({"top_p": 0.0}, "top_p 0.0 is not in"),
        ({"top_p": 1.5}, "top_p 1.5 is not in"),
    ],
)
def test_impossible_settings_are_refused(change: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Sampling(**change)
