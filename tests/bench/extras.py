"""`python -m tests.bench.extras RUN [STEPS]`: what each switch of the model does, on the tokenizer and corpus of a demo run.

One switch is flipped at a time against the preset, same seed, same batches; `tests/bench/LOG.md` keeps the results.
"""

import sys
import time

import jax
from rich.console import Console
from rich.table import Table

from nanocode.config.settings import load
from nanocode.data.shards import Rows
from nanocode.evals.bits import BitsPerByte
from nanocode.run.directory import RunDirectory
from nanocode.run.settling import read_settings
from nanocode.storage.objects import open_store
from nanocode.text.tokenizer import Tokenizer
from nanocode.train import mesh as meshes
from nanocode.train.setup import compiled_step, fresh_state, make_trainer
from nanocode.train.step import make_train_step

VARIANTS: dict[str, dict[str, object]] = {
    "preset": {},
    "no previous-token keys": {"previous_token_keys": 0.0},
    "previous-token keys in all heads": {"previous_token_keys": 1.0},
    "untied embeddings": {"tied_embeddings": False},
    "half of the channels rotate": {"rope_share": 0.5},
    "residual scalars": {"residual_scalars": True},
    "value embeddings": {"value_embeddings": True},
}


def measure(run: RunDirectory, change: dict[str, object], steps: int) -> dict[str, float]:
    """Bits per byte after `steps` steps, and tokens per second, of the run's settings with one change."""
    before = read_settings(run)
    base = before.model_dump(mode="json")
    base["model"] |= change
    base["pretrain"]["steps"] = steps
    settings = load(before.preset, base=base, environment={})
    markers = {name: run.done(name) for name in ("tokenizer", "corpus")}
    assert all(markers.values()), "run the tokenizer and corpus stages first"
    tokenizer = Tokenizer.from_bytes(run.store.read(markers["tokenizer"].outputs["tokenizer"]))  # type: ignore[union-attr]
    store = run.store.child(markers["corpus"].outputs["corpus"])  # type: ignore[union-attr]
    rows, per_step = Rows(store), settings.pretrain.batch_tokens // settings.model.context
    trainer = make_trainer(settings, settings.pretrain, settings.pretrain_steps)
    state = fresh_state(trainer, settings)

    def batch(step: int) -> jax.Array:
        return meshes.global_batch(trainer.mesh, rows.batch(step, per_step, settings.seed)[None], axis=1)

    step = compiled_step(trainer, make_train_step(trainer.model, trainer.optimizer, tokenizer.bos), state, batch(0))
    began = time.monotonic()
    for number in range(steps):
        state, metrics = step(state, batch(number))
        jax.block_until_ready(metrics)
    seconds = time.monotonic() - began
    score = BitsPerByte(trainer.mesh, trainer.model, tokenizer)
    bits = {kind: score(state["weights"], Rows(store, f"valid-{kind}"), 256) for kind in rows.index.valid}
    speed = steps * settings.pretrain.batch_tokens / seconds
    return {"parameters": float(settings.model.parameters()), **bits, "tokens/s": speed}


def main() -> int:
    run, steps = RunDirectory(open_store(sys.argv[1])), int(sys.argv[2]) if len(sys.argv) > 2 else 400
    table = Table("model", "parameters", "bits/byte code", "bits/byte English", "tokens/s")
    for name, change in VARIANTS.items():
        found = measure(run, change, steps)
        table.add_row(name, f"{found['parameters']:,.0f}", f"{found['code']:.3f}", f"{found['english']:.3f}",
                      f"{found['tokens/s']:,.0f}")  # fmt: skip
        print(name, found, flush=True)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
