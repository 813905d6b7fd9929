"""The chunked loss against plain autodiff of the whole one."""

from math import log

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanocode.train.loss import bits_per_byte, next_token_loss, token_losses

B, T, D, V = 2, 13, 8, 32


def plain_losses(hidden, head, targets):
    logits = 15.0 * jnp.tanh(hidden @ head / 15.0)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, head = 3 * jax.random.normal(keys[0], (B, T, D)), jax.random.normal(keys[1], (D, V))
    targets = jax.random.randint(keys[2], (B, T), 0, V)
    weights = jax.random.uniform(keys[3], (B, T)).at[0, 0].set(0.0).at[1, 3].set(2.5)
    return hidden, head, targets, weights


@pytest.mark.parametrize("chunk_tokens", [1, 8, 26, 2048])
def test_loss_and_gradients_are_those_of_the_whole_loss(inputs, chunk_tokens: int) -> None:
    hidden, head, targets, weights = inputs

    def mean(hidden, head, weights):
        sums = next_token_loss(hidden, head, targets, weights, 15.0, chunk_tokens)
        return sums.loss / sums.weight

    def plain_mean(hidden, head, weights):
        return jnp.sum(plain_losses(hidden, head, targets) * weights) / jnp.sum(weights)

    found = jax.value_and_grad(mean, argnums=(0, 1, 2))(hidden, head, weights)
    expected = jax.value_and_grad(plain_mean, argnums=(0, 1, 2))(hidden, head, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
    assert not np.any(found[1][0][0, 0]), "a masked token moves nothing"


@pytest.mark.parametrize("chunk_tokens", [8, 2048])
def test_token_losses_are_the_plain_ones(inputs, chunk_tokens: int) -> None:
    hidden, head, targets, _ = inputs
    losses, likeliest = token_losses(hidden, head, targets, 15.0, chunk_tokens)
    np.testing.assert_allclose(losses, plain_losses(hidden, head, targets), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(likeliest, jnp.argmax(hidden @ head, axis=-1))


def test_one_nat_over_a_byte_is_one_over_ln2_bits() -> None:
    assert bits_per_byte(8 * log(2), 4) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="byte_count 0"):
        bits_per_byte(1.0, 0)
