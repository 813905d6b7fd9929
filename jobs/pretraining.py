"""Stage pretrain: rows of the corpus to a base model, on every device of every host."""

import jax
import numpy as np
from jaxtyping import PyTree
from pydantic import JsonValue

from jobs.stage import Outcome, Task
from jobs.training import Evaluate, Plan, join_other_hosts, read_tokenizer, run_training
from nanocode.config.settings import Settings
from nanocode.data.copying import with_copies
from nanocode.data.shards import Rows
from nanocode.evals.bits import BitsPerByte
from nanocode.generate.sample import Sampler
from nanocode.run.segments import SegmentWriter
from nanocode.text.special import SPECIAL_TOKENS
from nanocode.text.tokenizer import Tokenizer
from nanocode.train.setup import Trainer, fresh_state
from nanocode.train.step import make_train_step

PROMPTS = (
    "def fibonacci(n):\n",
    "import os\n\nclass ",
    "The function returns",
    "This module",
)
SAMPLE_TOKENS = 48
# The usual compromise between repetition (0) and noise (1).
SAMPLE_TEMPERATURE = 0.8


class HostBatches:
    """This host's rows of every global batch, as [A, B / hosts, T+1]."""

    def __init__(self, rows: Rows, settings: Settings, ordinary: range) -> None:
        self._rows, self._settings, self._ordinary = rows, settings, ordinary

    def __len__(self) -> int:
        return self._settings.pretrain_steps

    def __getitem__(self, step: int) -> np.ndarray:
        settings, pretrain = self._settings, self._settings.pretrain
        per_step = pretrain.batch_tokens // settings.model.context
        host, hosts = jax.process_index(), jax.process_count()
        mine = self._rows.batch(step, per_step, settings.seed, host, hosts)
        if pretrain.copy_share:
            first = step * per_step + host * per_step // hosts
            mine = with_copies(mine, first, settings.seed, pretrain.copy_share, self._rows.index.bos, self._ordinary)
        return mine.reshape(pretrain.accumulate, -1, mine.shape[-1])


def train(task: Task) -> Outcome | None:
    join_other_hosts(task)
    settings = task.settings
    tokenizer, store = read_tokenizer(task), task.run.store.child(task.upstream("corpus").outputs["corpus"])
    rows = Rows(store)
    validation = {kind: Rows(store, f"valid-{kind}") for kind in rows.index.valid}
    last: dict[str, JsonValue] = {}

    def evaluation(trainer: Trainer) -> Evaluate:
        bits = BitsPerByte(trainer.mesh, trainer.model, tokenizer)
        sampler = Sampler(trainer.model, min(SAMPLE_TOKENS, settings.model.context // 2))
        tokens = settings.pretrain.batch_tokens

        def evaluate(weights: PyTree, done: int, metrics: SegmentWriter) -> dict[str, float]:
            found = {kind: bits(weights, part, settings.pretrain.eval_rows) for kind, part in validation.items()}
            last["bits_per_byte"] = dict(found)
            metrics.write({"kind": "eval", "step": done, "tokens": done * tokens, "bits_per_byte": found})
            texts = samples(sampler, weights, tokenizer, settings.seed)
            metrics.write({"kind": "samples", "step": done, "samples": texts})
            return {f"{kind} bpb": value for kind, value in found.items()}

        return evaluate

    plan = Plan(
        settings.pretrain,
        settings.pretrain_steps,
        HostBatches(rows, settings, range(len(SPECIAL_TOKENS), tokenizer.vocab_size)),
        lambda trainer: make_train_step(trainer.model, trainer.optimizer, tokenizer.bos),
        lambda trainer: fresh_state(trainer, settings),
        evaluation,
    )
    outcome = run_training(task, plan)
    if outcome is not None:
        outcome.metrics.update(last)
    return outcome


def samples(sampler: Sampler, weights: PyTree, tokenizer: Tokenizer, seed: int) -> list[dict[str, str]]:
    """What the model makes of a few beginnings, from a fixed seed."""
    longest = sampler.context - sampler.new_tokens
    prompts = [[tokenizer.bos, *tokenizer.encode(prompt)][:longest] for prompt in PROMPTS]
    found = sampler(weights, prompts, SAMPLE_TEMPERATURE, seed)
    return [{"prompt": p, "text": tokenizer.decode(ids)} for p, ids in zip(PROMPTS, found, strict=True)]
