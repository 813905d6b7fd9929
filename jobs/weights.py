"""`nanocode import` and `nanocode export`: weights between a run and a folder that `transformers` loads."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from jaxtyping import PyTree

from jobs.process import versions
from nanocode.config.refusals import cause
from nanocode.config.settings import load
from nanocode.model import huggingface
from nanocode.run.digests import stage_digests
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.exits import ConfigurationError
from nanocode.run.settling import pinned, read_settings
from nanocode.storage.objects import open_store
from nanocode.text.special import ASSISTANT_END, BOS, SPECIAL_TOKENS
from nanocode.text.tokenizer import Tokenizer
from nanocode.train.checkpoints import Checkpoints
from nanocode.train.restored import restore_weights
from nanocode.train.setup import make_setup


def export(location: str, stage: str, folder: Path) -> None:
    """Write the weights of a finished stage, its config and its tokenizer into `folder`."""
    run = RunDirectory(open_store(location))
    settings = read_settings(run)
    marker, tokenizer = run.done(stage), run.done("tokenizer")
    if marker is None or tokenizer is None:
        raise ConfigurationError(
            f"stage {stage} is not done in {location}: run `nanocode run --run-dir {location}` first"
        )
    if settings.model.extras:
        raise ConfigurationError(
            f"cannot export {location}: the NanoChat layout has no place for {', '.join(settings.model.extras)}; "
            "train with these switched off (presets d3 to d24 are)"
        )
    weights = jax.device_get(restore_weights(run.store, marker.outputs["checkpoint"], make_setup(settings).weights))
    data = run.store.read(tokenizer.outputs["tokenizer"])
    ids = Tokenizer.from_bytes(data).special
    huggingface.export(settings.model, weights, folder, data, ids[BOS], ids[ASSISTANT_END])


def import_run(folder: Path, location: str, preset: str) -> None:
    """Begin a run whose tokenizer and pretrain stages are done with published weights and their tokenizer."""
    run = RunDirectory(open_store(location))
    if run.latest_config() is not None:
        raise ConfigurationError(f"{location} is a run already: import into a new run directory")
    try:
        shape, weights = huggingface.load(folder)
        tokenizer = _read_tokenizer(folder)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {folder} ({cause(error)}): give a folder with config.json and weights"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"cannot import {folder}: {error}") from error
    size = max(shape.vocab_size, tokenizer.vocab_size)
    weights = _with_vocabulary(weights, size)
    shape = shape.model_copy(update={"vocab_size": size})
    base = load(preset, environment={}).model_dump(mode="json")
    rows = max(1, round(base["pretrain"]["batch_tokens"] / shape.context))
    base["pretrain"] |= {"batch_tokens": rows * shape.context, "accumulate": 1}
    settings = pinned(load(preset, base=base | {"model": shape.model_dump(mode="json")}, environment={}), run)
    digests = stage_digests(settings, run)
    run.add_config(settings.to_yaml())
    origin = {"imported": folder.resolve().name}
    name = f"{run.output_folder('tokenizer', digests['tokenizer'])}/tokenizer.json"
    run.store.write(name, tokenizer.to_bytes())
    facts: dict[str, Any] = {**origin, "vocab_size": tokenizer.vocab_size}
    _mark(run, "tokenizer", digests["tokenizer"], {"tokenizer": name}, facts)
    attempt = run.claim("pretrain", digests["pretrain"], "nanocode import")
    checkpoints = Checkpoints(run, "pretrain", attempt, digests["pretrain"])
    checkpoints.save(0, {"weights": weights}, {})
    checkpoints.close()
    outputs = {"checkpoint": checkpoints.found()[0].name}
    _mark(run, "pretrain", digests["pretrain"], outputs, {**origin, "parameters": shape.parameters()}, attempt)


def _read_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer; special tokens of ours that it lacks are appended."""
    path = folder / "tokenizer.json"
    if not path.exists():  # another tokenizer's ids mean nothing to these weights
        raise ValueError("it has no tokenizer.json: put the one that these weights were trained with beside them")
    json.loads(path.read_bytes())
    inner = tokenizers.Tokenizer.from_file(str(path))
    inner.add_special_tokens([name for name in SPECIAL_TOKENS if inner.token_to_id(name) is None])
    return Tokenizer(inner)


def _with_vocabulary(weights: dict[str, PyTree], size: int) -> dict[str, PyTree]:
    """The weights with room for `size` tokens; new ones begin as the mean of the others, unlikely to stand out."""
    embed, head = np.asarray(weights["embed"]), np.asarray(weights["head"])
    new = size - len(embed)
    if not new:
        return weights
    embed = np.concatenate([embed, np.repeat(embed.mean(0, keepdims=True), new, 0)])
    head = np.concatenate([head, np.repeat(head.mean(1, keepdims=True), new, 1)], axis=1)
    return {**weights, "embed": jax.numpy.asarray(embed), "head": jax.numpy.asarray(head)}


def _mark(
    run: RunDirectory, stage: str, digest: str, outputs: dict[str, str], metrics: dict[str, Any], attempt: int = 0
) -> None:
    now = datetime.now(UTC)
    run.finish(
        stage,
        Marker(stage=stage, input_digest=digest, attempt=attempt, outputs=outputs, metrics=metrics,
               versions=versions(), started=now, ended=now),
    )  # fmt: skip
