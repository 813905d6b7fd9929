"""What Orbax has saved, read back over the devices at hand; refused, with the array at fault, if of another shape."""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from nanocode.run.exits import ConfigurationError
from nanocode.storage.objects import Store


def location(store: Store, name: str) -> str:
    """Of a checkpoint, as Orbax takes it."""
    return f"{store.url.rstrip('/')}/{name}"


def restored(store: Store, name: str, like: PyTree) -> PyTree:
    """All of the checkpoint `name`, laid out as `like`; `ConfigurationError` if of another shape."""
    place = epath.Path(location(store, name))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        saved = checkpointer.metadata(place).item_metadata.tree
        _refuse_other_shapes(name, saved, like)
        wanted = jax.tree.map(
            lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype), like
        )
        return checkpointer.restore(place, args=ocp.args.PyTreeRestore(item=like, restore_args=wanted))


def restore_weights(store: Store, name: str, like: PyTree) -> PyTree:
    """Only the weights of the checkpoint `name`, laid out as `like`; `ConfigurationError` if of another shape."""
    place = epath.Path(location(store, name))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        saved = checkpointer.metadata(place).item_metadata.tree["weights"]
        _refuse_other_shapes(name, saved, like)
        wanted = jax.tree.map(
            lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype), {"weights": like}
        )
        args = ocp.args.PyTreeRestore(item={"weights": like}, restore_args=wanted, partial_restore=True)
        return checkpointer.restore(place, args=args)["weights"]


def _refuse_other_shapes(name: str, saved: PyTree, like: PyTree) -> None:
    have = {_path(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
    want = {_path(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    for key in sorted(have.keys() | want.keys()):
        if have.get(key) != want.get(key):
            raise ConfigurationError(
                f"checkpoint {name} is of another shape: {key} is {have.get(key)}, this model needs {want.get(key)}; "
                "use the settings it was made with, or another run directory"
            )


def _path(path: tuple[Any, ...]) -> str:
    """One spelling for dictionary keys, attributes and indices: Orbax reads tuples back as dictionaries or lists."""
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
