"""Stage pretrain: rows of the corpus to a base model, on every device of every host."""

import os
import time
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import numpy as np
import structlog
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from jobs.stage import Outcome, Task, peak_memory_bytes
from nanocode.config.settings import Settings
from nanocode.data.shards import Rows
from nanocode.evals.bits import BitsPerByte
from nanocode.generate.sample import Sampler
from nanocode.run.exits import ConfigurationError
from nanocode.run.segments import read_segments
from nanocode.text.tokenizer import Tokenizer
from nanocode.train import mesh as meshes
from nanocode.train.checkpoints import Checkpoints
from nanocode.train.loop import Progress, Schedule, Seconds, Work, fit
from nanocode.train.setup import compiled_step, fresh_state, make_trainer
from nanocode.train.throughput import peak_flops

log = structlog.get_logger()

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

    def __init__(self, rows: Rows, settings: Settings) -> None:
        self._rows, self._settings = rows, settings

    def __len__(self) -> int:
        return self._settings.pretrain_steps

    def __getitem__(self, step: int) -> np.ndarray:
        pretrain = self._settings.pretrain
        per_step = pretrain.batch_tokens // self._settings.model.context
        mine = self._rows.batch(step, per_step, self._settings.seed, jax.process_index(), jax.process_count())
        return mine.reshape(pretrain.accumulate, -1, mine.shape[-1])


def train(task: Task) -> Outcome | None:
    join_other_hosts(task)
    settings = task.settings
    tokenizer, store = read_tokenizer(task), task.run.store.child(task.upstream("corpus").outputs["corpus"])
    rows = Rows(store)
    validation = {kind: Rows(store, f"valid-{kind}") for kind in rows.index.valid}
    trainer = make_trainer(settings)
    pretrain = settings.pretrain
    checkpoints = Checkpoints(task.run, task.stage, task.attempt, task.digest, pretrain.keep_checkpoints)
    checkpoints.remove_half_written()
    restored = checkpoints.restore(trainer.state)
    state, start = (restored[0], restored[1].step) if restored else (fresh_state(trainer, settings), 0)
    if restored:
        log.info("resumed", step=start, checkpoint=restored[1].name)
    place = partial(meshes.global_batch, trainer.mesh, axis=1)
    batches = HostBatches(rows, settings)
    began = time.monotonic()
    step = compiled_step(trainer, tokenizer.bos, state, place(batches[0]))
    compile_seconds = time.monotonic() - began
    peak, origin = peak_flops()
    tokens = pretrain.batch_tokens
    flops = settings.model.flops_per_token(settings.model.context) * tokens
    evaluation = BitsPerByte(trainer.mesh, trainer.model, tokenizer)
    sampler = Sampler(trainer.model, min(SAMPLE_TOKENS, settings.model.context // 2))
    last: dict[str, Any] = {}

    with task.metrics() as metrics:

        def evaluate(state: PyTree, done: int) -> None:
            last["bits_per_byte"] = {
                kind: evaluation(state["weights"], part, pretrain.eval_rows) for kind, part in validation.items()
            }
            metrics.write(
                {"kind": "eval", "step": done, "tokens": done * tokens, "bits_per_byte": last["bits_per_byte"]}
            )
            last["samples"] = samples(sampler, state["weights"], tokenizer, settings.seed)
            metrics.write({"kind": "samples", "step": done, "samples": last["samples"]})

        def show(progress: Progress) -> None:
            facts = {"loss": progress.last["loss"], "tokens/s": progress.tokens_per_second, "MFU %": 100 * progress.mfu}
            bits = {f"{kind} bpb": value for kind, value in last.get("bits_per_byte", {}).items()}
            task.display.show("training", progress.done, progress.steps, "steps", **facts, **bits)

        state = fit(
            state,
            step,
            batches,
            place,
            evaluate,
            Schedule(
                start,
                settings.pretrain_steps,
                pretrain.log_steps,
                pretrain.eval_steps,
                pretrain.checkpoint_minutes * 60,
            ),
            Work(tokens, flops, peak * jax.device_count()),
            checkpoints,
            task.preemption,
            metrics,
            show,
        )
    checkpoints.close()
    if jax.process_index() != 0:
        return None
    whole = whole_curve(task)
    return Outcome(
        outputs={"checkpoint": checkpoints.found()[0].name},
        metrics={
            "steps": settings.pretrain_steps,
            "parameters": settings.model.parameters(),
            "tokens": settings.pretrain_steps * tokens,
            "loss": whole.loss,
            "bits_per_byte": last["bits_per_byte"],
            "tokens_per_second": whole.tokens_per_second,
            "mfu": whole.mfu,
            "peak_flops": peak,
            "peak_source": origin,
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "seconds": {
                "data": whole.seconds.data,
                "step": whole.seconds.step_seconds,
                "checkpoint": whole.seconds.checkpoint,
                "evaluation": whole.seconds.evaluation,
                "compile": compile_seconds,
            },
            "peak_memory_bytes": peak_memory_bytes(),
        },
        chips=jax.device_count(),
    )


@dataclass(frozen=True)
class Curve:
    """What the metrics of a training say in the end."""

    loss: float
    """Of the last step."""
    tokens_per_second: float
    mfu: float
    seconds: Seconds


def whole_curve(task: Task) -> Curve:
    """The metrics of all attempts at this work together: the last one may have had no step left to do."""
    attempts = [claim.attempt for claim in task.run.attempts(task.stage) if claim.input_digest == task.digest]
    records = [
        one for attempt in attempts for one in read_segments(task.run.store, task.stage, "metrics", attempt, host=0)
    ]
    timed = [one for one in records if one["kind"] == "time"]
    spent = [Seconds(**{part.name: one[part.name] for part in fields(Seconds)}) for one in timed]
    total = sum(spent, Seconds())

    def mean(name: str) -> float:
        """Weighted by time: what was done over how long it took."""
        done = sum(one[name] * seconds.training() for one, seconds in zip(timed, spent, strict=True))
        return done / total.training()

    last = max((one for one in records if one["kind"] == "step"), key=lambda one: one["step"])
    return Curve(last["loss"], mean("tokens_per_second"), mean("mfu"), total)


def join_other_hosts(task: Task) -> None:
    """Find the other hosts, if the environment names any, and agree on one attempt."""
    hosts = int(os.environ.get("JAX_NUM_PROCESSES", "1"))
    if hosts > 1:
        jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], hosts, int(os.environ["JAX_PROCESS_ID"]))
    elif len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        jax.distributed.initialize()  # what GKE injects says the rest
    if jax.process_count() == 1:
        task.claim()
        return
    task.preemption.agree_with_other_hosts()
    task.worker = jax.process_index()
    if jax.process_index() == 0:
        task.claim()
    number = int(multihost_utils.broadcast_one_to_all(np.array(task.attempt, np.int32)))
    if jax.process_index() != 0:
        task.join(number)


def read_tokenizer(task: Task) -> Tokenizer:
    """The tokenizer of the run; `ConfigurationError` when it does not fit the model."""
    name = task.upstream("tokenizer").outputs["tokenizer"]
    try:
        tokenizer = Tokenizer.from_bytes(task.run.store.read(name))
    except ValueError as error:
        raise ConfigurationError(f"{task.run.store.url}/{name}: {error}") from error
    size = task.settings.model.vocab_size
    if tokenizer.vocab_size > size:
        raise ConfigurationError(
            f"model.vocab_size {size} is smaller than the tokenizer's {tokenizer.vocab_size}: set it to at least that, "
            "or train the tokenizer again"
        )
    return tokenizer


def samples(sampler: Sampler, weights: PyTree, tokenizer: Tokenizer, seed: int) -> list[dict[str, str]]:
    """What the model makes of a few beginnings, from a fixed seed."""
    longest = sampler.context - sampler.new_tokens
    prompts = [[tokenizer.bos, *tokenizer.encode(prompt)][:longest] for prompt in PROMPTS]
    found = sampler(weights, prompts, SAMPLE_TEMPERATURE, seed)
    return [{"prompt": p, "text": tokenizer.decode(ids)} for p, ids in zip(PROMPTS, found, strict=True)]
