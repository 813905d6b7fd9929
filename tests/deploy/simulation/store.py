"""The journal: facts that are created once and never change, and readers that may be some seconds late."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from deploy.controller.decision import Decision
from deploy.controller.journal import Written
from deploy.controller.observed import Attempt, Slice, Stage, Trouble
from nanocode.config.settings import Budget, Controller
from nanocode.run.attempts import End, Stop
from nanocode.run.intent import Intent
from tests.deploy.simulation.clock import Clock
from tests.deploy.simulation.lines import Caller, Line
from tests.deploy.simulation.schedule import StagePlan


@dataclass
class Tried:
    """All that was written about one attempt, and when each word of it was."""

    number: int
    digest: str
    claimed: float
    """By the clock of whoever claimed it."""
    slice: str | None
    claimer: Caller
    read_at: float
    """As of when the claimer had read what is written."""
    at: float
    stop: Stop | None = None
    stop_at: float = 0.0
    end: End | None = None
    end_at: float = 0.0
    first_step: float | None = None
    last_sign: Callable[[float], float | None] = lambda at: None
    """What a reader at that time takes for its last sign of life."""
    whole: Attempt | None = None
    """As it is shown once it has ended."""

    def seen(self, at: float) -> Attempt:
        if self.end is not None and self.end_at <= at:
            if self.whole is None:
                self.whole = self._shown(self.end_at, self.stop)
            return self.whole
        return self._shown(at, self.stop if self.stop_at <= at else None)

    def _shown(self, at: float, stop: Stop | None) -> Attempt:
        stepped = self.first_step is not None and self.first_step <= at
        return Attempt(
            self.number,
            self.digest,
            self.claimed,
            slice=self.slice,
            stop=stop,
            end=self.end if self.end_at <= at else None,
            first_step=self.first_step if stepped else None,
            last_sign=self.last_sign(at),
        )


@dataclass(frozen=True)
class Word:
    """What the user said last."""

    at: float
    intent: Intent
    budget: Budget
    config: tuple[int, ...]
    """One number for each stage; another one gives the stage another digest."""
    digests: dict[str, str]


@dataclass
class Facts:
    """About one slice; the times are when something was written, and by the writer's clock."""

    zone: str
    dollars_per_hour: float | None
    noted: dict[str, tuple[float, float]]
    wisher: Caller
    read_at: float
    """As of when the wisher had read what is written."""

    def seen(self, name: str, at: float) -> Slice:
        there = {fact: by_clock for fact, (written, by_clock) in self.noted.items() if written <= at}
        trouble = next((Trouble(fact) for fact in there if fact in set(Trouble)), None)
        return Slice(
            name,
            self.zone,
            self.dollars_per_hour,
            there.get("requested"),
            there.get("ready"),
            there.get("released"),
            there.get("gone"),
            trouble,
            present=False,
        )


@dataclass
class StageFacts:
    """About one stage."""

    plan: StagePlan
    tried: list[Tried] = field(default_factory=list)
    markers: list[tuple[float, str]] = field(default_factory=list)
    """When, and of which digest; the last one counts."""
    saved: list[tuple[float, str, int]] = field(default_factory=list)
    """When, digest and step of every checkpoint."""

    def marked(self, at: float) -> str | None:
        return next((digest for written, digest in reversed(self.markers) if written <= at), None)

    def progress(self, digest: str, at: float) -> int:
        return max((step for written, of, step in self.saved if of == digest and written <= at), default=0)


class Store:
    """What is written, as nobody sees it but the simulation."""

    def __init__(self, clock: Clock, stages: tuple[StagePlan, ...], policy: Controller, budget: Budget) -> None:
        self.clock, self.policy = clock, policy
        self.stages = {plan.name: StageFacts(plan) for plan in stages}
        self.slices: dict[str, Facts] = {}
        self.told: dict[str, float] = {}
        self.words: list[Word] = []
        self.say(Intent(), budget, (0,) * len(stages))

    def say(self, intent: Intent | None = None, budget: Budget | None = None, config: tuple[int, ...] = ()) -> None:
        """The user speaks; what is left out stays."""
        if intent is None or budget is None or not config:
            last = self.words[-1]
            intent, budget, config = intent or last.intent, budget or last.budget, config or last.config
        digests: dict[str, str] = {}
        for number, plan in zip(config, (one.plan for one in self.stages.values()), strict=True):
            text = f"{plan.name} {number} {[digests[other] for other in plan.reads]}"
            digests[plan.name] = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.words.append(Word(self.clock.now, intent, budget, config, digests))

    @property
    def word(self) -> Word:
        return self.words[-1]

    def word_at(self, at: float) -> Word:
        return next((word for word in reversed(self.words) if word.at <= at), self.words[0])

    def read(self, at: float) -> Written:
        word = self.word_at(at)
        stages = tuple(
            Stage(
                name,
                one.plan.machine,
                one.plan.reads,
                word.digests[name],
                marked=one.marked(at),
                progress=one.progress(word.digests[name], at),
                attempts=tuple(tried.seen(at) for tried in one.tried if tried.at <= at),
            )
            for name, one in self.stages.items()
        )
        slices = tuple(
            facts.seen(name, at) for name, facts in sorted(self.slices.items()) if facts.noted["requested"][0] <= at
        )
        told = frozenset(key for key, when in self.told.items() if when <= at)
        return Written(word.intent, self.policy, word.budget, stages, slices, told)

    def tried(self, stage: str, attempt: int) -> Tried | None:
        return next((one for one in self.stages[stage].tried if one.number == attempt), None)

    def overtaken(self, stage: str, attempt: int) -> bool:
        """What an attempt looks at before it publishes: its own end, or a claim with a higher number."""
        mine = self.tried(stage, attempt)
        return mine is None or mine.end is not None or self.stages[stage].tried[-1].number > attempt

    def publish(self, stage: str, digest: str) -> bool:
        """Make the marker; the first one of a digest stays, one of another digest is set aside."""
        markers = self.stages[stage].markers
        if markers and markers[-1][1] == digest:
            return False
        markers.append((self.clock.now, digest))
        return True


class Watcher:
    """Told of what is written; the invariants listen."""

    def claimed(self, stage: str, tried: Tried) -> None: ...
    def ended(self, stage: str, tried: Tried, looked_at: float) -> None: ...
    def requested(self, facts: Facts) -> None: ...


class LateJournal:
    """`Journal` for one controller, which may read what was true some seconds ago, and never goes back."""

    def __init__(self, store: Store, line: Line, caller: Caller, watcher: Watcher, lag: Callable[[], float]) -> None:
        self._store, self._line, self._caller, self._watcher = store, line, caller, watcher
        self._lag = lag
        self._read_at = self._looked_at = 0.0

    def read(self) -> Written:
        def now() -> Written:
            self._looked_at = self._store.clock.now
            self._read_at = max(self._read_at, self._store.clock.now - self._lag())
            return self._store.read(self._read_at)

        return self._line.ask(self._caller, now)

    def claim(self, stage: str, attempt: int, digest: str, slice: str | None) -> bool:
        by_clock, read_at = self._caller.time(), self._read_at

        def create() -> bool:
            there = self._store.stages[stage].tried
            if any(one.number == attempt for one in there):
                return False
            tried = Tried(attempt, digest, by_clock, slice, self._caller, read_at, self._store.clock.now)
            there.append(tried)
            there.sort(key=lambda one: one.number)
            self._watcher.claimed(stage, tried)
            return True

        return self._line.tell(self._caller, create)

    def stop(self, stage: str, attempt: int, stop: Stop) -> None:
        def create() -> None:
            tried = self._store.tried(stage, attempt)
            assert tried is not None, f"{stage} {attempt} is stopped and was never claimed"
            if tried.stop is None:
                tried.stop, tried.stop_at = stop, self._store.clock.now

        self._line.tell(self._caller, create)

    def end(self, stage: str, attempt: int, end: End) -> None:
        looked_at = self._looked_at

        def create() -> None:
            tried = self._store.tried(stage, attempt)
            assert tried is not None, f"{stage} {attempt} is ended and was never claimed"
            if tried.end is None:
                tried.end, tried.end_at = end, self._store.clock.now
                self._watcher.ended(stage, tried, looked_at)

        self._line.tell(self._caller, create)

    def request(self, name: str, zone: str, dollars_per_hour: float | None, at: float) -> str:
        read_at = self._read_at

        def create() -> str:
            if name not in self._store.slices:
                noted = {"requested": (self._store.clock.now, at)}
                self._store.slices[name] = Facts(zone, dollars_per_hour, noted, self._caller, read_at)
                self._watcher.requested(self._store.slices[name])
            return self._store.slices[name].zone

        return self._line.tell(self._caller, create)

    def note(self, name: str, fact: str, at: float, reason: str = "") -> None:
        def create() -> None:
            self._store.slices[name].noted.setdefault(fact, (self._store.clock.now, at))

        self._line.tell(self._caller, create)

    def told(self, key: str) -> bool:
        def create() -> bool:
            return self._store.told.setdefault(key, self._store.clock.now) == self._store.clock.now

        return self._line.tell(self._caller, create)

    def show(self, decision: Decision, at: float) -> None:
        self._line.ask(self._caller, lambda: None)
