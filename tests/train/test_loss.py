"""The chunked loss against plain autodiff of the whole one."""

from math import log

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanocode.train.loss import bits_per_byte, next_token_loss

N, D, V = 13, 8, 32


def plain(hidden, head, targets, weights):
    logits = 15.0 * jnp.tanh(hidden @ head / 15.0)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)[:, 0]
    return jnp.sum(losses * weights)


@pytest.mark.parametrize("chunk", [4, 13, 64])
def test_loss_and_gradients_are_those_of_the_whole_loss(chunk: int) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, head = 3 * jax.random.normal(keys[0], (N, D)), jax.random.normal(keys[1], (D, V))
    targets = jax.random.randint(keys[2], (N,), 0, V)
    weights = jnp.asarray([0.0, 1.0, 2.5, 0.0] + [1.0] * (N - 4))

    def mean(hidden, head, weights):
        sums = next_token_loss(hidden, head, targets, weights, 15.0, chunk)
        return sums.loss / sums.weight

    def plain_mean(hidden, head, weights):
        return plain(hidden, head, targets, weights) / jnp.sum(weights)

    found = jax.value_and_grad(mean, argnums=(0, 1, 2))(hidden, head, weights)
    expected = jax.value_and_grad(plain_mean, argnums=(0, 1, 2))(hidden, head, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
    assert not np.any(found[1][0][0]), "a masked row moves nothing"


def test_one_nat_over_a_byte_is_one_over_ln2_bits() -> None:
    assert bits_per_byte(8 * log(2), 4) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="byte_count 0"):
        bits_per_byte(1.0, 0)
