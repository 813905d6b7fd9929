"""Where the wall-clock time of a stage went: a partition, so every instant has one kind and the sum is exact.

From the first claim to the marker, or to now. Where attempts overlap the newest one counts. Inside an attempt its own
phases come first; a time record of training spreads its seconds over what is left since the record before. Steps that
were lost are counted in the attempt that had made them. Goodput is productive time over wall-clock time.

Counted in whole microseconds, because a sum of floats is not exact. Clocks of several hosts differ: a record from
outside its attempt's life counts at the edge of it.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nanocode.run.spans import Kind, Span, around, laid_out, painted

Record = Mapping[str, Any]


LAST_SAVE = "last save"
"""Phase at whose end all that the attempt did is safe."""
PHASES = {
    "imports": Kind.STARTUP,
    "compile": Kind.COMPILE,
    "restore": Kind.RESTORE,
    "evaluation": Kind.EVALUATION,
    "saving": Kind.CHECKPOINT,
    LAST_SAVE: Kind.CHECKPOINT,
}
"""Phase of a job -> kind; any other is OTHER."""


NO_TIME = (Kind.IDLE, Kind.PROVISIONING)
"""Without a machine."""


@dataclass(frozen=True)
class Life:
    """One attempt, as its claim, its ending and its segments (events and metrics) tell it."""

    number: int
    claimed: float
    ended: float | None
    """None while it may be alive."""
    records: Sequence[Record] = ()
    seen: bool = False
    """Its end was recorded beside the process, which so was there until then."""

    @property
    def resumed(self) -> int | None:
        """The step it went on from; None where it does not say."""
        for record in self.records:
            if record.get("kind") == "resumed" and (step := _number(record.get("step"))) is not None:
                return int(step)
        timed = [one for record in self.records if (one := _Timed.of(record)) is not None]
        return int(timed[0].done - timed[0].steps) if timed else None


@dataclass(frozen=True)
class Ledger:
    """One stage's time."""

    spans: tuple[Span, ...]
    """In order, without gap or overlap."""

    @property
    def microseconds(self) -> Counter[Kind]:
        total: Counter[Kind] = Counter()
        for begin, end, kind in self.spans:
            total[kind] += end - begin
        return total

    @property
    def seconds(self) -> dict[Kind, float]:
        """By kind, of those that took any."""
        found = self.microseconds
        return {kind: found[kind] / 1e6 for kind in Kind if found[kind]}

    @property
    def wall_seconds(self) -> float:
        return (self.spans[-1].end - self.spans[0].begin) / 1e6 if self.spans else 0.0

    @property
    def goodput(self) -> float | None:
        """Share of the wall-clock time that was productive; None where none has passed."""
        return self._share(excluding=())

    @property
    def goodput_with_a_slice(self) -> float | None:
        """The same, of the time in which nobody waited for a slice."""
        return self._share(excluding=(Kind.PROVISIONING,))

    @property
    def seconds_at_work(self) -> float:
        """On a machine, from the first productive instant on: what the first start took is paid once."""
        begin = next((one.begin for one in self.spans if one.kind is Kind.PRODUCTIVE), None)
        counted = [one for one in self.spans if begin is not None and one.begin >= begin and one.kind not in NO_TIME]
        return sum(one.end - one.begin for one in counted) / 1e6

    def _share(self, excluding: tuple[Kind, ...]) -> float | None:
        found = self.microseconds
        whole = found.total() - sum(found[kind] for kind in excluding)
        return found[Kind.PRODUCTIVE] / whole if whole else None


def ledger(
    lives: Iterable[Life],
    until: float,
    trains: bool,
    maker: int | None = None,
    provisioning: Iterable[tuple[float, float]] = (),
) -> Ledger:
    """The ledger of the attempts with one digest, up to `until`: when the marker was written, or now.

    `trains`: the stage makes steps. `maker`: the attempt whose marker counts; what later ones did was for nothing.
    """
    lives = sorted(lives, key=lambda life: life.number)
    if not lives:
        return Ledger(())
    begin, end = min(_micro(life.claimed) for life in lives), _micro(until)
    waits = [Span(_micro(since), _micro(to), Kind.PROVISIONING) for since, to in provisioning]
    layers = [[Span(begin, end, Kind.IDLE)], *([wait] for wait in waits)]
    for place, life in enumerate(lives):
        kept = _kept(life, lives[place + 1 :], maker)
        layers.append(_of_life(life, end, trains, kept, life.number == maker))
    return Ledger(tuple(painted(layers, begin, end)))


def _kept(life: Life, later: Iterable[Life], maker: int | None) -> float:
    """The step up to which the life's work was gone on from."""
    if maker is not None and life.number > maker:
        return 0
    counting = (one for one in later if maker is None or one.number <= maker)
    return min((one.resumed for one in counting if one.resumed is not None), default=math.inf)


def _of_life(life: Life, until: int, trains: bool, kept: float, made_it: bool) -> list[Span]:
    """From its claim to its end, each instant once."""
    begin = _micro(life.claimed)
    end = max(begin, until if life.ended is None else min(until, _micro(life.ended)))
    records = _ordered(life.records, begin, end)
    phases, unfinished = _phases(records)
    steps, logged = _training(records, phases, begin, kept) if trains else ([], begin)
    works = _work_begins(records, steps, trains)
    left = any(record.get("kind") == "left" for _, record in records)
    last = records[-1][0] if records else begin
    if life.ended is None and (unfinished or works is None or not trains):
        last = end  # it says nothing while it goes on like this
    if unfinished:
        phases.append(Span(unfinished.begin, last, unfinished.kind))
    lost = Kind.CUT_OFF if life.seen and works is not None else Kind.UNKNOWN
    works = last if works is None else works
    if not trains:
        own = [Span(works, last, Kind.PRODUCTIVE)]
    else:
        # What was done after the last record of steps was neither recorded nor, unless it made the marker, saved.
        unsaved = Kind.OTHER if made_it else Kind.AGAIN if left else lost
        logged = max(logged, works)
        own = [Span(works, logged, Kind.OTHER), Span(logged, last, unsaved)]
    gone = Span(last, end, Kind.IDLE if left else lost)
    return painted([[Span(begin, works, Kind.STARTUP), *own, gone], steps, phases], begin, end)


def _work_begins(records: list[tuple[int, Record]], steps: list[Span], trains: bool) -> int | None:
    """When start-up was over: at the first step, or as soon as the process of any other stage ran."""
    first = records[:1] if not trains else [one for one in records if one[1].get("kind") == "first step"]
    return min([*(at for at, _ in first), *(one.begin for one in steps[:1])], default=None)


def _phases(records: list[tuple[int, Record]]) -> tuple[list[Span], Span | None]:
    """The phases that ended, the innermost one where they nest; and the one that did not, empty, where it began."""
    found: list[Span] = []
    stack: list[str] = []
    since = 0
    for at, record in records:
        kind, name = record.get("kind"), str(record.get("phase"))
        if kind not in ("begin", "end", "start", "left") or (kind == "end" and name not in stack):
            continue
        if stack:
            found.append(Span(since, at, PHASES.get(stack[-1], Kind.OTHER)))
        since = at
        if kind == "begin":
            stack.append(name)
        elif kind == "end":
            del stack[len(stack) - 1 - stack[::-1].index(name) :]
        else:
            stack = []
    return found, Span(since, since, PHASES.get(stack[-1], Kind.OTHER)) if stack else None


class _Timed(NamedTuple):
    """What a time record of training says, in microseconds."""

    done: float
    steps: float
    data: int
    step: int
    checkpoint: int
    evaluation: int

    @property
    def total(self) -> int:
        return self.data + self.step + self.checkpoint + self.evaluation

    @classmethod
    def of(cls, record: Record) -> "_Timed | None":
        if record.get("kind") != "time":
            return None
        done, steps = _number(record.get("step")), _number(record.get("steps_timed"))
        if done is None or steps is None:
            return None
        names = ("data", "step_seconds", "checkpoint", "evaluation")
        return cls(done, steps, *(_micro(max(0.0, _number(record.get(name)) or 0.0)) for name in names))


def _training(records: list[tuple[int, Record]], phases: list[Span], begin: int, kept: float) -> tuple[list[Span], int]:
    """What the time records say of the time outside the phases, and when the last of them was written."""
    found: list[Span] = []
    begins, ends = [one.begin for one in phases], [one.end for one in phases]
    before: int | None = None
    logged = begin
    for at, record in records:
        if record.get("kind") == "resumed":
            before = at
        timed = _Timed.of(record)
        if timed is None:
            continue
        since = before if before is not None else max(begin, at - timed.total)
        before = logged = at
        inside = [
            Span(max(one.begin, since), min(one.end, at), one.kind)
            for one in phases[bisect_right(ends, since) : bisect_left(begins, at)]
        ]
        phased: Counter[Kind] = Counter()
        for one in inside:
            phased[one.kind] += one.end - one.begin
        lost = round(timed.step * min(1.0, max(0.0, timed.done - kept) / timed.steps)) if timed.steps > 0 else 0
        wanted = [
            (max(0, timed.evaluation - phased[Kind.EVALUATION]), Kind.EVALUATION),
            (max(0, timed.checkpoint - phased[Kind.CHECKPOINT]), Kind.CHECKPOINT),
            (timed.data, Kind.DATA),
            (timed.step - lost, Kind.PRODUCTIVE),
            (lost, Kind.AGAIN),
        ]
        found += laid_out(wanted, around(inside, since, at))
    return found, logged


def _ordered(records: Iterable[Record], begin: int, end: int) -> list[tuple[int, Record]]:
    """With their times, by time; one without a time is left out."""
    timed = [(_number(record.get("time")), record) for record in records]
    placed = [(min(end, max(begin, _micro(time))), record) for time, record in timed if time is not None]
    return sorted(placed, key=lambda one: one[0])


def _micro(seconds: float) -> int:
    return round(seconds * 1e6)


def _number(value: Any) -> float | None:
    """A finite number of a size that time and steps have; anything else is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        return None
    return float(value)
