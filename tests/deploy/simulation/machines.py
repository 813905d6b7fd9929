"""The backend: processes that start, save, hang, are told to leave, vanish, and come back."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from deploy.controller.observed import Process, Seen
from tests.deploy.simulation.clock import Clock
from tests.deploy.simulation.lines import Caller, Line
from tests.deploy.simulation.store import Store

if TYPE_CHECKING:
    from tests.deploy.simulation.invariants import Invariants
    from tests.deploy.simulation.slices import Zones


@dataclass
class Running:
    """A process, whether the backend knows of it or not."""

    id: int
    stage: str
    attempt: int
    digest: str
    slice: str | None
    born: float
    shown: Process = Process.PENDING
    forgotten: bool = False
    alive: bool = True
    code: int | None = None
    disrupted: bool = False
    since: float = 0.0
    appeared: float = 0.0
    """Since when the backend has shown it as alive: its birth, or when it came back."""
    step: int = 0
    began_work: bool = False
    fate: str = ""
    """`hang` or `deaf`."""
    silent_since: float | None = None
    told: bool = False
    turn: int = 0
    """What was planned for an earlier turn does not happen."""

    @property
    def name(self) -> str:
        return f"{self.stage} {self.attempt} (process {self.id})"


Event = Callable[[Running], None]


class Machines:
    """All processes of a run."""

    def __init__(
        self, clock: Clock, store: Store, rng: random.Random, met: Counter[str], invariants: "Invariants"
    ) -> None:
        self._clock, self._store, self._rng, self._met, self._invariants = clock, store, rng, met, invariants
        self.zones: Zones
        self.all: list[Running] = []
        self.sleeping = 0
        """Zombies that will wake up."""
        self.start_delay = 0.0
        """Added to the next start."""

    def shown(self, stage: str, attempt: int) -> Running | None:
        """What the backend has under this name."""
        found = (one for one in reversed(self.all) if (one.stage, one.attempt) == (stage, attempt))
        return next((one for one in found if not one.forgotten), None)

    def alive(self) -> list[Running]:
        return [one for one in self.all if one.alive]

    # -- what a controller asks for ------------------------------------------------------------------------------------

    def start(self, caller: Caller, stage: str, attempt: int, slice: str | None) -> None:
        tried = self._store.tried(stage, attempt)
        self._invariants.started(caller, stage, attempt, slice, tried)
        if self.shown(stage, attempt) is not None:
            return
        assert tried is not None
        now = self._clock.now
        one = Running(len(self.all), stage, attempt, tried.digest, slice, now, since=now, appeared=now)
        self.all.append(one)
        self._met["slow to start"] += self.start_delay > 0
        delay, self.start_delay = self._rng.uniform(0.5, 8) + self.start_delay, 0.0
        self._later(one, delay, self._arrive)

    def stop(self, stage: str, attempt: int) -> None:
        one = self.shown(stage, attempt)
        if one is None or one.told or one.shown not in (Process.PENDING, Process.RUNNING):
            return
        if one.shown is Process.PENDING:
            self.die(one, -15)
        elif one.alive:
            self._tell(one, self._rng.uniform(0.5, 10))

    def kill(self, stage: str, attempt: int) -> None:
        one = self.shown(stage, attempt)
        if one is not None and one.shown in (Process.PENDING, Process.RUNNING):
            self._invariants.killed(one)
            self._later(one, self._rng.uniform(0, 3), partial(self.die, code=-9))

    def forget(self, stage: str, attempt: int) -> None:
        one = self.shown(stage, attempt)
        if one is not None and one.shown in (Process.EXITED, Process.LOST):
            one.forgotten = True

    def observe(self) -> dict[tuple[str, int], Seen]:
        return {
            (one.stage, one.attempt): Seen(
                one.shown,
                one.code if one.shown is Process.EXITED else None,
                one.disrupted,
                one.since,
            )
            for one in self.all
            if not one.forgotten
        }

    # -- the life of a process -----------------------------------------------------------------------------------------

    def _later(self, one: Running, seconds: float, what: Event) -> None:
        one.turn += 1
        turn = one.turn

        def happens() -> None:
            if one.alive and one.turn == turn:
                what(one)

        self._clock.after(seconds, happens)

    def _arrive(self, one: Running) -> None:
        if one.slice is not None and not self.zones.takes(one.slice, self.alive(), one):
            self._later(one, 5.0, self._arrive)
            return
        one.shown, one.since = Process.RUNNING, self._clock.now
        plan = self._store.stages[one.stage].plan
        if one.fate == "hang":
            one.silent_since = self._clock.now
            return
        self._later(one, plan.start_seconds, self._first_step)

    def _first_step(self, one: Running) -> None:
        facts = self._store.stages[one.stage]
        if facts.marked(self._clock.now) == one.digest:
            self.die(one, 0)
            return
        if self._leaves(one):
            return
        one.step, one.began_work = facts.progress(one.digest, self._clock.now), True
        tried = self._store.tried(one.stage, one.attempt)
        assert tried is not None
        if tried.first_step is None:
            tried.first_step = self._clock.now
            tried.last_sign = lambda at: self._last_sign(one, at)
        self._work_on(one)

    def _last_sign(self, one: Running, at: float) -> float:
        until = one.silent_since if one.silent_since is not None else one.since if not one.alive else at
        return min(at, max(until, 0.0))

    def _work_on(self, one: Running) -> None:
        plan = self._store.stages[one.stage].plan
        left = plan.work_seconds - one.step
        self._later(one, max(1.0, min(plan.checkpoint_seconds, left)), self._save)

    def _save(self, one: Running) -> None:
        plan = self._store.stages[one.stage].plan
        if self._leaves(one):
            return
        one.step = min(one.step + int(plan.checkpoint_seconds) + 1, int(plan.work_seconds) + 1)
        self._write(one)
        if one.step >= plan.work_seconds:
            if one.fate == "no marker":
                self._met["exit 0 without a marker"] += 1
                self.die(one, 0)
                return
            self._invariants.publishes(one)
            if self._store.publish(one.stage, one.digest):
                self._invariants.published(one)
            self._later(one, 1.0, self._exit)
        else:
            self._work_on(one)

    def _write(self, one: Running) -> None:
        self._invariants.wrote(f"{one.stage}/attempts/{one.attempt}/checkpoints/{one.step}", one)
        self._store.stages[one.stage].saved.append((self._clock.now, one.digest, one.step))

    def _exit(self, one: Running) -> None:
        self.die(one, 0)

    def _leaves(self, one: Running) -> bool:
        if not self._store.overtaken(one.stage, one.attempt):
            return False
        self.die(one, 75)
        return True

    def _save_and_leave(self, one: Running) -> None:
        if one.began_work and self._rng.random() < 0.5 and not self._store.overtaken(one.stage, one.attempt):
            one.step += 1
            self._write(one)
        self.die(one, 75)

    def die(self, one: Running, code: int, disrupted: bool = False) -> None:
        if not one.alive:
            return
        one.alive, one.code = False, code
        one.silent_since = one.silent_since or self._clock.now
        if one.shown in (Process.PENDING, Process.RUNNING):
            one.shown, one.since, one.disrupted = Process.EXITED, self._clock.now, disrupted
        self._invariants.died(one)

    # -- faults --------------------------------------------------------------------------------------------------------

    def vanish(self, one: Running) -> None:
        """The host is gone, and with it the process."""
        if one.shown in (Process.PENDING, Process.RUNNING):
            one.shown, one.since = Process.LOST, self._clock.now
        one.alive, one.silent_since = False, one.silent_since or self._clock.now

    def sleep(self, one: Running, seconds: float, comes_back: bool) -> None:
        """The host does not answer, and the process stands still; later it goes on as if nothing had happened."""
        one.shown, one.since, one.silent_since = Process.LOST, self._clock.now, self._clock.now
        self.sleeping += 1

        def wake() -> None:
            self.sleeping -= 1
            if not one.alive:
                return
            one.silent_since = None
            self._invariants.woke(one)
            if comes_back and self.shown(one.stage, one.attempt) in (one, None):
                one.shown, one.forgotten = Process.RUNNING, False
                one.since = one.appeared = self._clock.now
            (self._work_on if one.began_work else self._first_step)(one)

        one.turn += 1
        self._clock.after(seconds, wake)

    def told_by_platform(self, one: Running, grace: float) -> None:
        """The slice goes away in a moment."""
        if not one.told:
            self._tell(one, self._rng.uniform(1, grace * 1.5))

    def _tell(self, one: Running, seconds: float) -> None:
        """SIGTERM: it leaves so much later, unless it is stuck."""
        one.told = True
        self._met["deaf to SIGTERM"] += one.fate == "deaf"
        if one.fate not in ("hang", "deaf"):
            self._later(one, seconds, self._save_and_leave)


class RemoteMachines:
    """`Backend` for one controller."""

    def __init__(self, machines: Machines, line: Line, caller: Caller) -> None:
        self._machines, self._line, self._caller = machines, line, caller

    def observe(self, live: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], Seen]:
        return self._line.ask(self._caller, self._machines.observe)

    def start(self, stage: str, attempt: int, slice: str | None) -> None:
        self._line.tell(self._caller, lambda: self._machines.start(self._caller, stage, attempt, slice))

    def stop(self, stage: str, attempt: int) -> None:
        self._line.tell(self._caller, lambda: self._machines.stop(stage, attempt))

    def kill(self, stage: str, attempt: int) -> None:
        self._line.tell(self._caller, lambda: self._machines.kill(stage, attempt))

    def forget(self, stage: str, attempt: int) -> None:
        self._line.tell(self._caller, lambda: self._machines.forget(stage, attempt))
