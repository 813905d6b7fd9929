"""What is measured, each beside the bound it is measured against, in the same process."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nanocode.config.settings import Settings, load
from nanocode.data.packing import pack, waste
from nanocode.data.shards import Rows
from nanocode.run.directory import RunDirectory
from nanocode.storage.objects import LocalStore
from nanocode.text import corpus, mixture
from nanocode.text.tokenizer import train
from nanocode.train import mesh as meshes
from nanocode.train.checkpoints import Checkpoints
from nanocode.train.loop import read_ahead
from nanocode.train.setup import compiled_step, fresh_state, make_trainer
from nanocode.train.step import make_train_step
from nanocode.train.throughput import measured_matmul_flops
from tests.bench import decode

RUNS = 5
Result = dict[str, float | str]


def step_of(settings: Settings) -> tuple[Any, Any, Any, Any]:
    """Trainer, state, batch and compiled step of some settings, on random rows of two documents each."""
    trainer = make_trainer(settings, settings.pretrain, settings.pretrain_steps)
    state = fresh_state(trainer, settings)
    pretrain, shape = settings.pretrain, settings.model
    size = (pretrain.accumulate, pretrain.batch_tokens // shape.context // pretrain.accumulate, shape.context + 1)
    rows = np.random.default_rng(0).integers(1, shape.vocab_size, size).astype(np.int32)
    rows[..., 0] = rows[..., 100] = 0
    batch = meshes.global_batch(trainer.mesh, rows, axis=1)
    return (
        trainer,
        state,
        batch,
        compiled_step(trainer, make_train_step(trainer.model, trainer.optimizer, 0), state, batch),
    )


def train_step(preset: str, *overrides: str) -> Result:
    """Steps and matmuls take turns, so that both see the same machine; the medians are compared."""
    settings = load(preset, overrides)
    _, state, batch, step = step_of(settings)
    state, _ = jax.block_until_ready(step(state, batch))
    seconds, peaks = [], []
    for _ in range(RUNS):
        peaks.append(measured_matmul_flops(1024, 4))
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - began)
    tokens = settings.pretrain.batch_tokens
    rate = tokens / statistics.median(seconds)
    flops = settings.model.flops_per_token(settings.model.context)
    peak = statistics.median(peaks)
    return {
        "tokens per step": float(tokens),
        "tokens/s": rate,
        "GFLOP/s": rate * flops / 1e9,
        "matmul peak GFLOP/s (1024 x 1024, float32)": peak / 1e9,
        "MFU": rate * flops / peak,
    }


def tokenization() -> Result:
    """Two sizes of the same embedded text: the time should be as the size, and the memory flat."""
    result: Result = {}
    sources = mixture.open_sources(load("demo").corpus.sources)
    tokenizer = train(mixture.training_texts(sources, 2.0, 0.01), 1024, 1, True).to_bytes()
    for tokens in (2_000_000, 8_000_000):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", BUILD, folder, str(tokens)]
            Path(folder, "tokenizer.json").write_bytes(tokenizer)
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        seconds, size, built, memory = map(float, out)
        result |= {
            f"{tokens / 1e6:.0f}M tokens: MB/s": size / seconds / 1e6,
            f"{tokens / 1e6:.0f}M tokens: seconds per M tokens": seconds / built * 1e6,
            f"{tokens / 1e6:.0f}M tokens: peak MB of a process": memory / 1e6,
        }
    return result


BUILD = """
import sys, time
from pathlib import Path
from nanocode.config.settings import load
from nanocode.storage.objects import LocalStore
from nanocode.text import corpus, mixture
from jobs.process import peak_memory_bytes
if __name__ == "__main__":
    folder, tokens = Path(sys.argv[1]), int(sys.argv[2])
    sources = mixture.open_sources(load("demo").corpus.sources)
    began = time.perf_counter()
    index = corpus.build(LocalStore(folder / "corpus"), (folder / "tokenizer.json").read_bytes(), sources,
                         tokens=tokens, context=384, seed=0, validation_share=0.01, workers=1)
    seconds = time.perf_counter() - began
    print(seconds, sum(s.bytes for s in index.train), index.tokens,
          peak_memory_bytes())
"""


def packing() -> Result:
    """Documents of log-normal lengths, as code has them, into rows of the demo's context."""
    dice = np.random.default_rng(0)
    documents = [np.ones(n, np.uint16) for n in dice.lognormal(6.5, 1.2, 4000).astype(int) + 1]
    began = time.perf_counter()
    rows = np.stack(list(pack(documents, 384, 0)))
    seconds = time.perf_counter() - began
    return {"tokens/s": sum(map(len, documents)) / seconds, "share of slots wasted": waste(rows, 0)}


def loader() -> Result:
    """Batches of the demo's size from a real corpus, as the loop reads them."""
    settings = load("demo", ["corpus.tokens=1000000"])
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        sources = mixture.open_sources(settings.corpus.sources)
        tokenizer = train(mixture.training_texts(sources, 1.0, 0.01), 1024, 1, True)
        corpus.build(store, tokenizer.to_bytes(), sources, tokens=1_000_000, context=384, seed=0, validation_share=0.01,
                     workers=1)  # fmt: skip
        rows, per_step = Rows(store), settings.pretrain.batch_tokens // 384

        class Batches:
            def __len__(self) -> int:
                return 2000

            def __getitem__(self, step: int) -> np.ndarray:
                return rows.batch(step, per_step, seed=0)

        began = time.perf_counter()
        count = sum(1 for _ in read_ahead(Batches(), 0, 2000))
        seconds = time.perf_counter() - began
    return {"tokens/s": count * settings.pretrain.batch_tokens / seconds, "ms per batch": seconds / count * 1e3}


def checkpoints() -> Result:
    """d6's state (float32 weights and moments) to a local folder and back."""
    settings = load("d6", ["pretrain.compute_dtype=float32"])
    trainer = make_trainer(settings, settings.pretrain, settings.pretrain_steps)
    state = jax.block_until_ready(fresh_state(trainer, settings))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(LocalStore(Path(folder)))
        kept = Checkpoints(run, "pretrain", run.claim("pretrain", "0" * 32, "bench"), "0" * 32)
        stall = kept.save(1, state, {})
        kept.wait()
        seconds = kept.save_seconds or 0.0
        began = time.perf_counter()
        jax.block_until_ready(kept.restore(trainer.state))
        restoring = time.perf_counter() - began
        kept.close()
    cadence = settings.pretrain.checkpoint_minutes * 60
    return {
        "GB": size / 1e9,
        "save GB/s": size / seconds / 1e9,
        "restore GB/s (checksums included)": size / restoring / 1e9,
        "stall of the loop, s": stall,
        "stall at the default cadence, share": stall / cadence,
    }


def first_step() -> Result:
    """From the start of the process to the end of the first demo step."""
    began = time.perf_counter()
    command = [sys.executable, "-c", FIRST_STEP]
    subprocess.run(command, check=True, capture_output=True)
    return {"seconds": time.perf_counter() - began}


FIRST_STEP = """
import jax
from nanocode.config.settings import load
from tests.bench.measurements import step_of
_, state, batch, step = step_of(load("demo"))
jax.block_until_ready(step(state, batch))
"""


MEASUREMENTS: dict[str, Callable[[], Result]] = {
    "train step, demo": lambda: train_step("demo"),
    "train step, d6 in float32, 16384 tokens": lambda: train_step(
        "d6", "pretrain.compute_dtype=float32", "pretrain.batch_tokens=16384"
    ),
    "time to first step": first_step,
    "decoding, d6 in float32, 1 conversation": lambda: decode.beside_bandwidth("d6"),
    "decoding, d6 in float32, 16 conversations": lambda: decode.beside_matmuls("d6", 16),
    "decoding, demo, 64 conversations": lambda: decode.throughput("demo", 64),
    "decoding, demo, 128 conversations": lambda: decode.throughput("demo", 128),
    "tokenization": tokenization,
    "packing": packing,
    "loader": loader,
    "checkpoints, d6": checkpoints,
}
