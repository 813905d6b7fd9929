"""What a run has made, to be compared with what another one has made."""

import re
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from nanocode.run.graph import STAGES
from tests.cluster.releases import Release

OUTPUTS = set(STAGES) - {"report"}
NO_OUTPUTS = ("attempts/", "leases/")
"""Of a stage: who worked at it, and when."""


def results(release: Release) -> dict[str, bytes]:
    """Every output but weights and the report, by name: shards, rollouts, pairs, evaluation answers."""
    store, found = release.directory.store, {}
    for name in store.list():
        stage, _, rest = name.partition("/")
        # A quick worker may read a unit of the corpus that no shard needs, before the others have said how much they have.
        if stage in OUTPUTS and "/" in rest and not rest.startswith(NO_OUTPUTS) and "/units/" not in rest:
            # Rows of a later attempt stand beside those of an earlier one.
            found[re.sub(r"/rows-\d+/", "/rows/", name)] = store.read(name)
    return found


def weights(release: Release, stage: str) -> Any:
    """The last checkpoint of a stage, on this machine, wherever it was trained."""
    marker = release.directory.done(stage)
    assert marker is not None
    location = epath.Path(f"{release.location}/{marker.outputs['checkpoint']}")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        saved = checkpointer.metadata(location).item_metadata.tree
        here = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        return checkpointer.restore(location, args=ocp.args.PyTreeRestore(restore_args=here))


def assert_same_weights(one: Release, other: Release, stage: str) -> None:
    jax.tree.map(np.testing.assert_array_equal, weights(one, stage), weights(other, stage))


def assert_same_ending(one: Release, other: Release) -> None:
    """Shards, rollouts, pairs, evaluation answers and weights: the same bytes."""
    mine, its = results(one), results(other)
    assert (sorted(set(mine) - set(its)), sorted(set(its) - set(mine))) == ([], []), "only here, only there"
    assert {name.partition("/")[0] for name in mine} > {"corpus", "synth", "preference", "agent-eval"}
    assert [name for name in mine if mine[name] != its[name]] == []
    for stage in ("pretrain", "sft", "preference"):
        assert_same_weights(one, other, stage)
