"""Checkpoints on a folder and on a bucket: only whole ones count, and damage costs one checkpoint, not the run."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError
from nanocode.storage.objects import LocalStore, open_store
from nanocode.train.checkpoints import Checkpoints
from nanocode.train.mesh import make_mesh
from nanocode.train.preemption import Preempted
from tests.train.test_step import OPTIMIZER, SHAPE, init_state

pytestmark = pytest.mark.slow

DIGEST = "0123456789abcdef" * 2


def saved(run: RunDirectory, steps: list[int], digest: str = DIGEST, keep: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(run, "pretrain", run.claim("pretrain", digest, "test"), digest, keep)
    for step in steps:
        checkpoints.save(step, state(step), {"next_batch": step})
        checkpoints.wait()
    return checkpoints


def state(step: int) -> dict:
    fresh = init_state(SHAPE, OPTIMIZER, seed=step)
    return {**fresh, "step": jnp.asarray(step, jnp.int32)}


def like() -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))


def assert_same(found: dict, wanted: dict) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(LocalStore(tmp_path))


def test_the_newest_of_any_attempt_with_the_same_digest_comes_back_bit_by_bit(run: RunDirectory) -> None:
    saved(run, [5]).close()
    saved(run, [3]).close()
    saved(run, [9], digest="f" * 32).close()
    checkpoints = saved(run, [])
    restored, found = checkpoints.restore(like())
    assert (found.step, found.attempt, found.marker["position"]) == (5, 1, {"next_batch": 5})
    assert_same(restored, state(5))


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "no marker", "half a marker"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(run: RunDirectory, tmp_path: Path, harm: str) -> None:
    saved(run, [4, 8]).close()
    folder = tmp_path / "pretrain/attempts/1/checkpoints"
    victim = max((p for p in (folder / "8").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = victim.read_bytes()
    match harm:
        case "truncate":
            victim.write_bytes(data[: len(data) // 2])
        case "flip":
            victim.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        case "remove":
            victim.unlink()
        case "no marker":
            (folder / "8.json").unlink()
        case "half a marker":
            text = (folder / "8.json").read_bytes()
            (folder / "8.json").write_bytes(text[: len(text) // 2])
    restored, found = saved(run, []).restore(like())
    assert found.step == 4
    assert_same(restored, state(4))


def test_old_checkpoints_are_pruned(run: RunDirectory, tmp_path: Path) -> None:
    saved(run, [1, 2, 3, 4], keep=2).close()
    names = sorted(p.name for p in (tmp_path / "pretrain/attempts/1/checkpoints").iterdir())
    assert names == ["3", "3.json", "4", "4.json"]


def test_pruning_keeps_the_only_good_one_though_a_damaged_one_is_newer(run: RunDirectory, tmp_path: Path) -> None:
    saved(run, [4, 900]).close()
    next(p for p in (tmp_path / "pretrain/attempts/1/checkpoints/900").rglob("*") if p.is_file()).unlink()
    checkpoints = saved(run, [], keep=1)
    assert checkpoints.restore(like())[1].step == 4
    checkpoints.save(8, state(8), {})
    checkpoints.close()
    assert [one.step for one in checkpoints.found()] == [8]
    assert saved(run, []).restore(like())[1].step == 8


def test_what_earlier_attempts_left_half_written_is_removed(run: RunDirectory, tmp_path: Path) -> None:
    saved(run, [1], digest="f" * 32).close()
    checkpoints = saved(run, [])
    run.claim("pretrain", DIGEST, "a later one")
    folders = [tmp_path / f"pretrain/attempts/{attempt}/checkpoints" for attempt in (1, 2, 3)]
    for folder in folders:
        (folder / "7.orbax-checkpoint-tmp/d").mkdir(parents=True)
        (folder / "7.orbax-checkpoint-tmp/d/part").write_bytes(b"half")
    checkpoints.remove_half_written()
    left = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert left == [["1", "1.json"], ["7.orbax-checkpoint-tmp"], ["7.orbax-checkpoint-tmp"]]


def test_an_attempt_that_was_overtaken_marks_nothing(run: RunDirectory) -> None:
    zombie, later = saved(run, [1]), saved(run, [])
    zombie.save(2, state(2), {})
    with pytest.raises(Preempted, match="attempt 2 of pretrain has overtaken attempt 1"):
        zombie.wait()
    assert [one.step for one in later.found()] == [1]


def test_a_checkpoint_of_another_shape_is_refused_with_both_shapes(run: RunDirectory) -> None:
    checkpoints = saved(run, [1])
    other = like()
    embed = other["weights"]["embed"]
    other["weights"]["embed"] = jax.ShapeDtypeStruct((7, 32), embed.dtype, sharding=embed.sharding)
    with pytest.raises(ConfigurationError, match=r"weights.embed is \(64, 32\), this model needs \(7, 32\)"):
        checkpoints.restore(other)


def test_it_restores_onto_another_mesh(run: RunDirectory) -> None:
    saved(run, [6]).close()
    mesh = make_mesh(fsdp=8)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows if x.shape and x.shape[0] % 8 == 0 else whole),
        like(),
    )
    restored, _ = saved(run, []).restore(split)
    assert restored["weights"]["embed"].sharding == rows
    assert_same(jax.device_get(restored), jax.device_get(state(6)))


def test_a_save_is_not_touched_by_the_next_donated_step(run: RunDirectory) -> None:
    checkpoints = saved(run, [])
    bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    current = state(2)
    wanted = jax.device_get(jax.tree.map(jnp.copy, current))
    checkpoints.save(2, current, {})
    for _ in range(5):
        current = bump(current)
    checkpoints.wait()
    restored, _ = checkpoints.restore(like())
    assert_same(jax.device_get(restored), wanted)


def test_a_bucket_holds_checkpoints_too(gcs_url: str) -> None:
    run = RunDirectory(open_store(gcs_url))
    saved(run, [1, 2], keep=1).close()
    restored, found = saved(run, []).restore(like())
    assert found.step == 2
    assert_same(restored, state(2))
    assert not run.store.list("pretrain/attempts/1/checkpoints/1")
    marker = json.loads(run.store.read("pretrain/attempts/1/checkpoints/2.json"))
    assert marker["files"]
