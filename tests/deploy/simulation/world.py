"""One schedule from beginning to end."""

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from deploy.controller.decision import Decision
from nanocode.config.settings import Budget
from nanocode.run.intent import Intent
from tests.deploy.simulation.clock import START, Clock, Spans
from tests.deploy.simulation.controllers import Ambush, Controller
from tests.deploy.simulation.faults import WHEN_MET, strike
from tests.deploy.simulation.invariants import SHOWN, Invariants
from tests.deploy.simulation.lines import Line
from tests.deploy.simulation.machines import Machines
from tests.deploy.simulation.schedule import AT_LEAST, KINDS, Fault, Plan, draw
from tests.deploy.simulation.slices import Zones
from tests.deploy.simulation.store import Store

TRY_AGAIN_SECONDS = 10.0
MOST_WORDS = 20
"""Of the user; a run in which nothing happens is not run again for ever."""
PERMISSION_SECONDS = 3600.0
"""For as long a zone is left alone in which we may do nothing."""


@dataclass
class Result:
    """What became of a schedule."""

    seed: int
    state: str = ""
    broken: list[str] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)
    """Faults that came to pass, and what the user did."""
    cut: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Action and point at which a controller was killed in it."""
    looks: int = 0
    minutes: float = 0.0
    """Of simulated time."""


class World:
    """Clock, journal, machines, slices and controllers."""

    def __init__(self, plan: Plan, trace: list[str] | None = None, zones: type[Zones] = Zones) -> None:
        """`zones`: what slices come from; of the same kind as ours."""
        self.plan, self.trace = plan, trace
        self.rng = random.Random(plan.seed + 1)
        self.clock, self.disturbed = Clock(), Spans()
        self.stepped = 0.0
        """Seconds by which clocks were wrong, in all."""
        self.met: Counter[str] = Counter()
        self.cut: Counter[tuple[str, str]] = Counter()
        self.looks = 0
        self.quiet = plan.quiet
        look = plan.policy.seconds_between_looks
        self.lines = {
            name: Line(name, self.clock, self.disturbed, self.met, look)
            for name in ("journal", "backend", "provisioner")
        }
        self.store = Store(self.clock, plan.stages, plan.policy, plan.budget)
        self.invariants = Invariants(self)
        self.machines = Machines(self.clock, self.store, self.rng, self.met, self.invariants)
        prices, release = plan.policy.dollars_per_slice_hour, plan.policy.release_seconds
        self.zones = zones(self.clock, self.rng, self.met, self.machines, prices, release, plan.permanent)
        self.machines.zones = self.zones
        self.ambushes: list[Ambush] = []
        self.controllers: list[Controller] = []
        self._end: Decision | None = None

    def run(self) -> Result:
        """Until everything rests, or something is broken."""
        self.begin("first")
        self._faults()
        while not self.clock.stopped and self.clock.now < (patient := self.quiet + self._patience()):
            self.clock.run_until(patient)
        minutes = (self.clock.now - START) / 60
        result = Result(self.plan.seed, met=+self.met, cut=self.cut, looks=self.looks, minutes=minutes)
        if self._end is not None:
            result.state = str(self._end.state)
            self.invariants.rested(self._end)
        elif not self.invariants.broken:
            states = [str(one.decision.state) if one.decision else "none" for one in self.controllers]
            self.invariants.broken.append(f"does not come to rest: {states}")
        result.broken = self.invariants.broken
        return result

    def _patience(self) -> float:
        """How long the rest may take once the last fault is over: each stage twice, and every deadline once."""
        policy = self.plan.policy
        deadlines = policy.admission_minutes + policy.start_minutes + policy.heartbeat_minutes
        once = deadlines * 60 + 2 * policy.termination_seconds + 120
        work = sum(2 * (once + 2 * stage.work_seconds + 120) for stage in self.plan.stages)
        slices = 2 * (policy.provision_minutes + policy.stockout_minutes) * 60 + 600
        refused = self.met["permission"] > 0
        return work + slices + refused * PERMISSION_SECONDS + 2 * self.stepped

    # -- faults --------------------------------------------------------------------------------------------------------

    def _faults(self, later: float = 0.0) -> None:
        for fault in self.plan.faults:
            self.clock.at(fault.at + later, partial(self._strike, fault))
        self.quiet = self.plan.quiet + later
        self.clock.at(self.quiet, self._quiet)

    def _strike(self, fault: Fault) -> None:
        if self.clock.now > self.quiet:
            return
        if not strike(self, fault):
            self.clock.after(TRY_AGAIN_SECONDS, lambda: self._strike(fault))
            return
        self.say(f"-- {fault.kind} ({fault.seconds:.0f} s)")
        if fault.kind not in WHEN_MET:
            self.met[fault.kind] += 1

    def _quiet(self) -> None:
        few = sum(count for kind, count in self.met.items() if kind in KINDS) < AT_LEAST
        if few and len(self.store.words) < MOST_WORDS:
            word = self.store.word
            forgiven = {name: len(one.tried) for name, one in self.store.stages.items()}
            intent = word.intent.model_copy(update={"want": "run", "forgiven": forgiven})
            self.user(intent, Budget(), tuple(number + 1 for number in word.config))
            self._faults(later=self.clock.now - START)
            return
        self.say("-- no more faults")
        self.ambushes.clear()
        for line in self.lines.values():
            line.disarm()
        self.machines.start_delay = self.zones.arrival_delay = 0.0

    def user(self, intent: Intent | None = None, budget: Budget | None = None, config: tuple[int, ...] = ()) -> None:
        self.store.say(intent, budget, config)
        self.say(f"-- the user wants {self.store.word.intent.want}, {self.store.word.budget}, {self.store.word.config}")
        if budget is not None:
            self.invariants.budget_changed(budget.dollars)

    # -- controllers ---------------------------------------------------------------------------------------------------

    def begin(self, name: str, offset: float = 0.0) -> Controller:
        one = Controller(self, name, offset)
        self.controllers.append(one)
        self.clock.after(0.0, one.look)
        return one

    def retire(self, one: Controller) -> None:
        """A second controller goes; whoever took over from it goes too."""
        for other in [other for other in self.controllers if other.name == one.name]:
            if len(self.controllers) > 1:
                other.gone = True
                self.controllers.remove(other)

    def crash(self, one: Controller, fault: str, seconds: float) -> None:
        self.say(f"{one.name} crashes")
        self.met[fault] += 1
        self._without(seconds)

        def take_over() -> None:
            if one in self.controllers:
                self.controllers.remove(one)
                self.begin(one.name, one.offset)

        self.clock.after(seconds, take_over)

    def pause(self, one: Controller, seconds: float) -> None:
        self.say(f"{one.name} falls asleep for {seconds:.0f} s")
        self.met["pause"] += 1
        self._without(seconds)
        self.clock.run_until(self.clock.now + seconds)
        self._without(0.0)
        self.say(f"{one.name} wakes up")

    def _without(self, seconds: float) -> None:
        look = self.plan.policy.seconds_between_looks
        self.disturbed.add(self.clock.now - look, self.clock.now + seconds + 3 * look)

    def looked(self, one: Controller, decision: Decision) -> None:
        self.looks += 1
        if self.trace is not None:
            stages = ", ".join(f"{name} {state.state}" for name, state in decision.stages.items())
            self.say(f"{one.name} sees: {decision.state} ({stages}), ${decision.spent_dollars:.3f}")
        self.invariants.looked(decision)
        outstanding = self.machines.sleeping + sum(line.outstanding for line in self.lines.values())
        resting = all(other.decision is not None and other.decision.resting for other in self.controllers)
        unseen = any(one.forgotten or one.shown not in SHOWN for one in self.machines.alive())
        still = all(other.began > self.quiet for other in self.controllers) and not outstanding and not unseen
        if resting and still and not self.clock.stopped:
            self._end = decision
            self.clock.stopped = True

    def say(self, text: str) -> None:
        if self.trace is not None and (not self.trace or not self.trace[-1].endswith(text)):
            self.trace.append(f"{self.clock.now - START:7.1f}  {text}")


def simulate(seed: int, trace: list[str] | None = None, zones: type[Zones] = Zones) -> Result:
    """Run the schedule of a seed."""
    return World(draw(seed), trace, zones).run()
