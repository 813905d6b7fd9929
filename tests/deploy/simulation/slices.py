"""The provisioner: zones that have slices or not, slices that come late and are taken away, and the bill."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.controller.observed import Slice, Trouble
from tests.deploy.simulation.clock import Clock
from tests.deploy.simulation.lines import Caller, Line
from tests.deploy.simulation.machines import Machines, Running

PERMANENT = "this machine"


@dataclass
class Machine:
    """A slice as the provisioner has it."""

    name: str
    zone: str
    price: float
    asked: float
    ready: float | None = None
    leaving: bool = False
    trouble: Trouble | None = None
    gone: float | None = None
    paid_until: float | None = None
    """It costs no more from then on, though it may be shown for a while."""

    def cost(self, now: float) -> float:
        if self.ready is None:
            return 0.0
        return max(0.0, (self.paid_until or now) - self.ready) * self.price / 3600


class Zones:
    """All slices, and the zones they come from."""

    def __init__(
        self,
        clock: Clock,
        rng: random.Random,
        met: Counter[str],
        machines: Machines,
        prices: Mapping[str, float],
        release_seconds: float,
        permanent: bool,
    ) -> None:
        self._clock, self._rng, self._met, self._machines = clock, rng, met, machines
        self._prices, self._release_seconds = prices, release_seconds
        self.refusing: dict[str, tuple[Trouble, float]] = {}
        """Zone -> what it answers, until when."""
        self.arrival_delay = 0.0
        """Added to the next arrival."""
        self.all: list[Machine] = []
        self.permanent = Slice(PERMANENT, "here", usable=True, permanent=True) if permanent else None

    def present(self) -> list[Machine]:
        return [one for one in self.all if one.gone is None]

    def shown(self, name: str) -> Machine | None:
        return next((one for one in self.all if one.name == name and one.gone is None), None)

    def spent(self) -> float:
        return sum(one.cost(self._clock.now) for one in self.all)

    def takes(self, name: str, alive: list[Running], asking: Running) -> bool:
        """Whether a process can run on a slice now: it is there, and nobody else runs on it."""
        if self.permanent is None or name != PERMANENT:
            one = self.shown(name)
            if one is None or one.ready is None or one.trouble is not None or one.leaving:
                return False
        return not any(other.slice == name and other.began_work and other is not asking for other in alive)

    # -- what a controller asks for ------------------------------------------------------------------------------------

    def request(self, name: str, zone: str) -> None:
        if self.shown(name) is not None:
            return
        one = Machine(name, zone, self._prices[zone], self._clock.now)
        self.all.append(one)
        if self._refuses(one):
            return
        self._met["slow arrival"] += self.arrival_delay > 0
        delay, self.arrival_delay = self._rng.uniform(5, 60) + self.arrival_delay, 0.0
        self._clock.after(delay, lambda: self._arrive(one))

    def _arrive(self, one: Machine) -> None:
        if one.gone is None and not one.leaving and not self._refuses(one):
            one.ready = self._clock.now

    def _refuses(self, one: Machine) -> bool:
        trouble, until = self.refusing.get(one.zone, (None, 0.0))
        if trouble is None or self._clock.now >= until:
            return False
        one.trouble = trouble
        self._met[trouble.value] += 1
        return True

    def release(self, name: str) -> None:
        one = self.shown(name)
        if one is None or one.leaving:
            return
        one.leaving = True
        self._clock.after(self._rng.uniform(0.1, 0.95) * self._release_seconds, lambda: self._is_gone(one))

    def _is_gone(self, one: Machine) -> None:
        if one.gone is None:
            one.gone = self._clock.now
            one.paid_until = one.paid_until or self._clock.now
            self._lose_processes(one)

    def observe(self) -> dict[str, Slice]:
        there = {
            one.name: Slice(
                one.name,
                one.zone,
                present=True,
                usable=one.ready is not None and one.trouble is None and not one.leaving,
                trouble=one.trouble,
            )
            for one in self.present()
        }
        return there if self.permanent is None else {PERMANENT: self.permanent, **there}

    # -- faults --------------------------------------------------------------------------------------------------------

    def preempt(self, one: Machine, grace: float, shown_for: float) -> None:
        """Take it away: with a warning or without, and shown afterwards for a while or not."""

        def away() -> None:
            if one.gone is not None:
                return
            one.paid_until = self._clock.now
            self._lose_processes(one)
            if shown_for:
                one.trouble = Trouble.PREEMPTED
                self._clock.after(shown_for, lambda: self._is_gone(one))
            else:
                self._is_gone(one)

        for process in self._machines.alive():
            if process.slice == one.name and grace:
                self._machines.told_by_platform(process, grace)
        self._clock.after(grace, away)

    def _lose_processes(self, one: Machine) -> None:
        for process in self._machines.alive():
            if process.slice == one.name:
                if self._rng.random() < 0.5:
                    self._machines.vanish(process)
                else:
                    self._machines.die(process, -9, disrupted=True)


class RemoteZones:
    """`Provisioner` for one controller."""

    def __init__(self, zones: Zones, line: Line, caller: Caller) -> None:
        self._zones, self._line, self._caller = zones, line, caller

    def observe(self) -> Mapping[str, Slice]:
        return self._line.ask(self._caller, self._zones.observe)

    def request(self, name: str, zone: str) -> None:
        self._line.tell(self._caller, lambda: self._zones.request(name, zone))

    def release(self, name: str) -> None:
        self._line.tell(self._caller, lambda: self._zones.release(name))
