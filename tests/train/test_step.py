"""The train step: what it learns, and that accumulation and meshes change nothing but the order of sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanocode.config.shape import ModelShape
from nanocode.model.transformer import logical_axes
from nanocode.train import mesh as meshes
from nanocode.train.optimizer import optimizer
from nanocode.train.step import abstract_model, init_state, make_train_step, unpack

pytestmark = pytest.mark.slow

SHAPE = ModelShape(
    layers=2, width=32, heads=2, vocab_size=64, context=32, previous_token_keys=0.5, tied_embeddings=True
)
BOS = 0
OPTIMIZER = optimizer(0.02, 0.004)


def rows(count: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(1, SHAPE.vocab_size, (count, SHAPE.context + 1), dtype=np.uint16)
    drawn[:, 0] = BOS
    drawn[1::2, 11] = BOS
    return drawn


def steps(batch: jax.Array, count: int) -> tuple[dict, list[float]]:
    step = jax.jit(make_train_step(abstract_model(SHAPE, "float32"), OPTIMIZER, BOS))
    state, losses = init_state(SHAPE, OPTIMIZER, 0), []
    for _ in range(count):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


def test_unpack_finds_documents_positions_and_targets_by_bos() -> None:
    packed = jnp.asarray([[BOS, 5, 6, BOS, 7, BOS]])
    found = unpack(packed, BOS)
    assert found.segments.tolist() == [[0, 0, 0, 3, 3]]
    assert found.positions.tolist() == [[0, 1, 2, 0, 1]]
    assert found.weights.tolist() == [[1, 1, 0, 1, 0]]


def test_it_overfits_one_batch() -> None:
    losses = steps(jnp.asarray(rows(4)[None]), 250)[1]
    assert losses[0] == pytest.approx(np.log(SHAPE.vocab_size), abs=0.5)
    documents, targets = 6, 4 * SHAPE.context - 2
    floor = documents * np.log(documents) / targets  # which document begins cannot be known
    assert floor - 1e-3 < losses[-1] < floor + 0.02


def test_accumulation_changes_nothing_but_the_order_of_sums() -> None:
    batch = rows(8)
    whole, halves = (steps(jnp.asarray(batch.reshape(n, 8 // n, -1)), 2) for n in (1, 4))
    np.testing.assert_allclose(whole[1], halves[1], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), whole[0]["weights"], halves[0]["weights"])


@pytest.mark.slow
@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 1), (8, 1), (4, 1), (2, 2)])
def test_eight_devices_agree_with_one(fsdp: int, tensor: int) -> None:
    assert jax.device_count() == 8, "conftest asks for 8 fake devices"
    batch = rows(8)[None]
    state, losses = steps(jnp.asarray(batch), 3)
    mesh = meshes.make_mesh(fsdp, tensor)
    model = abstract_model(SHAPE, "float32")
    sharded = init_state(SHAPE, OPTIMIZER, 0)
    weights = meshes.weight_shardings(mesh, logical_axes(model))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    layout = {
        "weights": weights,
        "optimizer": meshes.optimizer_shardings(mesh, sharded["optimizer"], weights),
        "step": everywhere,
    }
    step = jax.jit(make_train_step(model, OPTIMIZER, BOS), out_shardings=(layout, everywhere))
    sharded = jax.device_put(sharded, layout)
    found = []
    for _ in range(3):
        sharded, metrics = step(sharded, meshes.global_batch(mesh, batch, axis=1))
        found.append(float(metrics["loss"]))
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), sharded["weights"], state["weights"])
    if fsdp > 1:
        up = sharded["weights"]["layers"]["up"]
        assert up.addressable_shards[0].data.size * fsdp * tensor == up.size


def test_a_mesh_axis_is_never_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(meshes.RULES, "mlp", "fsdp")
    with pytest.raises(ValueError, match="one mesh axis twice"):
        meshes.spec(("layers", "width", "mlp"))


def test_every_extra_has_a_place_on_every_mesh() -> None:
    shape = SHAPE.model_copy(update={"residual_scalars": True, "value_embeddings": True, "tied_embeddings": False})
    model = abstract_model(shape, "float32")
    layout = meshes.weight_shardings(meshes.make_mesh(2, 2), logical_axes(model))
    state = init_state(shape, OPTIMIZER, 0)
    placed = jax.device_put(state["weights"], layout)
    assert placed["value_embed"].addressable_shards[0].data.size * 4 == placed["value_embed"].size
