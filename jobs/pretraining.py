"""Stage pretrain: rows of the corpus to a base model, on every device of every host."""

import numpy as np
from jaxtyping import PyTree
from pydantic import JsonValue

from jobs.stage import Outcome, Task
from jobs.training import Evaluate, HostBatches, Plan, join_other_hosts, read_corpus, read_tokenizer, run_training
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


def train(task: Task) -> Outcome | None:
    join_other_hosts(task)
    settings = task.settings
    tokenizer, store = read_tokenizer(task), read_corpus(task)
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

    def copies(rows: np.ndarray, first: int) -> np.ndarray:
        ordinary = range(len(SPECIAL_TOKENS), tokenizer.vocab_size)
        return with_copies(rows, first, settings.seed, settings.pretrain.copy_share, tokenizer.bos, ordinary)

    plan = Plan(
        settings.pretrain,
        settings.pretrain_steps,
        HostBatches(
            rows, settings, settings.pretrain, settings.pretrain_steps, copies if settings.pretrain.copy_share else None
        ),
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
