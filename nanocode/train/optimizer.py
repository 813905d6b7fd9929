"""Muon for the layers' matrices, AdamW for embedding, head and vectors, and a warmup-stable-decay schedule.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest
semi-orthogonal matrix, roughly: 5 Newton-Schulz steps with the coefficients 3.4445, -4.7750, 2.0315 of that post
leave singular values in about 0.7..1.2. optax has it; stacked layers are its batch axis.
"""

from typing import Any

import jax
import optax
from jaxtyping import Array, Float, PyTree
from optax import contrib

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def schedule(peak: float, steps: int, warmup: int, decay: int) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup` steps, constant, and linear to 0 over the last `decay` of `steps`."""
    if warmup + decay > steps:
        raise ValueError(f"warmup {warmup} + decay {decay} is more than steps {steps}: shorten one of them")
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, max(warmup, 1)),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, max(decay, 1)),
        ],
        boundaries=[warmup, steps - decay],
    )


def muon(learning_rate: optax.ScalarOrSchedule, momentum: float = 0.95) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalized per matrix, scaled by √max(1, columns / rows) of an [in, out] matrix.

    optax corrects the bias of momentum and gradient apart: only the first steps differ from Jordan's code.
    """
    return optax.chain(
        contrib.scale_by_muon(
            ns_coeffs=NEWTON_SCHULZ,
            ns_steps=NEWTON_SCHULZ_STEPS,
            beta=momentum,
            nesterov=True,
            weight_dimension_numbers=_stacked_matrices,
        ),
        optax.stateless(lambda updates, _: jax.tree.map(_scale_by_shape, updates)),
        optax.scale_by_learning_rate(learning_rate),
    )


def optimizer(
    matrix_rate: optax.ScalarOrSchedule = 0.02,
    vector_rate: optax.ScalarOrSchedule = 0.003,
    weight_decay: float = 0.0,
    momentum: float = 0.95,
) -> optax.GradientTransformation:
    """The optimizer of a whole model, as `transformer.parameters` nests it."""
    # b2 0.95: the usual choice of language models, forgets in 20 steps instead of 1000 (nanochat uses it too).
    adam = optax.adamw(vector_rate, b1=0.8, b2=0.95, eps=1e-10, weight_decay=weight_decay)
    return optax.partition({"muon": muon(matrix_rate, momentum), "adam": adam}, kinds)


def kinds(weights: dict[str, PyTree]) -> PyTree:
    """`muon` for each stacked [L, rows, columns] matrix, `adam` for all else."""

    def kind(path: tuple[Any, ...], weight: jax.Array) -> str:
        in_layers = any(getattr(key, "key", None) == "layers" for key in path)
        return "muon" if in_layers and weight.ndim == 3 else "adam"

    return jax.tree_util.tree_map_with_path(kind, weights)


def _scale_by_shape(update: Float[Array, "L D F"]) -> Float[Array, "L D F"]:
    rows, columns = update.shape[-2:]
    return update * max(1.0, columns / rows) ** 0.5


def _stacked_matrices(weights: PyTree) -> PyTree:
    return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1), weights)
