"""A run whose stages are done with untrained weights: what chat, ask and eval load, in a second."""

from datetime import UTC, datetime
from pathlib import Path

import jax
from flax import nnx

from nanocode.config.settings import load
from nanocode.model.transformer import Transformer, parameters
from nanocode.run.directory import Marker, RunDirectory
from nanocode.storage.objects import open_store
from nanocode.text.tokenizer import train
from nanocode.train.checkpoints import Checkpoints

DIGEST = "0123456789abcdef"
SETTINGS = (
    "model.layers=1",
    "model.width=32",
    "model.context=64",
    "model.vocab_size=300",
    "pretrain.batch_tokens=256",
    "pretrain.accumulate=1",
    "sft.batch_tokens=256",
    "sft.accumulate=1",
)


def make_run(folder: Path, *stages: str) -> RunDirectory:
    """A run in which the tokenizer and these stages are done, each with weights from another seed."""
    run = RunDirectory(open_store(folder))
    settings = load("demo", SETTINGS, environment={})
    run.add_config(settings.to_yaml())
    run.store.write("tokenizer/tokenizer.json", train(["def f(x):\n    return x\n"] * 9, 300, 2, True).to_bytes())
    mark(run, "tokenizer", {"tokenizer": "tokenizer/tokenizer.json"})
    for seed, stage in enumerate(stages):
        checkpoints = Checkpoints(run, stage, run.claim(stage, DIGEST, "test"), DIGEST)
        weights = jax.device_get(parameters(Transformer(settings.model, nnx.Rngs(seed))))
        checkpoints.save(0, {"weights": weights}, {})
        checkpoints.close()
        mark(run, stage, {"checkpoint": checkpoints.found()[0].name})
    return run


def mark(run: RunDirectory, stage: str, outputs: dict[str, str]) -> None:
    now = datetime.now(UTC)
    run.finish(stage, Marker(stage=stage, input_digest=DIGEST, attempt=1, outputs=outputs, started=now, ended=now))
