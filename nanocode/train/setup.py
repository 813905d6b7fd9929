"""From settings to what the loop needs: mesh, model, optimizer, and a state laid out over the devices."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from nanocode.config.settings import Settings, Training
from nanocode.model.transformer import Transformer, logical_axes, parameters
from nanocode.run.exits import ConfigurationError
from nanocode.train import mesh as meshes
from nanocode.train.optimizer import optimizer, schedule
from nanocode.train.step import State, TrainStep, abstract_model, init_state


@dataclass(frozen=True)
class Setup:
    """A model on a mesh."""

    mesh: Mesh
    model: Transformer
    """Without weights."""
    weights: PyTree
    """Shape, type and sharding of every weight."""

    @property
    def everywhere(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())


@dataclass(frozen=True)
class Trainer(Setup):
    """A model on a mesh, and how it learns."""

    optimizer: optax.GradientTransformation
    rate: optax.Schedule
    """Muon's learning rate by step: the one the curves show."""
    state: PyTree
    """Shape, type and sharding of everything that training changes: what restoring needs to know."""

    @property
    def layout(self) -> PyTree:
        return jax.tree.map(lambda x: x.sharding, self.state)


def make_setup(settings: Settings) -> Setup:
    """The model of these settings on all devices there are."""
    mesh = make_mesh(settings)
    model = abstract_model(settings.model, settings.pretrain.compute_dtype, settings.pretrain.remat)
    layout = meshes.weight_shardings(mesh, logical_axes(model))
    return Setup(mesh, model, jax.tree.map(_placed, parameters(model), layout))


def make_trainer(settings: Settings, stage: Training, steps: int) -> Trainer:
    """The same with everything that `steps` steps of a training stage need."""
    setup = make_setup(settings)
    warmup, decay = round(stage.warmup_share * steps), round(stage.decay_share * steps)
    rate = schedule(stage.matrix_rate, steps, warmup, decay)
    rule = optimizer(rate, schedule(stage.vector_rate, steps, warmup, decay), stage.weight_decay)
    shapes = jax.eval_shape(lambda: init_state(settings.model, rule, settings.seed))
    weights = jax.tree.map(lambda x: x.sharding, setup.weights)
    layout = {
        "weights": weights,
        "optimizer": meshes.optimizer_shardings(setup.mesh, shapes["optimizer"], weights),
        "step": setup.everywhere,
    }
    state = jax.tree.map(_placed, shapes, layout)
    return Trainer(setup.mesh, setup.model, setup.weights, rule, rate, state)


def _placed(shape: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


def make_mesh(settings: Settings) -> Mesh:
    """The mesh; `ConfigurationError` when devices or rows do not divide by it."""
    try:
        mesh = meshes.make_mesh(settings.pretrain.fsdp)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    rows = settings.pretrain.batch_tokens // settings.model.context // settings.pretrain.accumulate
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % ways:
        raise ConfigurationError(
            f"the {rows} rows of a micro-batch (pretrain.batch_tokens / model.context / pretrain.accumulate) are not "
            f"divisible by the {ways} devices that share them: change one of the three"
        )
    return mesh


def fresh_state(trainer: Trainer, settings: Settings) -> State:
    """Initial weights and moments, each made where it will live: no device ever holds the whole model."""
    make = jax.jit(lambda: init_state(settings.model, trainer.optimizer, settings.seed), out_shardings=trainer.layout)
    state: State = make()
    return state


def state_around(trainer: Trainer, weights: PyTree) -> State:
    """The state that begins at these weights, with zero moments. The weights are given away."""
    begin = jax.jit(
        lambda weights: {
            "weights": weights,
            "optimizer": trainer.optimizer.init(weights),
            "step": jnp.zeros((), jnp.int32),
        },
        donate_argnums=0,
        out_shardings=trainer.layout,
    )
    state: State = begin(weights)
    return state


def compiled_step(trainer: Trainer, train_step: TrainStep, state: State, batch: PyTree) -> Any:
    """The train step for this batch's shape, compiled; its metrics have the learning rate as well."""

    def step(state: State, batch: PyTree) -> tuple[State, dict[str, jax.Array]]:
        rate = trainer.rate(state["step"])
        state, metrics = train_step(state, batch)
        return state, {**metrics, "learning_rate": rate}

    jitted = jax.jit(step, donate_argnums=0, out_shardings=(trainer.layout, trainer.everywhere))
    return jitted.lower(state, batch).compile()
