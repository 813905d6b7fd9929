"""Everything a report shows, read from the run directory alone. Rendering is in `render`.

The same run directory always gives the same report: no clock is read, its date is the latest marker's.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import yaml

from nanocode.config.settings import PRESETS, Settings, from_yaml, load
from nanocode.report import curves as history
from nanocode.report.agent_facts import AgentEvalFacts, FineTuningFacts, PreferenceFacts, SynthFacts
from nanocode.report.curves import Curves
from nanocode.report.facts import BaseEvalFacts, ByKind, CorpusFacts, Seconds, TokenizerFacts, TrainingFacts
from nanocode.report.words import clean
from nanocode.run.directory import Claim, Marker, RunDirectory
from nanocode.run.exits import ConfigurationError
from nanocode.run.goodput import Ledger
from nanocode.run.graph import order
from nanocode.run.history import stage_ledger

State = Literal["done", "stale", "unfinished", "not begun"]


@dataclass(frozen=True)
class StageRecord:
    """One stage: its marker if there is one, and who tried."""

    name: str
    marker: Marker | None
    claims: tuple[Claim, ...]

    @property
    def state(self) -> State:
        """`stale`: a later attempt has other inputs, so the marker's numbers are those of earlier settings."""
        if self.marker is None:
            return "unfinished" if self.claims else "not begun"
        later = [claim for claim in self.claims if claim.attempt > self.marker.attempt]
        return "stale" if any(claim.input_digest != self.marker.input_digest for claim in later) else "done"

    @property
    def seconds(self) -> float | None:
        """From the first attempt's claim to the marker, waiting for machines included."""
        if self.marker is None:
            return None
        begins = [claim.claimed for claim in self.claims if claim.input_digest == self.marker.input_digest]
        return max(0.0, (self.marker.ended - min([self.marker.started, *begins])).total_seconds())

    @property
    def attempts(self) -> int:
        return len(self.claims)


@dataclass(frozen=True)
class Report:
    """The facts of a run, each section empty where its stage is not done."""

    name: str
    location: str
    preset: str | None
    settings: Settings | None
    """None where the configuration is missing or of another version; `config_text` is shown all the same."""
    config_text: str
    config_number: int | None
    stages: tuple[StageRecord, ...]
    tokenizer: TokenizerFacts
    corpus: CorpusFacts
    pretrain: TrainingFacts
    base_eval: BaseEvalFacts
    synth: SynthFacts
    sft: FineTuningFacts
    preference: PreferenceFacts
    agent_eval: AgentEvalFacts
    ledgers: dict[str, Ledger]
    """Where each stage's time went; an attempt that recorded no end is taken to have ended with its last record."""
    curves: Curves
    """Of pretrain."""
    sft_curves: Curves
    preference_curves: Curves
    commands: tuple[str, ...]
    """What to type to make this run again, elsewhere."""
    next_command: str
    """What to type to go on with this one."""

    def stage(self, name: str) -> StageRecord:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def unfinished(self) -> tuple[StageRecord, ...]:
        return tuple(stage for stage in self.stages if stage.state != "done")

    @property
    def date(self) -> datetime | None:
        """When the latest of the stages ended."""
        return max((stage.marker.ended for stage in self.stages if stage.marker), default=None)

    @property
    def bits_per_byte(self) -> ByKind:
        """The best measurement there is: base-eval's, else pretrain's last one, else the newest on the curve."""
        if self.base_eval.bits_per_byte:
            return self.base_eval.bits_per_byte
        if self.pretrain.bits_per_byte:
            return self.pretrain.bits_per_byte
        return self.curves.evaluations[-1].bits_per_byte if self.curves.evaluations else ByKind()

    @property
    def parameters(self) -> float | None:
        """As pretrain counted them, before that as the settings imply."""
        if self.pretrain.parameters is not None or self.settings is None:
            return self.pretrain.parameters
        return float(self.settings.model.parameters())

    @property
    def training_seconds(self) -> Seconds:
        """From pretrain's marker, before that from the metrics."""
        return self.pretrain.seconds if self.pretrain.seconds.total else self.curves.seconds

    @property
    def chip_seconds(self) -> float | None:
        return _total([stage.marker.chip_seconds for stage in self.stages if stage.marker])

    @property
    def cost_dollars(self) -> float | None:
        return _total([stage.marker.cost_dollars for stage in self.stages if stage.marker])

    @property
    def versions(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Package -> version -> the stages that ran with it."""
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for stage in self.stages:
            for package, version in sorted(stage.marker.versions.items()) if stage.marker else ():
                stages = found.setdefault(clean(package), {})
                stages[clean(version)] = (*stages.get(clean(version), ()), stage.name)
        return dict(sorted(found.items()))


def build(run: RunDirectory, commands: Sequence[str] | None = None) -> Report:
    """The report of a run in any state, an empty one included.

    `commands` repeat the run; None derives them from the configuration. Raises `StorageError` only.
    """
    stages = tuple(StageRecord(name, run.done(name), tuple(run.attempts(name))) for name in order() if name != "report")
    markers = {stage.name: stage.marker for stage in stages}
    metrics = {name: marker.metrics if marker else {} for name, marker in markers.items()}
    number, text = run.latest_config() or (None, "")
    settings, preset = _settings(text)
    location = clean(run.store.url)
    name = location.rstrip("/").rpartition("/")[2] or location

    def curves(name: str) -> Curves:
        stage = next(stage for stage in stages if stage.name == name)
        return history.read(run, name, _digest(stage), stage.marker.attempt if stage.marker else None)

    return Report(
        name=name,
        location=location,
        preset=preset,
        settings=settings,
        config_text=clean(text),
        config_number=number,
        stages=stages,
        tokenizer=TokenizerFacts.read(metrics["tokenizer"]),
        corpus=CorpusFacts.read(metrics["corpus"]),
        pretrain=TrainingFacts.read(metrics["pretrain"]),
        base_eval=BaseEvalFacts.read(metrics["base-eval"]),
        synth=SynthFacts.read(metrics["synth"]),
        sft=FineTuningFacts.read(metrics["sft"]),
        preference=PreferenceFacts.read(metrics["preference"]),
        agent_eval=AgentEvalFacts.read(metrics["agent-eval"]),
        ledgers={stage.name: _ledger(run, stage) for stage in stages},
        curves=curves("pretrain"),
        sft_curves=curves("sft"),
        preference_curves=curves("preference"),
        commands=tuple(map(clean, commands)) if commands else (_command(preset, settings, f"runs/{name}-again"),),
        next_command=clean(shlex.join(["nanocode", "run", "--run-dir", location])),
    )


def _ledger(run: RunDirectory, stage: StageRecord) -> Ledger:
    return stage_ledger(run, stage.name, _digest(stage) or "", stage.marker)


def _digest(stage: StageRecord) -> str | None:
    """The inputs whose training is shown: the marker's, else those of the newest attempt."""
    if stage.marker:
        return stage.marker.input_digest
    return stage.claims[-1].input_digest if stage.claims else None


def _settings(text: str) -> tuple[Settings | None, str | None]:
    try:
        settings = from_yaml(text, "the run's configuration")
        return settings, clean(settings.preset)
    except ConfigurationError:
        pass  # of another version: shown as text, and its preset is still worth a try
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return None, None
    preset = values.get("preset") if isinstance(values, dict) else None
    return None, clean(preset) if isinstance(preset, str) else None


def _command(preset: str | None, settings: Settings | None, location: str) -> str:
    """`nanocode run` with every setting that differs from its preset."""
    parts = ["nanocode", "run", "--preset", preset or "demo", "--run-dir", location]
    if settings is not None and settings.preset in PRESETS:
        ours = settings.model_dump(mode="json")
        for source in ours["corpus"]["sources"]:
            source["revision"] = None  # pinned by the run itself
        ours["soul_text"] = None  # so is this
        theirs = load(settings.preset, environment={}).model_dump(mode="json")
        for key, value in _differences(ours, theirs):
            parts += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
    return clean(shlex.join(parts))


def _differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in ours.items():
        if isinstance(value, dict) and isinstance(theirs.get(key), dict):
            found += _differences(value, theirs[key], f"{prefix}{key}.")
        elif value != theirs.get(key):
            found.append((f"{prefix}{key}", value))
    return found


def _total(values: list[float]) -> float | None:
    return sum(values) if values else None
