"""One stage of a finished run once more with another seed or other data, beside what the run holds.

`python -m tests.bench.preferences` and its like compare stages trained from one base model. The seed of a run reaches
every stage, so here a stage is told which markers it stands on, and writes into an attempt and a folder of its own.
"""

import hashlib
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from jobs.agent_evaluation import TASKS_AT_ONCE
from jobs.agent_model import load_weights
from jobs.console import Display
from jobs.stage import Outcome, Task
from nanocode.agent.policies import EnginePolicy, make_engine
from nanocode.agent.soul import Soul
from nanocode.config.settings import Settings
from nanocode.evals import agent
from nanocode.evals.agent import TaskResult
from nanocode.generate.engine import Engine
from nanocode.model.transformer import Transformer
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.settling import read_settings
from nanocode.storage.objects import open_store
from nanocode.text.tokenizer import Tokenizer
from nanocode.train.preemption import Preemption


@dataclass
class Trial(Task):
    """A stage that stands on the markers it is given."""

    markers: dict[str, Marker] = field(default_factory=dict)

    def upstream(self, stage: str) -> Marker:
        return self.markers[stage]


class Bench:
    """A run that is done up to `pretrain`, and the trials made from it."""

    def __init__(self, location: Path) -> None:
        self.run = RunDirectory(open_store(str(location)))
        self.settings = read_settings(self.run)
        found = {name: self.run.done(name) for name in ("tokenizer", "corpus", "pretrain", "synth")}
        self.markers = {name: marker for name, marker in found.items() if marker is not None}
        self._preemption = Preemption()
        self._engine: Engine | None = None
        self.tokenizer = Tokenizer.from_bytes(self.run.store.read(self.markers["tokenizer"].outputs["tokenizer"]))

    def task(self, stage: str, label: str, settings: Settings, **markers: Marker) -> Trial:
        """The trial of this label; it goes on where an earlier one of the same label and settings was left."""
        digest = hashlib.sha256(f"{label}\n{settings.to_yaml()}".encode()).hexdigest()[:32]
        every = {**self.markers, **markers}
        return Trial(self.run, settings, stage, digest, {}, self._preemption, Display(label), markers=every)

    def stage(self, work: Any, task: Trial) -> tuple[Marker, float]:
        """What the stage's marker would say, and how many seconds the stage took."""
        began, started = time.monotonic(), datetime.now(UTC)
        outcome: Outcome | None = work(task)
        assert outcome is not None
        task.close()
        marker = Marker(
            stage=task.stage,
            input_digest=task.digest,
            attempt=task.attempt,
            outputs=outcome.outputs,
            metrics=outcome.metrics,
            started=started,
            ended=datetime.now(UTC),
        )
        return marker, time.monotonic() - began

    def model(self, marker: Marker) -> tuple[Transformer, PyTree]:
        """The model, and the weights that a stage left."""
        return load_weights(self.run, self.settings, marker)

    def engine(self, marker: Marker) -> Engine:
        """The engine with the weights of a stage."""
        model, weights = self.model(marker)
        if self._engine is None:
            self._engine = make_engine(model, weights, self.tokenizer, self.settings.agent_eval.slots)
        return self._engine.with_weights(weights)

    def results(self, marker: Marker, suite: str, instances: int, soul: Soul) -> list[TaskResult]:
        """What the model of a marker does on a suite that no seed of ours is evaluated on elsewhere."""
        policy = EnginePolicy(self.engine(marker), self.tokenizer)
        every = agent.suite(suite, instances, self.settings.seed + 1000)
        groups = (every[first : first + TASKS_AT_ONCE] for first in range(0, len(every), TASKS_AT_ONCE))
        return [one for group in groups for one in agent.evaluate(policy, group, soul)]
