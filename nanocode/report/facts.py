"""What a run directory says, gathered for a page. A number that is not there is None: half a run has a report too."""

from dataclasses import dataclass, field
from typing import Any

from nanocode.config.settings import Settings, from_yaml
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.graph import order
from nanocode.run.segments import read_segments


@dataclass
class Curves:
    """The metrics of training by step; what a later attempt did again replaces what an earlier one did."""

    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    times: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[int, dict[str, Any]] = field(default_factory=dict)
    samples: dict[int, list[dict[str, str]]] = field(default_factory=dict)
    restarts: list[int] = field(default_factory=list)
    """First step of every attempt but the first."""


@dataclass
class StageRow:
    """One line of the table of stages."""

    name: str
    state: str
    attempts: int
    seconds: float | None = None
    chip_seconds: float | None = None
    cost_dollars: float | None = None


@dataclass
class Report:
    """Everything that the page shows."""

    url: str
    settings: Settings | None
    config: str
    stages: list[StageRow]
    markers: dict[str, Marker]
    curves: Curves

    def metric(self, stage: str, *path: str) -> Any:
        """A number out of a stage's marker; None if it is not there."""
        found: Any = self.markers[stage].metrics if stage in self.markers else None
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    @property
    def name(self) -> str:
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def cost_dollars(self) -> float:
        return sum(row.cost_dollars or 0.0 for row in self.stages)

    @property
    def commands(self) -> list[str]:
        """What to type to get the same again."""
        if self.settings is None:
            return []
        return [
            f"nanocode run --preset {self.settings.preset} --config config.yaml --run-dir runs/again",
        ]


def build(run: RunDirectory) -> Report:
    """Read the run directory."""
    config = run.latest_config()
    text = config[1] if config else ""
    settings = from_yaml(text, f"{run.store.url}/config/{config[0]}.yaml") if config else None
    found = {name: run.done(name) for name in order() if name != "report"}
    markers = {name: marker for name, marker in found.items() if marker is not None}
    rows = []
    for name in found:
        attempts, marker = len(run.attempts(name)), markers.get(name)
        if marker is None:
            rows.append(StageRow(name, "begun" if attempts else "not begun", attempts))
            continue
        seconds = (marker.ended - marker.started).total_seconds()
        rows.append(StageRow(name, "done", attempts, seconds, marker.chip_seconds, marker.cost_dollars))
    return Report(run.store.url, settings, text, rows, markers, curves(run, markers.get("pretrain")))


def curves(run: RunDirectory, marker: Marker | None) -> Curves:
    """Of the attempts with the marker's digest, or without a marker with the latest attempt's."""
    found = Curves()
    claims = run.attempts("pretrain")
    if not claims:
        return found
    digest = marker.input_digest if marker else claims[-1].input_digest
    for claim in claims:
        if claim.input_digest != digest:
            continue
        first: int | None = None
        for record in read_segments(run.store, "pretrain", "metrics", claim.attempt):
            step = record.get("step")
            if not isinstance(step, int):
                continue
            first = step if first is None else first
            match record.get("kind"):
                case "step":
                    found.steps[step] = record
                case "time":
                    found.times.append(record)
                case "eval":
                    found.evaluations[step] = record
                case "samples":
                    found.samples[step] = record.get("samples", [])
        if first:
            found.restarts.append(first)
    return found
