"""A training stage's metrics as one history, that of the weights, and series small enough to draw.

The attempt that made the weights began at a checkpoint, which an earlier attempt made: of that one the steps before
count, and so on back to step 0. No step counts twice; abandoned attempts, and those at another input digest, stay out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from nanocode.report.facts import ByKind, Record, Sample, Seconds, record
from nanocode.run.directory import RunDirectory
from nanocode.run.segments import read_segments

KINDS = ("step", "time", "eval", "samples")
# Points per drawn line: two to three per pixel-wide bucket of a chart on a large screen add nothing to see.
DRAWN_POINTS = 360


@dataclass(frozen=True)
class Restart:
    """Where an attempt took over from the one before."""

    attempt: int
    step: float
    x: float


@dataclass(frozen=True)
class Evaluation:
    step: float
    x: float
    bits_per_byte: ByKind
    validation: float | None = None
    """Nats per token of what the agent wrote in held-out conversations."""


@dataclass(frozen=True)
class Samples:
    step: float
    tokens: float | None
    samples: list[Sample]


@dataclass(frozen=True)
class Series:
    """Points with finite values, by step."""

    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Curves:
    """The history of training. `x` is tokens seen, or steps where the metrics do not say tokens."""

    x_unit: str = "tokens"
    loss: Series = field(default_factory=Series)
    gradient_norm: Series = field(default_factory=Series)
    learning_rate: Series = field(default_factory=Series)
    tokens_per_second: Series = field(default_factory=Series)
    mfu: Series = field(default_factory=Series)
    margin: Series = field(default_factory=Series)
    accuracy: Series = field(default_factory=Series)
    chosen_gain: Series = field(default_factory=Series)
    evaluations: list[Evaluation] = field(default_factory=list)
    samples: list[Samples] = field(default_factory=list)
    restarts: list[Restart] = field(default_factory=list)
    seconds: Seconds = field(default_factory=Seconds)
    last_step: float | None = None
    last_tokens: float | None = None


@dataclass
class Attempt:
    """What one attempt has recorded."""

    number: int
    records: list[Record]

    def __post_init__(self) -> None:
        # One that resumed at the very end has evaluated, and made no step.
        steps = [one.step or 0.0 for one in self.records if one.kind == "step"]
        self.first = min(steps or [one.step or 0.0 for one in self.records])
        self.last = max(steps, default=self.first)
        self.written = max(one.time or 0.0 for one in self.records)


def read(run: RunDirectory, stage: str, digest: str | None, attempt: int | None = None) -> Curves:
    """The history of the weights that an attempt made; without one of those that the attempt which wrote last makes.

    Only attempts at `digest` count, unless it is None.
    """
    claims = {claim.attempt: claim.input_digest for claim in run.attempts(stage)}
    attempts: list[Attempt] = []
    for number in sorted(int(n) for n in run.store.children(f"{stage}/attempts") if n.isascii() and n.isdecimal()):
        if digest is not None and claims.get(number, digest) != digest:
            continue
        records = map(record, read_segments(run.store, stage, "metrics", number))
        if kept := [one for one in records if one.step is not None and one.kind in KINDS]:
            attempts.append(Attempt(number, kept))
    by_kind: dict[str, dict[float, Record]] = {kind: {} for kind in KINDS}
    path = lineage(attempts, attempt)
    ends = [one.first for one in path[1:]] + [math.inf]
    for one, end in zip(path, ends[: len(path)], strict=True):
        for values in one.records:
            step = values.step or 0.0
            # A record of kind step is of the step that begins there, any other of all that is done by then.
            if step < end or (step == end and values.kind != "step"):
                by_kind[values.kind][step] = values
    ordered = {kind: [records[step] for step in sorted(records)] for kind, records in by_kind.items()}
    return _curves(ordered, [(one.number, one.first) for one in path])


def lineage(attempts: list[Attempt], number: int | None) -> list[Attempt]:
    """The attempts that made the weights of attempt `number`, in order; of the one that wrote last if it is unknown."""
    if not attempts:
        return []
    newest = max(attempts, key=lambda one: (one.written, one.number))
    path = [next((one for one in attempts if one.number == number), newest)]
    while True:
        earlier = [one for one in attempts if one.number < path[0].number and one.first < path[0].first]
        if not earlier:
            return path
        # Whoever did the step before the checkpoint made it, or made the same one: training is deterministic.
        made = [one for one in earlier if one.last + 1 >= path[0].first]
        path.insert(0, (made or earlier)[-1])


def _curves(records: dict[str, list[Record]], begins: list[tuple[int, float]]) -> Curves:
    steps, times = records["step"], records["time"]
    in_tokens = bool(steps) and all(one.tokens is not None for one in steps)
    # Tokens grow by the same number at every step: two known steps place every record that does not say its own.
    first, last = (steps[0], steps[-1]) if in_tokens else (Record(), Record())
    span = (last.step or 0.0) - (first.step or 0.0)
    per_step = ((last.tokens or 0.0) - (first.tokens or 0.0)) / span if span else last.tokens or 0.0

    def x(one: Record) -> float:
        step = one.step or 0.0
        if not in_tokens:
            return step
        return one.tokens if one.tokens is not None else step * per_step

    def series(of: list[Record], value: Callable[[Record], float | None]) -> Series:
        points = [(x(one), found) for one in of if (found := value(one)) is not None]
        return Series([at for at, _ in points], [found for _, found in points])

    return Curves(
        x_unit="tokens" if in_tokens else "steps",
        loss=series(steps, lambda one: one.loss),
        gradient_norm=series(steps, lambda one: one.gradient_norm),
        learning_rate=series(steps, lambda one: one.learning_rate),
        tokens_per_second=series(times, lambda one: one.tokens_per_second),
        mfu=series(times, lambda one: one.mfu),
        margin=series(steps, lambda one: one.margin),
        accuracy=series(steps, lambda one: one.accuracy),
        chosen_gain=series(steps, lambda one: one.chosen_gain),
        evaluations=[Evaluation(one.step or 0.0, x(one), one.bits_per_byte, one.validation) for one in records["eval"]],
        samples=[Samples(one.step or 0.0, x(one) if in_tokens else None, one.samples) for one in records["samples"]],
        restarts=[Restart(attempt, step, x(Record(step=step))) for attempt, step in begins[1:]],
        seconds=Seconds(
            step=_sum(times, lambda one: one.step_seconds),
            data=_sum(times, lambda one: one.data),
            evaluation=_sum(times, lambda one: one.evaluation),
            checkpoint=_sum(times, lambda one: one.checkpoint),
        ),
        last_step=steps[-1].step if steps else None,
        last_tokens=steps[-1].tokens if steps else None,
    )


def _sum(records: list[Record], value: Callable[[Record], float | None]) -> float | None:
    found = [one for one in map(value, records) if one is not None]
    return sum(found) if found else None


def smooth(values: list[float], reach: int) -> list[float]:
    """The mean over `reach` points on both sides, over fewer near the ends: symmetric, so nothing lags."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    smoothed = []
    for i in range(len(values)):
        k = min(i, len(values) - 1 - i, reach)
        smoothed.append((sums[i + k + 1] - sums[i - k]) / (2 * k + 1))
    return smoothed


def means(series: Series, points: int = DRAWN_POINTS) -> Series:
    """At most `points` points, each the mean of its bucket; the first and the last point stay what they are."""
    if len(series) <= points:
        return series
    x, y = [series.x[0]], [series.y[0]]
    for low, high in _buckets(len(series), points - 2):
        x.append(sum(series.x[low:high]) / (high - low))
        y.append(sum(series.y[low:high]) / (high - low))
    return Series([*x, series.x[-1]], [*y, series.y[-1]])


def extremes(series: Series, points: int = DRAWN_POINTS) -> Series:
    """At most `points` points: the lowest and the highest of each bucket, so that no spike is lost."""
    if len(series) <= points:
        return series
    x, y = [], []
    for low, high in _buckets(len(series), points // 2):
        lowest = min(range(low, high), key=series.y.__getitem__)
        highest = max(range(low, high), key=series.y.__getitem__)
        for i in sorted({lowest, highest}):
            x.append(series.x[i])
            y.append(series.y[i])
    return Series(x, y)


def _buckets(length: int, buckets: int) -> list[tuple[int, int]]:
    edges = [round(i * length / buckets) for i in range(buckets + 1)]
    return [(low, high) for low, high in pairwise(edges) if high > low]
