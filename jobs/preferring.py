"""Stage preference: the fine-tuned model learns to prefer what passes to what does not (DPO or IPO).

Pairs come from synthesis, and from the model's own attempts at training tasks. The log-probabilities of the model
before this stage are computed once and kept beside the pairs.
"""

import io
import json
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import structlog
from jaxtyping import PyTree
from pydantic import JsonValue

from jobs.fine_tuning import Drift
from jobs.stage import Outcome, Task
from jobs.training import Evaluate, Plan, join_other_hosts, read_corpus, read_tokenizer, run_training, weights_of
from nanocode.agent.conversation import Message, from_json, render, to_json
from nanocode.agent.policies import EnginePolicy, make_engine
from nanocode.agent.soul import read_soul
from nanocode.config.settings import Settings
from nanocode.data.shards import INDEX, VALIDATION, order_of_rows
from nanocode.generate.engine import Sampling
from nanocode.run.exits import ConfigurationError
from nanocode.run.segments import SegmentWriter
from nanocode.storage.objects import NotFound
from nanocode.synth.on_policy import Pair, sampled_pairs, training_tasks
from nanocode.synth.rollouts import read_pairs
from nanocode.text.tokenizer import Tokenizer
from nanocode.train import mesh as meshes
from nanocode.train.preference import make_log_probability, make_preference_step
from nanocode.train.setup import Setup, Trainer, make_setup, state_around
from nanocode.train.supervision import assistant_targets

log = structlog.get_logger()

TASKS_AT_ONCE = 16
"""Tasks whose pairs are published at a time: what a preemption costs, and with 4 samples of each one full batch."""


class PairBatches:
    """This host's pairs of every global batch: rows [A, B / hosts, T+1] and their reference log-probabilities."""

    def __init__(self, rows: np.ndarray, reference: np.ndarray, settings: Settings) -> None:
        self._rows, self._reference, self._settings = rows, reference, settings

    def __len__(self) -> int:
        return self._settings.preference.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        stage, hosts = self._settings.preference, jax.process_count()
        pairs = stage.batch_tokens // self._settings.model.context // 2
        share = pairs // hosts
        first = step * pairs + jax.process_index() * share
        chosen = [self._pair(number) for number in range(first, first + share)]
        places = np.asarray([place for pair in chosen for place in (2 * pair, 2 * pair + 1)])
        shape = (stage.accumulate, -1)
        return {
            "rows": self._rows[places].reshape(*shape, self._rows.shape[-1]),
            "reference": self._reference[places].reshape(shape),
        }

    def _pair(self, number: int) -> int:
        """Pair `number` of the endless order."""
        count = len(self._reference) // 2
        epoch, place = divmod(number, count)
        return int(order_of_rows(count, self._settings.seed, epoch, 0)[place])


def train(task: Task) -> Outcome | None:
    join_other_hosts(task)
    settings, tokenizer = task.settings, read_tokenizer(task)
    setup = make_setup(settings)
    weights = weights_of(task, "sft", setup)
    with task.phase("sampling"):
        pairs, counts = collect_pairs(task, setup, weights, tokenizer)
        rows = pair_rows(pairs, tokenizer, settings.model.context)
        reference = reference_log_probabilities(task, setup, weights, tokenizer, rows)
    del weights
    corpus = read_corpus(task, INDEX, VALIDATION)
    weigh = assistant_targets(tokenizer.special)
    last: dict[str, JsonValue] = {}

    def evaluation(trainer: Trainer) -> Evaluate:
        drift = Drift(trainer, tokenizer, corpus, settings.preference.eval_rows)

        def evaluate(weights: PyTree, done: int, metrics: SegmentWriter) -> dict[str, float]:
            bits = drift(weights)
            last["bits_per_byte"] = dict(bits)
            if done == 0:
                last["bits_per_byte_before"] = dict(bits)
            tokens = done * settings.preference.batch_tokens
            metrics.write({"kind": "eval", "step": done, "tokens": tokens, "bits_per_byte": bits})
            return {f"{kind} bpb": value for kind, value in bits.items()}

        return evaluate

    stage = settings.preference
    plan = Plan(
        stage,
        stage.steps,
        PairBatches(rows, reference, settings),
        lambda trainer: make_preference_step(
            trainer.model, trainer.optimizer, tokenizer.bos, weigh, stage.loss, stage.beta
        ),
        lambda trainer: state_around(trainer, weights_of(task, "sft", trainer)),
        evaluation,
    )
    outcome = run_training(task, plan)
    if outcome is not None:
        outcome.metrics.update(last, pairs=dict(counts))
    return outcome


def collect_pairs(task: Task, setup: Setup, weights: PyTree, tokenizer: Tokenizer) -> tuple[list[Pair], Counter[str]]:
    """The pairs of synthesis that fit, and on-policy ones; those are published as they come, for a restart."""
    stage, context = task.settings.preference, task.settings.model.context
    soul = read_soul(task.settings.soul, task.settings.soul_text)
    counts: Counter[str] = Counter()
    found: list[Pair] = []
    name = task.upstream("synth").outputs["rollouts"]
    for pair in read_pairs(task.near(name).child(name)):
        found.append(pair)
        counts["from synthesis"] += 1
    engine = make_engine(setup.model, weights, tokenizer, task.settings.agent_eval.slots)
    for first in range(0, stage.tasks, TASKS_AT_ONCE):
        name = f"pairs/{first:06d}.json"
        try:
            kept: dict[str, Any] = json.loads(task.output.read(name))
        except NotFound:
            count = min(TASKS_AT_ONCE, stage.tasks - first)
            policy = EnginePolicy(engine, tokenizer, Sampling(stage.temperature), task.settings.seed + first)
            pairs, went = sampled_pairs(policy, training_tasks(task.settings.seed, first, count), stage.samples, soul)
            kept = {"pairs": [[to_json(one) for one in pair] for pair in pairs], "counts": went}
            task.output.write(name, json.dumps(kept).encode())
        counts.update(kept["counts"])
        found += [(from_json(chosen), from_json(rejected)) for chosen, rejected in kept["pairs"]]
        task.display.show("sampling", min(first + TASKS_AT_ONCE, stage.tasks), stage.tasks, "tasks")
    fitting = [pair for pair in found if all(len(render(one, tokenizer).tokens) <= context for one in pair)]
    counts["too long"], counts["used"] = len(found) - len(fitting), len(fitting)
    if not fitting:
        raise ConfigurationError("there is not one preference pair: raise preference.tasks or synth.scenarios")
    return fitting, counts


def pair_rows(pairs: list[Pair], tokenizer: Tokenizer, context: int) -> np.ndarray:
    """[2·pairs, T+1]: each conversation in a row of its own, padded with BOS; chosen and rejected in turn."""
    rows = np.full((2 * len(pairs), context + 1), tokenizer.bos, np.int32)
    conversations: list[list[Message]] = [one for pair in pairs for one in pair]
    for row, conversation in zip(rows, conversations, strict=True):
        tokens = render(conversation, tokenizer).tokens
        row[: len(tokens)] = tokens
    return rows


def reference_log_probabilities(
    task: Task, setup: Setup, weights: PyTree, tokenizer: Tokenizer, rows: np.ndarray
) -> np.ndarray:
    """[2·pairs] nats under the model before this stage; computed once, and kept."""
    name = "reference.npy"
    try:
        return np.load(io.BytesIO(task.output.read(name)), allow_pickle=False)
    except NotFound:
        pass
    stage = task.settings.preference
    batch = stage.batch_tokens // task.settings.model.context // stage.accumulate
    weigh = assistant_targets(tokenizer.special)
    score = jax.jit(make_log_probability(setup.model, tokenizer.bos, weigh), out_shardings=setup.everywhere)
    found = []
    for start in range(0, len(rows), batch):
        part = np.full((batch, rows.shape[1]), tokenizer.bos, np.int32)
        part[: len(rows) - start] = rows[start : start + batch]
        placed = meshes.global_batch(setup.mesh, _share(part))
        found.append(np.asarray(jax.device_get(score(weights, jnp.asarray(placed)))))
    reference = np.concatenate(found)[: len(rows)].astype(np.float32)
    buffer = io.BytesIO()
    np.save(buffer, reference, allow_pickle=False)
    task.output.write(name, buffer.getvalue())
    return reference


def _share(rows: np.ndarray) -> np.ndarray:
    """This host's part of a batch."""
    share = len(rows) // jax.process_count()
    first = jax.process_index() * share
    return rows[first : first + share]
