"""One optimizer step of the language model, from packed rows to new weights.

A row holds T + 1 tokens; a BOS starts each document and is never a target, so segments, positions and the loss mask
all follow from where the BOS stand.

Axes: A accumulation steps, B rows of a micro-batch, T positions, D width, V vocabulary. `Integer` is `Int` or unsigned:
shards hold uint16.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Integer, PyTree

from nanocode.config.shape import ModelShape
from nanocode.model.transformer import SOFTCAP, Transformer, parameters
from nanocode.train.loss import LossSums, next_token_loss, token_losses
from nanocode.train.supervision import Weigh

State = dict[str, Any]
"""`weights`, `optimizer` and `step`, a tree of arrays: what a checkpoint holds."""
TrainStep = Callable[[State, Any], tuple[State, dict[str, Array]]]
"""From a state and a batch to the next state and metrics; to be jitted with the state donated."""


class Rows(NamedTuple):
    """What the model reads of packed rows."""

    tokens: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    weights: Float[Array, "B T"]


def unpack(rows: Integer[Array, "B T1"], bos: int, weigh: Weigh | None = None) -> Rows:
    """Documents begin at each BOS; positions count from there; a BOS is no target. All others weigh 1, or `weigh`."""
    rows = rows.astype(jnp.int32)
    tokens, targets = rows[:, :-1], rows[:, 1:]
    index = jnp.arange(tokens.shape[1])[None]
    # A segment is known by where it starts. (A scan in log T steps: XLA's cumulative maximum takes T² on a CPU.)
    starts = jax.lax.associative_scan(jnp.maximum, jnp.where(tokens == bos, index, 0), axis=1)
    weights = weigh(rows) if weigh is not None else (targets != bos).astype(jnp.float32)
    return Rows(tokens, starts, index - starts, targets, weights)


def abstract_model(shape: ModelShape, compute_dtype: str, remat: bool = False) -> Transformer:
    """The model without weights: its graph, to be filled with a state's."""
    # A loop over the layers would copy what it saves for the backward in and out of stacks: a quarter of a CPU's time.
    # On accelerators that is hidden, and compiling one layer instead of all of them is worth more.
    unroll = jax.default_backend() == "cpu"
    return nnx.eval_shape(lambda: Transformer(shape, nnx.Rngs(0), jnp.dtype(compute_dtype), remat, unroll))


def with_weights(model: Transformer, weights: PyTree) -> Transformer:
    """The model's graph around these weights; the given model stays as it is."""
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)


def init_state(shape: ModelShape, optimizer: optax.GradientTransformation, seed: int) -> State:
    """Fresh weights from the seed, zero moments, step 0."""
    weights = parameters(Transformer(shape, nnx.Rngs(seed)))
    return {"weights": weights, "optimizer": optimizer.init(weights), "step": jnp.zeros((), jnp.int32)}


def make_train_step(
    model: Transformer, optimizer: optax.GradientTransformation, bos: int, weigh: Weigh | None = None
) -> TrainStep:
    """`(state, rows [A, B, T+1]) -> (state, metrics)`; `weigh` gives each target's weight, else all but BOS count."""

    def loss_sum(weights: PyTree, rows: Rows) -> Float[Array, ""]:
        filled = with_weights(model, weights)
        hidden = filled.hidden(rows.tokens, rows.segments, rows.positions)
        sums: LossSums = next_token_loss(hidden, filled.head_matrix(), rows.targets, rows.weights, SOFTCAP)
        return sums.loss

    def train_step(state: State, batch: Integer[Array, "A B T1"]) -> tuple[State, dict[str, Array]]:
        weights = state["weights"]

        def accumulate(sums: tuple[Array, Array, PyTree], rows: Integer[Array, "B T1"]) -> tuple[Any, None]:
            unpacked = unpack(rows, bos, weigh)
            loss, gradient = jax.value_and_grad(loss_sum)(weights, unpacked)
            return jax.tree.map(jnp.add, sums, (loss, jnp.sum(unpacked.weights), gradient)), None

        if batch.shape[0] == 1:  # spares a copy of the gradients
            unpacked = unpack(batch[0], bos, weigh)
            loss, gradient = jax.value_and_grad(loss_sum)(weights, unpacked)
            tokens = jnp.sum(unpacked.weights)
        else:
            zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, weights))
            (loss, tokens, gradient), _ = jax.lax.scan(accumulate, zero, batch)
        tokens = jnp.maximum(tokens, 1.0)
        gradient = jax.tree.map(lambda g: g / tokens, gradient)
        updates, moments = optimizer.update(gradient, state["optimizer"], weights)
        metrics = {"loss": loss / tokens, "gradient_norm": optax.tree.norm(gradient), "tokens": tokens}
        new_weights = optax.apply_updates(weights, updates)
        return {"weights": new_weights, "optimizer": moments, "step": state["step"] + 1}, metrics

    return train_step


def make_score(model: Transformer, bos: int) -> Callable[[PyTree, Integer[Array, "B T1"]], tuple[Array, Array, Array]]:
    """`(weights, rows) -> (losses, weights, likeliest)`, each [B, T]: nats per target, its mask, the greedy token."""

    def score(weights: PyTree, rows: Integer[Array, "B T1"]) -> tuple[Array, Array, Array]:
        filled, unpacked = with_weights(model, weights), unpack(rows, bos)
        hidden = filled.hidden(unpacked.tokens, unpacked.segments, unpacked.positions)
        losses, likeliest = token_losses(hidden, filled.head_matrix(), unpacked.targets, SOFTCAP)
        return losses, unpacked.weights, likeliest

    return score
