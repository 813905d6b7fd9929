"""What every stage does around its work: read the run directory, skip what is done, claim an attempt, work, mark.

A stage's module holds `work(task) -> Outcome` and ends in `sys.exit(run_stage("name", work))`.
"""

import argparse
import faulthandler
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

import structlog
from pydantic import JsonValue, ValidationError

from jobs.console import Display, hide_late_writes, set_up_logging
from jobs.process import process_started, versions
from nanocode.config.prices import GIGABYTE
from nanocode.config.settings import Settings
from nanocode.run import copied, near
from nanocode.run.attempts import superseded
from nanocode.run.costs import dollars_per_hour
from nanocode.run.digests import stage_digests
from nanocode.run.directory import Claim, Marker, RunDirectory
from nanocode.run.exits import ConfigurationError, Exit, UsageError
from nanocode.run.graph import STAGES
from nanocode.run.leases import Leases
from nanocode.run.liveness import last_sign
from nanocode.run.segments import SegmentWriter
from nanocode.run.settling import read_settings
from nanocode.run.streams import outlive_listeners
from nanocode.storage.objects import LocalStore, NotFound, StorageError, Store, open_store
from nanocode.train.nearby import Nearby
from nanocode.train.preemption import Preempted, Preemption

log = structlog.get_logger()


@dataclass
class Outcome:
    """What the marker will say. None instead of an outcome: another worker will finish the stage."""

    outputs: dict[str, str] = field(default_factory=dict)
    """Name -> path in the run directory."""
    metrics: dict[str, JsonValue] = field(default_factory=dict)
    chips: int = 0


@dataclass
class Task:
    """One attempt at one stage."""

    run: RunDirectory
    settings: Settings
    stage: str
    digest: str
    digests: dict[str, str]
    preemption: Preemption
    display: Display
    worker: int = 0
    workers: int = 1
    assigned: int | None = None
    """The attempt that the controller has claimed for this process, and for the other hosts."""
    attempt: int = 0

    @property
    def folder(self) -> str:
        """Where the stage's outputs go."""
        return self.run.output_folder(self.stage, self.digest)

    @property
    def output(self) -> Store:
        return self.run.store.child(self.folder)

    def upstream(self, stage: str) -> Marker:
        """The marker of a stage this one stands on; `ConfigurationError` when it is not done, or stale."""
        marker = self.run.done(stage)
        if marker is None or marker.input_digest != self.digests[stage]:
            state = "is not done" if marker is None else "was done with other settings"
            raise ConfigurationError(
                f"{self.stage} needs stage {stage}, which {state} in {self.run.store.url}: "
                f"run `nanocode run --run-dir {self.run.store.url}`"
            )
        return marker

    def leases(self) -> Leases:
        """What this worker does of a split stage. Those that were begun by hand have attempts of their own, each."""
        together = self.digest[:12] if self.assigned is None else self.assigned
        return Leases(self.run.store.child(f"{self.stage}/leases/{together}"), self.worker, self.workers)

    @cached_property
    def nearby(self) -> Nearby:
        """Where the machine of this attempt reads and saves what is bulky."""
        claim = self.run.claimed(self.stage, self.attempt)
        others = [open_store(place) for place in near.addresses(self.settings, self.run.store.url)]
        there = near.of_slice(self.run, claim.slice) if claim is not None else None
        return Nearby(self.run, self.stage, self.attempt, there, others, self.worker == 0, self._show_copying)

    def near(self, name: str, *beginnings: str) -> Store:
        """The store that has a folder of the run directory near here, or those of its objects whose names begin so."""
        if self.nearby.is_home:
            return self.run.store
        with self.phase("copying"):
            return self.nearby.brought(name, *beginnings)

    def _show_copying(self, done: int, total: int) -> None:
        self.display.show(copied.PHASE, done / GIGABYTE, total / GIGABYTE, "GB")

    def metrics(self) -> SegmentWriter:
        return SegmentWriter(self.run.store, self.stage, self.attempt, "metrics", self.worker)

    def claim(self) -> None:
        """Begin an attempt of our own, or the one assigned to us; events are kept in it from here on."""
        who = f"{socket.gethostname()}:{os.getpid()}"
        self.join(self.run.claim(self.stage, self.digest, who) if self.assigned is None else self.assigned)

    def join(self, attempt: int) -> None:
        """Write into an attempt that this process, host 0 or the controller has claimed."""
        self.attempt = attempt
        kept = SegmentWriter(self.run.store, self.stage, self.attempt, "log", self.worker)
        set_up_logging(kept.write)
        self._kept = kept
        self._events = SegmentWriter(self.run.store, self.stage, self.attempt, "events", self.worker)
        self.display.keep = self._events.write
        now, started = time.time(), process_started()
        self.event("start", process=started)
        # What the process did before it could say so; a claim that another process made is older than all of it.
        self._events.write({"kind": "begin", "phase": "imports", "time": started})
        self._events.write({"kind": "end", "phase": "imports", "time": now})

    def event(self, kind: str, **facts: JsonValue) -> None:
        """Record something that happened in the attempt; never waits for storage."""
        self._events.write({"kind": kind, **facts})

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record when this part of the work begins and ends: `nanocode.run.goodput` says what counts as what."""
        self.event("begin", phase=name)
        yield
        self.event("end", phase=name)  # one that was broken off has no end

    def close(self) -> None:
        if self.attempt:
            set_up_logging()
            self.event("left")
            self._events.close()
            self._kept.close()


def run_stage(stage: str, work: Callable[[Task], Outcome | None], claims_itself: bool = False) -> int:
    """Run a stage as a process and return its exit code; everything a user can cause is one line on stderr.

    `claims_itself`: the work calls `task.claim()`, because hosts have to find each other before one of them does.
    """
    preemption = Preemption()
    outlive_listeners()
    # Whoever ends a process that hangs asks it first what every thread of it is doing.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    set_up_logging()
    hide_late_writes()
    try:
        options = _parse(stage)
        _run(stage, work, options, preemption, claims_itself)
    except Preempted as error:
        return _end(Exit.PREEMPTED, str(error))
    except UsageError as error:
        return _end(Exit.USAGE, str(error))
    except ConfigurationError as error:
        return _end(Exit.CONFIGURATION, str(error))
    except StorageError as error:
        return _end(Exit.FAILED, str(error))
    return Exit.DONE


def _run(
    stage: str,
    work: Callable[[Task], Outcome | None],
    options: argparse.Namespace,
    preemption: Preemption,
    claims_itself: bool,
) -> None:
    run = RunDirectory(open_store(options.run_dir))
    if isinstance(run.store, LocalStore):
        run.store.sweep()
    settings = read_settings(run)
    digests = stage_digests(settings, run)
    marker = run.done(stage)
    if marker is not None and marker.input_digest == digests[stage]:
        log.info("already done", stage=stage, run=run.store.url)
        return
    if options.attempt is not None:
        _check_assigned(run, stage, options.attempt, digests[stage])
    preemption.grace_seconds = settings.pretrain.grace_seconds
    display = Display(stage)
    shared = (options.worker, options.of, options.attempt)
    task = Task(run, settings, stage, digests[stage], digests, preemption, display, *shared)
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        if not claims_itself:
            task.claim()
        with display:
            outcome = work(task)
        if outcome is None:
            return
        seconds = time.monotonic() - clock
        # Attempts that were cut off had to be paid for too; we take them to have had as many chips as this one.
        chip_seconds = outcome.chips * (seconds + (other_seconds(task) if outcome.chips else 0.0))
        run.finish(
            stage,
            Marker(
                stage=stage,
                input_digest=task.digest,
                attempt=task.attempt,
                outputs=outcome.outputs,
                metrics=outcome.metrics,
                versions=versions(),
                chip_seconds=chip_seconds,
                cost_dollars=chip_seconds / 3600 * dollars_per_chip_hour(task, outcome.chips),
                started=started,
                ended=datetime.now(UTC),
            ),
        )
        log.info("done", stage=stage, seconds=round(seconds, 1))
    finally:
        task.close()


def _check_assigned(run: RunDirectory, stage: str, attempt: int, digest: str) -> None:
    """`Preempted` when the attempt is over; `ConfigurationError` when it was claimed for other inputs."""
    name = f"{run.attempt_folder(stage, attempt)}/claim.json"
    try:
        claim = Claim.model_validate_json(run.store.read(name))
    except (NotFound, ValidationError) as error:
        raise UsageError(f"--attempt {attempt}: nobody has claimed {run.store.url}/{name}: leave it out") from error
    if reason := superseded(run, stage, attempt):
        raise Preempted(reason)
    if claim.input_digest != digest:
        raise ConfigurationError(
            f"settings, SOUL or sources have changed since attempt {attempt} of {stage} was claimed: "
            f"run `nanocode run --run-dir {run.store.url}` again"
        )


def dollars_per_chip_hour(task: Task, chips: int) -> float:
    """Of the slice that the attempt runs on, where that has a price, else of the settings."""
    claim = task.run.claimed(task.stage, task.attempt)
    price = dollars_per_hour(task.run, task.settings, claim.slice) if claim is not None and chips else None
    return task.settings.budget.dollars_per_chip_hour if price is None else price / chips


def other_seconds(task: Task) -> float:
    """How long the other attempts at this work lived, each from its claim to its last record."""
    claims = [one for one in task.run.attempts(task.stage) if one.input_digest == task.digest]
    others = [one for one in claims if one.attempt != task.attempt]
    return sum(last_sign(task.run, one) - one.claimed.timestamp() for one in others)


def _parse(stage: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(f"python -m {STAGES[stage].module}", description=f"Run stage {stage} of a run.")
    parser.add_argument("--run-dir", required=True, help="the run directory: a local path or gs://bucket/prefix")
    parser.add_argument("--worker", type=int, default=0, help="index of this worker, from 0")
    parser.add_argument("--of", type=int, default=1, help="number of workers that share the stage")
    parser.add_argument("--attempt", type=int, help="join this attempt, which the controller has claimed")
    options = parser.parse_args()
    if not 0 <= options.worker < options.of:
        raise UsageError(f"--worker {options.worker} --of {options.of}: workers count from 0 to {options.of - 1}")
    if options.of > 1 and not STAGES[stage].split:
        raise UsageError(f"--of {options.of}: stage {stage} is not split over workers")
    return options


def _end(code: Exit, message: str) -> int:
    print(f"nanocode: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code
