"""What lies between a controller and a service. A call may fail, or its answer be lost, or it happens late, or twice."""

from collections import Counter
from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

from deploy.controller.backend import Unreachable
from tests.deploy.simulation.clock import Clock, Spans

T = TypeVar("T")
Mishap = Literal["call fails", "response lost", "call late", "call twice"]


class Caller(Protocol):
    """Whoever calls; it may crash or fall asleep at either moment."""

    def time(self) -> float:
        """By its own clock."""

    def about_to_call(self) -> None: ...
    def effect_done(self) -> None: ...


class Line:
    """The way to one service."""

    def __init__(self, name: str, clock: Clock, disturbed: Spans, met: Counter[str], look_seconds: float) -> None:
        self._name, self._clock, self._disturbed, self._met = name, clock, disturbed, met
        self._look = look_seconds
        self._down_until = 0.0
        self._outage_met = False
        self._armed: list[tuple[Mishap, float]] = []
        self._lost_in_outage = False
        self.outstanding = 0
        """Calls that will happen later."""

    def outage(self, seconds: float) -> None:
        self._down_until, self._outage_met = max(self._down_until, self._clock.now + seconds), False
        self._disturbed.add(self._clock.now - self._look, self._clock.now + seconds + 2 * self._look)

    def arm(self, mishap: Mishap, seconds: float) -> None:
        self._armed.append((mishap, seconds))

    def disarm(self) -> None:
        self._armed.clear()

    def ask(self, caller: Caller, effect: Callable[[], T]) -> T:
        """A call that changes nothing."""
        caller.about_to_call()
        if self._clock.now < self._down_until:
            self._meet_outage()
            raise Unreachable(f"{self._name} is down")
        if self._armed and self._armed[0][0] == "call fails":
            self._meet()
            raise Unreachable(f"{self._name} gave no answer")
        return effect()

    def tell(self, caller: Caller, effect: Callable[[], T]) -> T:
        """A call that does something."""
        caller.about_to_call()
        if self._clock.now < self._down_until:
            self._meet_outage()
            # Every other call during an outage gets through, and only its answer does not.
            self._lost_in_outage = not self._lost_in_outage
            if self._lost_in_outage:
                effect()
            raise Unreachable(f"{self._name} is down")
        mishap, seconds = self._meet() if self._armed else (None, 0.0)
        if mishap == "call late":
            self._later(seconds, effect)
        if mishap in ("call late", "call fails"):
            raise Unreachable(f"{self._name} gave no answer: {mishap}")
        answer = effect()
        if mishap == "call twice":
            self._later(seconds, effect)
        caller.effect_done()
        if mishap == "response lost":
            raise Unreachable(f"{self._name} did it, and its answer was lost")
        return answer

    def _meet_outage(self) -> None:
        if not self._outage_met:
            self._outage_met = True
            self._met[f"{self._name} outage"] += 1

    def _meet(self) -> tuple[Mishap, float]:
        mishap, seconds = self._armed.pop(0)
        self._met[mishap] += 1
        self._disturbed.add(self._clock.now - self._look, self._clock.now + 2 * self._look)
        return mishap, seconds

    def _later(self, seconds: float, effect: Callable[[], object]) -> None:
        self.outstanding += 1

        def happens() -> None:
            self.outstanding -= 1
            self._disturbed.add(self._clock.now, self._clock.now + 4 * self._look)
            effect()

        self._clock.after(seconds, happens)
