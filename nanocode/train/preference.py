"""Direct preference optimisation: one step from pairs of conversations to new weights.

DPO (Rafailov et al. 2023, arXiv:2305.18290):  -log σ(β·Δ)
IPO (Azar et al. 2023, arXiv:2310.12036):      (Δ - 1/(2β))², Δ then per token

Δ = [log π(chosen) - log π₀(chosen)] - [log π(rejected) - log π₀(rejected)], summed over what the assistant wrote. The
reference π₀ is the model before this stage; its log-probabilities are computed once and come with the batch.

Axes: A accumulation steps, B rows of a micro-batch, B/2 pairs, T positions.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer, PyTree

from nanocode.model.transformer import SOFTCAP, Transformer
from nanocode.train.loss import next_token_loss, token_losses
from nanocode.train.step import State, TrainStep, unpack, with_weights
from nanocode.train.supervision import Weigh

Batch = dict[str, Array]
"""`rows` [A, B, T+1]: a conversation each, chosen and rejected in turn; `reference` [A, B]: their log-probabilities."""


def make_log_probability(model: Transformer, bos: int, weigh: Weigh) -> Callable[..., Float[Array, " B"]]:
    """`(weights, rows [B, T+1]) -> [B]`: the log-probability of what the assistant wrote in each row, in nats."""

    def log_probability(weights: PyTree, rows: Integer[Array, "B T1"]) -> Float[Array, " B"]:
        filled, unpacked = with_weights(model, weights), unpack(rows, bos, weigh)
        hidden = filled.hidden(unpacked.tokens, unpacked.segments, unpacked.positions)
        losses, _ = token_losses(hidden, filled.head_matrix(), unpacked.targets, SOFTCAP)
        return -jnp.sum(losses * unpacked.weights, axis=1)

    return log_probability


def preference_loss(
    gain: Float[Array, " B"], lengths: Float[Array, " B"], kind: Literal["dpo", "ipo"], beta: float
) -> tuple[Float[Array, " P"], Float[Array, " P"]]:
    """Loss and margin Δ of each pair; `gain` is log π - log π₀ per row, rows are chosen and rejected in turn."""
    if kind == "ipo":
        gain = gain / jnp.maximum(lengths, 1.0)
    margin = gain[0::2] - gain[1::2]
    if kind == "ipo":
        return jnp.square(margin - 1 / (2 * beta)), margin
    return -jax.nn.log_sigmoid(beta * margin), margin


def make_preference_step(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    bos: int,
    weigh: Weigh,
    kind: Literal["dpo", "ipo"],
    beta: float,
) -> TrainStep:
    """`(state, batch) -> (state, metrics)`; the loss is the mean over pairs."""

    def loss_sum(weights: PyTree, batch: Batch) -> tuple[Array, dict[str, Array]]:
        filled, rows = with_weights(model, weights), unpack(batch["rows"], bos, weigh)
        hidden, head = filled.hidden(rows.tokens, rows.segments, rows.positions), filled.head_matrix()
        # Two passes over the vocabulary, so that its logits are never kept: one says how much each row's
        # log-probability should move, the other moves it, as a language-model loss with that weight.
        nats, _ = token_losses(*jax.lax.stop_gradient((hidden, head)), rows.targets, SOFTCAP)
        lengths = jnp.sum(rows.weights, axis=1)

        def of_gain(gain: Float[Array, " B"]) -> tuple[Array, Array]:
            losses, margins = preference_loss(gain, lengths, kind, beta)
            return jnp.sum(losses), margins

        gain = -jnp.sum(nats * rows.weights, axis=1) - batch["reference"]
        (loss, margins), slope = jax.value_and_grad(of_gain, has_aux=True)(gain)
        moving = next_token_loss(hidden, head, rows.targets, -slope[:, None] * rows.weights, SOFTCAP).loss
        facts = {
            "loss": loss,
            "margin": jnp.sum(margins),
            "accuracy": jnp.sum((margins > 0).astype(jnp.float32)),
            "chosen_gain": jnp.sum(gain[0::2]),
        }
        return moving, facts

    def step(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        weights = state["weights"]
        micro, rows = batch["reference"].shape

        def accumulate(sums: Any, part: Batch) -> tuple[Any, None]:
            gradient, facts = jax.grad(loss_sum, has_aux=True)(weights, part)
            return jax.tree.map(jnp.add, sums, (facts, gradient)), None

        facts = {name: jnp.zeros(()) for name in ("loss", "margin", "accuracy", "chosen_gain")}
        (facts, gradient), _ = jax.lax.scan(accumulate, (facts, jax.tree.map(jnp.zeros_like, weights)), batch)
        pairs = micro * rows // 2
        gradient = jax.tree.map(lambda g: g / pairs, gradient)
        updates, moments = optimizer.update(gradient, state["optimizer"], weights)
        metrics = {name: value / pairs for name, value in facts.items()}
        new_weights = optax.apply_updates(weights, updates)
        return (
            {"weights": new_weights, "optimizer": moments, "step": state["step"] + 1},
            {**metrics, "gradient_norm": optax.tree.norm(gradient)},
        )

    return step
