"""What every stage that trains does around `fit`: find the other hosts, resume or begin, train, and sum up."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import numpy as np
import structlog
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from pydantic import JsonValue

from jobs.process import peak_memory_bytes
from jobs.stage import Outcome, Task
from nanocode.config.settings import Settings, Training
from nanocode.data.shards import Rows
from nanocode.run.cadence import settle
from nanocode.run.exits import ConfigurationError
from nanocode.run.goodput import LAST_SAVE
from nanocode.run.segments import SegmentWriter, read_segments
from nanocode.storage.objects import Store
from nanocode.text.tokenizer import Tokenizer
from nanocode.train import mesh as meshes
from nanocode.train.checkpoints import Checkpoints
from nanocode.train.loop import Batches, Progress, Schedule, Seconds, Step, Work, fit
from nanocode.train.restored import restore_weights
from nanocode.train.setup import Setup, Trainer, compiled_step, make_trainer
from nanocode.train.step import State, TrainStep
from nanocode.train.throughput import peak_flops

log = structlog.get_logger()

Evaluate = Callable[[PyTree, int, SegmentWriter], dict[str, float]]
"""Measures weights after a number of steps, writes what it finds to the metrics, and returns what is worth showing."""


@dataclass(frozen=True)
class Plan:
    """How one training stage differs from another."""

    stage: Training
    steps: int
    batches: Batches
    train_step: Callable[[Trainer], TrainStep]
    begin: Callable[[Trainer], State]
    """The state at step 0."""
    evaluate: Callable[[Trainer], Evaluate]


class HostBatches:
    """This host's rows of every global batch, as [A, B / hosts, T+1]."""

    def __init__(
        self,
        rows: Rows,
        settings: Settings,
        stage: Training,
        steps: int,
        alter: Callable[[np.ndarray, int], np.ndarray] | None = None,
    ) -> None:
        """`alter(rows, n)`: what becomes of rows n, n + 1, ... of the endless order of training."""
        self._rows, self._settings, self._stage, self._steps, self._alter = rows, settings, stage, steps, alter

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> np.ndarray:
        per_step = self._stage.batch_tokens // self._settings.model.context
        host, hosts = jax.process_index(), jax.process_count()
        mine = self._rows.batch(step, per_step, self._settings.seed, host, hosts)
        if self._alter is not None:
            mine = self._alter(mine, step * per_step + host * per_step // hosts)
        return mine.reshape(self._stage.accumulate, -1, mine.shape[-1])


def run_training(task: Task, plan: Plan) -> Outcome | None:
    """Train to the end of the plan; the marker's content, on host 0."""
    settings, stage = task.settings, plan.stage
    task.preemption.grace_seconds = stage.grace_seconds
    cadence = settle(task.run, task.stage, task.attempt, stage, keep=task.event)
    trainer = make_trainer(settings, stage, plan.steps)
    checkpoints = Checkpoints(task.run, task.stage, task.attempt, task.digest, stage.keep_checkpoints, task.nearby)
    with task.phase("restore"):
        checkpoints.remove_half_written()
        restored = checkpoints.restore(trainer.state)
        state, start = (restored[0], restored[1].step) if restored else (plan.begin(trainer), 0)
    if restored:
        log.info("resumed", step=start, checkpoint=restored[1].name)
    task.event("resumed", step=start, devices=jax.device_count())
    place = partial(_place, trainer)
    began = time.monotonic()
    with task.phase("compile"):
        step = compiled_step(trainer, plan.train_step(trainer), state, place(plan.batches[0]))
    compile_seconds = time.monotonic() - began
    peak, origin = peak_flops()
    flops = settings.model.flops_per_token(settings.model.context) * stage.batch_tokens
    measure = plan.evaluate(trainer)

    with task.metrics() as metrics:

        def evaluate(state: PyTree, done: int) -> None:
            task.display.note("evaluated", done, **measure(state["weights"], done, metrics))

        def show(progress: Progress) -> None:
            facts = {"loss": progress.last["loss"], "tokens/s": progress.tokens_per_second, "MFU %": 100 * progress.mfu}
            task.display.show("training", progress.done, progress.steps, "steps", **facts)

        schedule = Schedule(start, plan.steps, stage.log_steps, stage.eval_steps, cadence)
        work = Work(stage.batch_tokens, flops, peak * jax.device_count())
        state = fit(
            state,
            _announced(step, task),
            plan.batches,
            place,
            evaluate,
            schedule,
            work,
            checkpoints,
            task.preemption,
            metrics,
            show,
            task.phase,
        )
    checkpoints.close()
    with task.phase(LAST_SAVE):
        name = checkpoints.brought_home()
    if jax.process_index() != 0:
        return None
    whole = whole_curve(task)
    facts: dict[str, JsonValue] = {
        "steps": plan.steps,
        "parameters": settings.model.parameters(),
        "tokens": plan.steps * stage.batch_tokens,
        "loss": whole.loss,
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
    }
    return Outcome({"checkpoint": name}, facts, jax.device_count())


def _announced(step: Step, task: Task) -> Step:
    """The same step; when the first is done, that is recorded."""
    steps = 0

    def announced(state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        nonlocal steps
        state, values = step(state, batch)
        if steps == 0:
            jax.block_until_ready(values)
            task.event("first step")
        steps += 1
        return state, values

    return announced


def _place(trainer: Trainer, batch: Any) -> Any:
    return jax.tree.map(lambda part: meshes.global_batch(trainer.mesh, part, axis=1), batch)


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
        address, process = os.environ["JAX_COORDINATOR_ADDRESS"], int(os.environ["JAX_PROCESS_ID"])
        # In a pod jax would ask the API server all the same, which a trainer may not.
        jax.distributed.initialize(address, hosts, process, cluster_detection_method="deactivate")
    elif len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        jax.distributed.initialize()  # what GKE injects says the rest
    if jax.process_count() == 1:
        task.claim()
        return
    task.preemption.agree_with_other_hosts()
    task.worker = jax.process_index()
    if jax.process_index() == 0 or task.assigned is not None:
        task.claim()
    if task.assigned is not None:
        return  # every host was told the number
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


def weights_of(task: Task, stage: str, setup: Setup) -> PyTree:
    """The weights that an earlier training stage ended with, laid out over this stage's devices."""
    name = task.upstream(stage).outputs["checkpoint"]
    return restore_weights(task.near(name), name, setup.weights)


def read_corpus(task: Task, *beginnings: str) -> Store:
    """The corpus where this machine reads it; of one that is far away only what begins so, if anything is given."""
    name = task.upstream("corpus").outputs["corpus"]
    return task.near(name, *beginnings).child(name)
