"""Where everything lives: one mesh, one table from logical axis to mesh axis, shardings derived from it.

The mesh has three axes: `data` (replicas), `fsdp` (weights and optimizer state split, gathered layer by layer) and
`tensor` (heads and feed-forward width split). A batch is split over data and fsdp together.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

RULES: dict[str, str | None] = {
    "layers": None,
    "width": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "kv_head": None,
    "mlp": "tensor",
    "vocab": "tensor",
}
"""Logical axis -> mesh axis."""

BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(fsdp: int = 1, tensor: int = 1) -> Mesh:
    """All devices of all hosts; `ValueError` when they do not divide by fsdp·tensor."""
    devices = np.array(jax.devices())
    if devices.size % (fsdp * tensor):
        raise ValueError(
            f"{devices.size} devices are not divisible by fsdp {fsdp} x tensor {tensor}: set pretrain.fsdp"
        )
    return Mesh(devices.reshape(-1, fsdp, tensor), ("data", "fsdp", "tensor"))


def spec(axes: tuple[str, ...]) -> PartitionSpec:
    """The partition of a weight with these logical axes; `ValueError` if two of them want one mesh axis."""
    mapped = [RULES[axis] for axis in axes]
    used = [axis for axis in mapped if axis is not None]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {axes} map to {mapped}, one mesh axis twice: change RULES")
    return PartitionSpec(*mapped)


def weight_shardings(mesh: Mesh, axes: PyTree) -> PyTree:
    """A sharding per weight, from the tree that `transformer.logical_axes` gives."""
    return jax.tree.map(lambda a: NamedSharding(mesh, spec(a)), axes, is_leaf=lambda a: isinstance(a, tuple))


def optimizer_shardings(mesh: Mesh, state: PyTree, weights: PyTree) -> PyTree:
    """The optimizer's state lies as the weights it belongs to; counters are everywhere.

    A moment is known by its path, which ends in the path of its weight: optax keeps the weights' nesting.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_path = {_names(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(weights)}

    def place(path: tuple[Any, ...], _: jax.Array) -> NamedSharding:
        names = _names(path)
        return next((by_path[names[i:]] for i in range(len(names)) if names[i:] in by_path), everywhere)

    return jax.tree_util.tree_map_with_path(place, state)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def global_batch(mesh: Mesh, rows: np.ndarray, axis: int = 0) -> jax.Array:
    """This host's rows as its part of one array over all hosts, split along `axis` over data and fsdp."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, *BATCH))
    return jax.make_array_from_process_local_data(sharding, rows)
