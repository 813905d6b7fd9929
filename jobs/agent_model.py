"""The agent that a run has trained so far, ready to speak: weights, tokenizer, and an engine held to the grammar."""

from dataclasses import dataclass

import jax
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from nanocode.agent.policies import make_engine
from nanocode.config.settings import Settings
from nanocode.generate.engine import Engine
from nanocode.model.transformer import Transformer, parameters
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.exits import ConfigurationError
from nanocode.run.settling import read_settings
from nanocode.storage.objects import open_store
from nanocode.text.tokenizer import Tokenizer
from nanocode.train.restored import restore_weights
from nanocode.train.step import abstract_model

NEWEST_FIRST = ("preference", "sft", "pretrain")
"""Stages that leave weights; each begins with those of the one after it here."""


@dataclass(frozen=True)
class AgentModel:
    """What a run has trained."""

    stage: str
    settings: Settings
    tokenizer: Tokenizer
    engine: Engine


def load_agent(location: str, stage: str | None = None, slots: int = 1) -> AgentModel:
    """The newest stage that is done, or the one that is asked for; `ConfigurationError` when there is none."""
    run = RunDirectory(open_store(location))
    settings = read_settings(run)
    found, checkpoint = newest(run, location, stage)
    marker = run.done("tokenizer")
    if marker is None:
        raise ConfigurationError(
            f"stage tokenizer is not done in {location}: `nanocode run --run-dir {location} --stages tokenizer` does it"
        )
    tokenizer = Tokenizer.from_bytes(run.store.read(marker.outputs["tokenizer"]))
    model, weights = load_weights(run, settings, checkpoint)
    return AgentModel(found, settings, tokenizer, make_engine(model, weights, tokenizer, slots))


def load_weights(run: RunDirectory, settings: Settings, checkpoint: Marker) -> tuple[Transformer, PyTree]:
    """The model, and the weights that a stage's marker names, on one device.

    Training's mesh has to divide its batch; decoding takes one device, however many there are.
    """
    model = abstract_model(settings.model, settings.pretrain.compute_dtype, remat=False)
    here = SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), parameters(model))
    return model, restore_weights(run.store, checkpoint.outputs["checkpoint"], like)


def newest(run: RunDirectory, location: str, stage: str | None) -> tuple[str, Marker]:
    """The newest stage with weights (or this one) and its marker; `ConfigurationError` when there is none."""
    for name in NEWEST_FIRST if stage is None else (stage,):
        marker = run.done(name)
        if marker is not None and "checkpoint" in marker.outputs:
            return name, marker
    what = f"stage {stage} is not done" if stage is not None else "no stage that trains is done yet"
    raise ConfigurationError(
        f"{what} in {location}, so there are no weights: `nanocode status {location}` says how far it is, "
        f"`nanocode run --run-dir {location}` goes on with it"
    )
