"""`fit`, the one train loop: pretraining, fine-tuning and preference optimisation differ in the step and the batches.

Batch k is a function of k alone, so a resumed run does what an uninterrupted one would have done, bit for bit on a CPU.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from nanocode.run.cadence import Cadence
from nanocode.run.goodput import LAST_SAVE
from nanocode.run.segments import SegmentWriter
from nanocode.train.checkpoints import Checkpoints
from nanocode.train.preemption import Preempted, Preemption

Step = Callable[[Any, Any], tuple[Any, dict[str, Array]]]


@runtime_checkable
class Batches(Protocol):
    """Random access to this host's part of every global batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> Any: ...


@dataclass(frozen=True)
class Schedule:
    """How far to go, and what to do on the way there."""

    start: int
    """The step to resume at; 0 in a fresh run."""
    steps: int
    log_steps: int
    eval_steps: int
    cadence: Cadence
    """Host 0's counts."""


@dataclass(frozen=True)
class Work:
    """What one step costs, over all devices; throughput and MFU follow from it."""

    tokens: int
    flops: float
    peak_flops: float
    """Floating-point operations per second of all devices together."""


@dataclass
class Seconds:
    """Where the wall-clock time of some steps went."""

    data: float = 0.0
    step_seconds: float = 0.0
    checkpoint: float = 0.0
    evaluation: float = 0.0

    def training(self) -> float:
        """All but evaluation, which is not part of throughput."""
        return self.data + self.step_seconds + self.checkpoint

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass
class Progress:
    """The last steps, for whoever watches."""

    done: int
    steps: int
    last: dict[str, float]
    tokens_per_second: float
    mfu: float
    seconds: Seconds = field(default_factory=Seconds)


def fit(
    state: Any,
    step: Step,
    batches: Batches,
    place: Callable[[Any], Any],
    evaluate: Callable[[Any, int], None],
    schedule: Schedule,
    work: Work,
    checkpoints: Checkpoints,
    preemption: Preemption,
    metrics: SegmentWriter,
    show: Callable[[Progress], None],
    phase: Callable[[str], AbstractContextManager[None]],
) -> Any:
    """The state after all steps, saved; raises `Preempted` once told to leave.

    `place` puts a batch on the devices; `evaluate(state, k)` is called every `eval_steps`, from 0 on, and at the end.
    `phase` records when evaluating and saving begin and end.
    """
    steps = schedule.steps
    arriving = read_ahead(batches, schedule.start, steps)
    pending: list[tuple[int, dict[str, Array]]] = []
    seconds, saved_at = Seconds(), time.monotonic()
    saved_step = schedule.start or -1

    def log(done: int) -> None:
        nonlocal pending, seconds
        values = [(k, {name: float(x) for name, x in one.items()}) for k, one in jax.device_get(pending)]
        for k, one in values:
            metrics.write({"kind": "step", "step": k, **one, "tokens": (k + 1) * work.tokens})
        spent = seconds.training()
        rate = len(values) * work.tokens / spent
        mfu = len(values) * work.flops / spent / work.peak_flops
        timing = {"steps_timed": len(values), "tokens_per_second": rate, "mfu": mfu, **asdict(seconds)}
        metrics.write({"kind": "time", "step": done, **timing})
        show(Progress(done, steps, values[-1][1], rate, mfu, seconds))
        pending, seconds = [], Seconds()

    def save(done: int) -> None:
        nonlocal saved_at, saved_step
        if pending:
            log(done)
        metrics.flush()  # a step that a checkpoint covers is never run again: its metrics come first
        with phase("saving"):
            stall = checkpoints.save(done, state, {"next_batch": done})
        seconds.checkpoint += stall
        schedule.cadence.measured(stall, checkpoints.save_seconds)
        saved_at, saved_step = time.monotonic(), done

    with preemption.loop():
        for done in range(schedule.start, steps + 1):
            if done % schedule.eval_steps == 0 or done == steps:
                began = time.monotonic()
                with phase("evaluation"):
                    evaluate(state, done)
                seconds.evaluation += time.monotonic() - began
            if done == steps:
                break
            began = time.monotonic()
            batch = place(next(arriving))
            ready = time.monotonic()
            state, values = step(state, batch)
            # One step ahead of the device at most: otherwise a signal would wait for a queue of steps.
            jax.block_until_ready(pending[-1][1] if pending else values)
            seconds.data += ready - began
            seconds.step_seconds += time.monotonic() - ready
            pending.append((done, values))
            if len(pending) == schedule.log_steps:
                log(done + 1)
            if preemption.reached(done):
                if agreed(preemption.allows(checkpoints.save_seconds)):
                    save(done + 1)
                    with phase(LAST_SAVE):
                        checkpoints.wait()
                saved = f"saved at step {max(saved_step, 0)}; the same command goes on from there"
                raise Preempted(f"told to leave at step {done + 1} of {steps}; {saved}")
            due = time.monotonic() - saved_at > schedule.cadence.seconds
            # Several hosts have to agree, which costs a round trip: they ask only where they wait anyway.
            if jax.process_count() > 1:
                due = not pending and agreed(due)
            if due and done + 1 < steps:
                save(done + 1)
        if saved_step != steps:
            save(steps)
        with phase(LAST_SAVE):
            checkpoints.wait()
    return state


def agreed(flag: bool) -> bool:
    """Host 0's answer, for all: clocks differ, and a save that not every host begins never ends."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def read_ahead(batches: Batches, start: int, stop: int, threads: int = 2, ahead: int = 4) -> Iterator[Any]:
    """`batches[k]` for k from `start` to `stop`, fetched by threads: the loop should never wait for a disk."""
    dataset = grain.MapDataset.source(batches).slice(slice(start, stop))
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)))
