"""DPO and IPO against autodiff straight through log-probabilities, in float64 and without any chunking."""

from functools import cache
from math import log
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import PyTree

from nanocode.agent.conversation import render
from nanocode.config.shape import ModelShape
from nanocode.train.optimizer import optimizer
from nanocode.train.preference import make_log_probability, make_preference_step, preference_loss
from nanocode.train.step import abstract_model, init_state, unpack, with_weights
from nanocode.train.supervision import assistant_targets
from tests.conversations import TOKENIZER, conversations
from tests.model.reference import logits as reference_logits

pytestmark = pytest.mark.slow

Kind = Literal["dpo", "ipo"]
BOS, CONTEXT, PAIRS = TOKENIZER.bos, 96, 4
SHAPE = ModelShape(layers=1, width=16, heads=2, vocab_size=TOKENIZER.vocab_size, context=CONTEXT)
MODEL = abstract_model(SHAPE, "float32")
WEIGH = assistant_targets(TOKENIZER.special)


def random_weights(seed: int, size: float = 0.3) -> PyTree:
    dice = np.random.default_rng(seed)
    fresh = init_state(SHAPE, optax.identity(), 0)["weights"]
    return jax.tree.map(lambda x: jnp.asarray(dice.normal(0, size, x.shape), jnp.float32), fresh)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """[2·PAIRS, T+1], a conversation each."""
    fitting = [t for one in conversations(80) if len(t := render(one, TOKENIZER).tokens) <= CONTEXT][: 2 * PAIRS]
    found = np.full((len(fitting), CONTEXT + 1), BOS, np.int32)
    for row, tokens in zip(found, fitting, strict=True):
        row[: len(tokens)] = tokens
    assert len(found) == 2 * PAIRS
    return found


@pytest.fixture(scope="module")
def masks(rows: np.ndarray) -> np.ndarray:
    """1 where the assistant wrote the target, as rendering said."""
    several = [render(one, TOKENIZER) for one in conversations(80)]
    spoken = {tuple(one.tokens): one.assistant for one in several}
    found = np.zeros((len(rows), CONTEXT))
    for row, mask in zip(rows, found, strict=True):
        length = 1 + int(np.flatnonzero(row).max())
        mask[: length - 1] = spoken[tuple(row[:length].tolist())][1:]
    return found


def plain_log_probabilities(weights: PyTree, rows: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """In NumPy, from the reference model."""
    found = []
    for row, mask in zip(rows, masks, strict=True):
        logits = reference_logits(SHAPE, weights, row[:-1].tolist(), np.flatnonzero(row[:-1] == BOS).tolist())
        picked = logits[np.arange(CONTEXT), row[1:]] - np.log(np.exp(logits).sum(-1))
        found.append((picked * mask).sum())
    return np.asarray(found)


def plain_loss(logs: Any, reference: Any, lengths: Any, kind: Kind, beta: float) -> Any:
    """Mean over pairs, from the papers' formulas; IPO's log-probabilities are per token."""
    chosen, rejected = logs[0::2] - reference[0::2], logs[1::2] - reference[1::2]
    if kind == "dpo":
        return jnp.mean(jnp.log1p(jnp.exp(-beta * (chosen - rejected))))
    margin = chosen / lengths[0::2] - rejected / lengths[1::2]
    return jnp.mean((margin - 1 / (2 * beta)) ** 2)


def keep(updates: PyTree, state: PyTree, weights: PyTree = None) -> tuple[PyTree, PyTree]:
    return updates, updates


SPY = optax.GradientTransformation(lambda weights: jax.tree.map(jnp.zeros_like, weights), keep)
"""An optimizer whose state is the last gradient."""


def batch_of(rows: np.ndarray, reference: np.ndarray, accumulate: int = 1) -> dict[str, jax.Array]:
    return {
        "rows": jnp.asarray(rows.reshape(accumulate, -1, rows.shape[-1])),
        "reference": jnp.asarray(reference.reshape(accumulate, -1), jnp.float32),
    }


@cache
def compiled(kind: Kind, beta: float) -> Any:
    return jax.jit(make_preference_step(MODEL, SPY, BOS, WEIGH, kind, beta))


def stepped(
    weights: PyTree, batch: dict[str, jax.Array], kind: Kind = "dpo", beta: float = 0.1
) -> tuple[PyTree, dict[str, float]]:
    """The gradient, and the metrics, of a step."""
    state = {"weights": weights, "optimizer": weights, "step": jnp.zeros((), jnp.int32)}
    state, metrics = compiled(kind, beta)(state, batch)
    return jax.device_get(state["optimizer"]), {name: float(value) for name, value in metrics.items()}


def test_log_probabilities_are_those_of_a_direct_forward(rows: np.ndarray, masks: np.ndarray) -> None:
    weights = random_weights(0)
    found = jax.jit(make_log_probability(MODEL, BOS, WEIGH))(weights, jnp.asarray(rows))
    np.testing.assert_allclose(found, plain_log_probabilities(weights, rows, masks), rtol=1e-5)


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_losses_margins_and_slopes_are_the_papers(kind: Kind, beta: float) -> None:
    dice = np.random.default_rng(0)
    logs, reference = dice.normal(-50, 9, 12), dice.normal(-50, 9, 12)
    lengths = dice.integers(5, 90, 12).astype(float)

    def ours(gain: jax.Array) -> jax.Array:
        return jnp.mean(preference_loss(gain, jnp.asarray(lengths, jnp.float32), kind, beta)[0])

    with jax.enable_x64(True):
        plain = jax.value_and_grad(lambda logs: plain_loss(logs, jnp.asarray(reference), lengths, kind, beta))
        wanted = jax.device_get(plain(jnp.asarray(logs)))
    found = jax.value_and_grad(ours)(jnp.asarray(logs - reference, jnp.float32))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_a_step_moves_the_weights_as_autodiff_through_log_probabilities_would(
    rows: np.ndarray, masks: np.ndarray, kind: Kind, accumulate: int
) -> None:
    weights, before, beta = random_weights(0), random_weights(1), 0.1
    reference = plain_log_probabilities(before, rows, masks)
    logs = plain_log_probabilities(weights, rows, masks)
    lengths = masks.sum(1)

    # By the chain rule on the reference's float64 slopes; the model itself is differentiated by JAX, whole logits kept.
    with jax.enable_x64(True):
        slopes = np.asarray(jax.grad(lambda x: plain_loss(x, reference, lengths, kind, beta))(jnp.asarray(logs)))
        loss = float(plain_loss(jnp.asarray(logs), reference, lengths, kind, beta))

    def moved(weights: PyTree) -> jax.Array:
        return jnp.sum(jnp.asarray(slopes, jnp.float32) * whole_log_probabilities(weights, rows, masks))

    gradient, metrics = stepped(weights, batch_of(rows, reference, accumulate), kind, beta)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    gain = logs - reference
    per = lengths if kind == "ipo" else np.ones_like(lengths)
    margins = (gain / per)[0::2] - (gain / per)[1::2]
    assert metrics["margin"] == pytest.approx(margins.mean(), rel=1e-4)
    assert metrics["accuracy"] == pytest.approx((margins > 0).mean())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4 * np.abs(b).max()),
        gradient,
        jax.grad(moved)(weights),
    )


def whole_log_probabilities(weights: PyTree, rows: np.ndarray, masks: np.ndarray) -> jax.Array:
    """Log-softmax of whole logits, differentiable: no chunks and no custom gradient of the loss."""
    filled, found = with_weights(MODEL, weights), unpack(jnp.asarray(rows), BOS)
    logs = jax.nn.log_softmax(filled.logits(filled.hidden(found.tokens, found.segments, found.positions)))
    picked = jnp.take_along_axis(logs, found.targets[..., None], axis=-1)[..., 0]
    return jnp.sum(picked * jnp.asarray(masks, jnp.float32), axis=1)


@pytest.mark.parametrize(("kind", "loss"), [("dpo", log(2)), ("ipo", 1 / (2 * 0.1) ** 2)])
def test_a_model_that_is_its_own_reference_has_no_margin(rows: np.ndarray, kind: Kind, loss: float) -> None:
    weights = random_weights(0)
    reference = np.asarray(jax.jit(make_log_probability(MODEL, BOS, WEIGH))(weights, jnp.asarray(rows)))
    metrics = stepped(weights, batch_of(rows, reference), kind)[1]
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["margin"] == pytest.approx(0.0, abs=1e-3)
    assert metrics["chosen_gain"] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_a_step_on_a_pair_raises_its_margin(rows: np.ndarray, kind: Kind) -> None:
    rule = optimizer(0.002, 0.0005)
    state: Any = {"weights": random_weights(0), "step": jnp.zeros((), jnp.int32)}
    state["optimizer"] = rule.init(state["weights"])
    score = jax.jit(make_log_probability(MODEL, BOS, WEIGH))
    pair = rows[:2]
    reference = np.asarray(score(state["weights"], jnp.asarray(pair)))
    step = jax.jit(make_preference_step(MODEL, rule, BOS, WEIGH, kind, 0.1))
    margins, losses = [], []
    for _ in range(4):
        state, metrics = step(state, batch_of(pair, reference))
        margins.append(float(metrics["margin"]))
        losses.append(float(metrics["loss"]))
    assert margins == sorted(margins) and margins[-1] > margins[0] + 1e-3
    assert losses == sorted(losses, reverse=True)


def test_what_the_user_and_the_tools_say_moves_nothing(rows: np.ndarray) -> None:
    """Two conversations in which the assistant says the same: there is nothing to prefer."""
    nobody = rows[:2].copy()
    nobody[:, 1:] = BOS
    gradient, metrics = stepped(random_weights(0), batch_of(nobody, np.zeros(2)))
    assert metrics["loss"] == pytest.approx(log(2))
    assert not any(np.any(one) for one in jax.tree.leaves(gradient))
