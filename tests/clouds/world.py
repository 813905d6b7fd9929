"""What the fake clouds share: zones with capacity and quota over time, faults that are about to happen, and the bill.

Time is `clock()`: Unix seconds of the real clock, or of one that a test moves. What was planned (`at`, `after`) happens
when somebody looks (`settle`, which begins every call), at the time it was planned for, so a clock that jumps by an hour
loses nothing. All of it may be called from several threads.

    world = World(clock=lambda: now[0])
    world.zones["us-east5-b"] = Zone(capacity=16, quota=64)          # chips
    world.at(start + 600, lambda: world.preempt("us-east5-b"))
    world.fail("CreateQueuedResource", Code.DEADLINE_EXCEEDED, took_effect=True)
"""

import heapq
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import grpc

Code = grpc.StatusCode
T = TypeVar("T")


class Refusal(Exception):
    """An answer other than OK; `info` are reason, domain and metadata of a `google.rpc.ErrorInfo` beside it."""

    def __init__(
        self, code: grpc.StatusCode, message: str, info: tuple[str, str, dict[str, str]] | None = None
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code, self.message, self.info = code, message, info


@dataclass
class Zone:
    """Chips that are there for us, and chips that we may have."""

    capacity: int = 0
    quota: int | None = None
    """None: as many as there are."""
    generations: tuple[str, ...] = ("v6e",)
    """Kinds of accelerator that the zone has at all."""
    waiting: list[Callable[[], bool]] = field(default_factory=list)
    """Asked again whenever chips may have become free, in order of arrival; True: it need not be asked any more."""


@dataclass
class Holding:
    """A line of the ledger: chips that somebody had, from when to when."""

    name: str
    zone: str
    chips: int
    spot: bool
    begin: float
    taken: Callable[[], None]
    """Called when it is preempted."""
    end: float | None = None

    def hours(self, now: float) -> float:
        """Chip-hours so far; none before it has begun."""
        return self.chips * max(0.0, (self.end if self.end is not None else now) - self.begin) / 3600


@dataclass
class Fault:
    """What happens to the next calls of a method."""

    method: str
    refusal: Refusal | None = None
    took_effect: bool = False
    """The error comes after the act: the reply is lost, what was asked for happens."""
    seconds: float = 0.0
    """The answer takes so long, really."""
    times: int = 1


class World:
    """Everything outside of us."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._lock = clock, threading.RLock()
        self._planned: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0
        self._then: float | None = None
        self.zones: dict[str, Zone] = {}
        self.ledger: list[Holding] = []
        self.reserved: dict[str, tuple[str, int]] = {}
        """Name -> zone and chips that count against the quota, though there may be no machine behind them (yet)."""
        self.faults: list[Fault] = []
        self.calls: list[str] = []
        """Methods, in the order in which they were called."""
        self.ends_of_calls: Callable[[str], object] = lambda method: None

    # -- time ----------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """The time; of a planned event while it happens, the one that it was planned for."""
        return self._then if self._then is not None else self._clock()

    def at(self, when: float, what: Callable[[], object]) -> None:
        with self._lock:
            self._count += 1
            heapq.heappush(self._planned, (when, self._count, what))

    def after(self, seconds: float, what: Callable[[], object]) -> None:
        self.at(self.now + seconds, what)

    def settle(self) -> None:
        """Let everything happen that was to happen by now."""
        with self._lock:
            if self._then is not None:
                return  # an event looks around
            until = self._clock()
            try:
                while self._planned and self._planned[0][0] <= until:
                    self._then, _, what = heapq.heappop(self._planned)
                    what()
            finally:
                self._then = None

    # -- calls ---------------------------------------------------------------------------------------------------------

    def fail(
        self, method: str, code: grpc.StatusCode, message: str = "", *, took_effect: bool = False, times: int = 1
    ) -> None:
        """The next calls of this method are answered with an error."""
        self.faults.append(Fault(method, Refusal(code, message or code.name), took_effect, times=times))

    def delay(self, method: str, seconds: float, times: int = 1) -> None:
        """The next calls of this method take so long, by the real clock."""
        self.faults.append(Fault(method, seconds=seconds, times=times))

    def call(self, method: str, act: Callable[[], T]) -> T:
        """One call of a service: what happens to it on the way, and the act. Raises `Refusal`."""
        with self._lock:
            self.calls.append(method)
            fault = next((one for one in self.faults if one.method == method), None)
            if fault is not None:
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
        if fault is not None and fault.seconds:
            time.sleep(fault.seconds)
        if fault is not None and fault.refusal is not None and not fault.took_effect:
            raise fault.refusal
        with self._lock:
            self.settle()
            answer = act()
        self.ends_of_calls(method)
        if fault is not None and fault.refusal is not None:
            raise fault.refusal
        return answer

    # -- chips ---------------------------------------------------------------------------------------------------------

    def free(self, zone: str) -> int:
        """Chips that somebody could have now."""
        there = self.zones[zone].capacity if zone in self.zones else 0
        return there - sum(one.chips for one in self.held() if one.zone == zone)

    def held(self) -> list[Holding]:
        return [one for one in self.ledger if one.end is None]

    def take(
        self, name: str, zone: str, chips: int, taken: Callable[[], None], spot: bool = True, begin: float | None = None
    ) -> Holding | None:
        """Chips from now on, on the bill; None while there are not so many."""
        with self._lock:
            if self.free(zone) < chips:
                return None
            holding = Holding(name, zone, chips, spot, self.now if begin is None else begin, taken)
            self.ledger.append(holding)
            return holding

    def give_back(self, holding: Holding) -> None:
        with self._lock:
            if holding.end is None:
                holding.end = self.now
                self._offer(holding.zone)

    def preempt(self, zone: str, name: str | None = None) -> Holding | None:
        """Take the newest spot slice of a zone away, or this one; what was taken. The capacity stays as it is."""
        with self._lock:
            self.settle()
            held = [one for one in self.held() if one.zone == zone and one.spot and name in (None, one.name)]
            if not held:
                return None
            held[-1].taken()
            return held[-1]

    def set_capacity(self, zone: str, chips: int) -> None:
        """From now on; spot slices beyond it are preempted, the newest first."""
        with self._lock:
            self.settle()
            self.zones[zone].capacity = chips
            while self.free(zone) < 0 and self.preempt(zone) is not None:
                pass
            self._offer(zone)

    def wait(self, zone: str, ask: Callable[[], bool]) -> None:
        """`ask` now, and again whenever chips may have become free, until it says True."""
        with self._lock:
            if not ask():
                self.zones[zone].waiting.append(ask)

    def _offer(self, zone: str) -> None:
        waiting, self.zones[zone].waiting = self.zones[zone].waiting, []
        self.zones[zone].waiting = [ask for ask in waiting if not ask()] + self.zones[zone].waiting

    # -- quota ---------------------------------------------------------------------------------------------------------

    def reserve(self, name: str, zone: str, chips: int) -> bool:
        """Whether the quota allows for it; it counts from then on, until `unreserve`."""
        with self._lock:
            quota = self.zones[zone].quota
            used = sum(each for where, each in self.reserved.values() if where == zone)
            if name not in self.reserved and quota is not None and used + chips > quota:
                return False
            self.reserved[name] = (zone, chips)
            return True

    def unreserve(self, name: str) -> None:
        with self._lock:
            self.reserved.pop(name, None)

    # -- money ---------------------------------------------------------------------------------------------------------

    def bill(self, dollars_per_chip_hour: dict[str, float]) -> float:
        """Dollars for everything that anybody had, by zone."""
        return sum(one.hours(self.now) * dollars_per_chip_hour[one.zone] for one in self.ledger)
