"""Muon against a Newton-Schulz iteration written in NumPy, and what orthogonality promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanocode.train.optimizer import kinds, muon, optimizer, schedule


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    x = matrix.astype(np.float64)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


@pytest.mark.parametrize("size", [(16, 16), (16, 64), (64, 16)])
def test_two_steps_are_nesterov_momentum_orthogonalized_layer_by_layer(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 3, *size)).astype(np.float32)
    step = muon(1.0)
    state = step.init(jnp.zeros_like(first))
    _, state = step.update(jnp.asarray(first), state, jnp.zeros_like(first))
    updates, _ = step.update(jnp.asarray(second), state, jnp.zeros_like(first))
    # optax corrects the bias of momentum (one step ahead) and gradient apart, which Jordan's own Muon does not.
    average = 0.05 * (0.95 * first + second)
    momentum = 0.95 * average / (1 - 0.95**3) + 0.05 * second / (1 - 0.95**2)
    for found, wanted in zip(np.asarray(updates), momentum, strict=True):
        scale = max(1.0, size[1] / size[0]) ** 0.5
        np.testing.assert_allclose(found, -scale * newton_schulz(wanted), atol=2e-4)
        values = np.linalg.svd(found / scale, compute_uv=False)
        assert values.min() > 0.5 and values.max() < 1.3


def test_only_stacked_matrices_go_to_muon() -> None:
    weights = {
        "embed": jnp.ones((8, 4)),
        "head": jnp.ones((4, 8)),
        "layers": {"up": jnp.ones((2, 4, 16)), "s": jnp.ones(2)},
    }
    assert kinds(weights) == {"embed": "adam", "head": "adam", "layers": {"up": "muon", "s": "adam"}}
    step = optimizer()
    updates, _ = step.update(weights, step.init(weights), weights)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, weights)


def test_schedule_warms_up_stays_and_decays() -> None:
    rate = schedule(1.0, steps=100, warmup=10, decay=20)
    assert [round(float(rate(s)), 3) for s in (0, 5, 10, 50, 80, 90, 100)] == [0, 0.5, 1, 1, 1, 0.5, 0]
    with pytest.raises(ValueError, match="more than steps 5"):
        schedule(1.0, steps=5, warmup=3, decay=3)
