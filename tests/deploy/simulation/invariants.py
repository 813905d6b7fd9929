"""What must never be seen, whatever happens.

Deadlines are stretched by the time during which something was wrong (`World.disturbed`), and by the clock's steps.
"""

from collections import Counter
from typing import TYPE_CHECKING

from deploy.controller.decision import Decision, State
from deploy.controller.observed import Process
from nanocode.run.attempts import End, Ending
from tests.deploy.simulation.lines import Caller
from tests.deploy.simulation.machines import Running
from tests.deploy.simulation.store import Facts, StageFacts, Tried, Watcher

if TYPE_CHECKING:
    from tests.deploy.simulation.world import World

LOOKS = 4
"""To see something, to act on it, to see that it is done, and one to spare."""
CENT = 1e-6
BY_CODE = {75: Ending.PREEMPTED, -15: Ending.PREEMPTED, 78: Ending.CONFIGURATION, 2: Ending.CONFIGURATION}
SHOWN = (Process.PENDING, Process.RUNNING)


class Invariants(Watcher):
    """Of one schedule; the first that is broken ends it."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.broken: list[str] = []
        self._writers: dict[str, int] = {}
        self._published: Counter[tuple[str, str]] = Counter()
        self._idle_since: dict[str, float] = {}
        self._woken: dict[int, float] = {}
        dollars = world.plan.budget.dollars
        self._allowed = float("inf") if dollars is None else dollars
        kinds = {fault.kind for fault in world.plan.faults}
        self._true_clocks = "clock step" not in kinds

    def _must(self, holds: bool, text: str) -> None:
        if not holds:
            self._world.say(f"BROKEN: {text}")
            self.broken.append(text)
            self._world.clock.stopped = True

    def _lasts(self, since: float) -> float:
        """Seconds since then in which everything was well."""
        now = self._world.clock.now
        return now - since - self._world.disturbed.seconds(since, now) - 2 * self._world.stepped

    def _recent(self, since: float, seconds: float = 0.0) -> bool:
        return self._lasts(since) <= LOOKS * self._world.plan.policy.seconds_between_looks + seconds

    # -- attempts ------------------------------------------------------------------------------------------------------

    def claimed(self, stage: str, tried: Tried) -> None:
        world, facts = self._world, self._world.store.stages[stage]
        name = f"{stage} {tried.number}"
        word = world.store.word_at(tried.read_at)
        before = [one for one in facts.tried if one.number < tried.number]
        self._must(all(one.end is not None for one in before), f"{name} begins while an attempt before it lives")
        self._must(not self._given_up(facts, tried.digest), f"{name} begins though the stage has failed for good")
        self._must(facts.marked(tried.read_at) != tried.digest, f"{name} begins though the stage is done")
        self._must(tried.digest == word.digests[stage], f"{name} begins with settings that do not count any more")
        for other in facts.plan.reads:
            done = world.store.stages[other].marked(tried.read_at) == word.digests[other]
            self._must(done, f"{name} begins before {other} is done")
        self._must(word.intent.want == "run", f"{name} begins though the user wants to {word.intent.want}")
        live = [one for each in world.store.stages.values() for one in each.tried if one.end is None]
        known = [one for one in live if one is not tried and self._known(tried, one.at, one.claimer, one.read_at)]
        self._must(len(known) < world.plan.policy.attempts_at_once, f"{name} begins beside {len(known)} others")
        others = [one for one in known if one.slice is not None and one.slice == tried.slice]
        self._must(not others, f"{name} begins on {tried.slice}, where another attempt lives")

    def started(self, caller: Caller, stage: str, attempt: int, slice: str | None, tried: Tried | None) -> None:
        mine = tried is not None and tried.claimer is caller and tried.slice == slice
        self._must(mine, f"{stage} {attempt} is started by one who did not claim it")

    @staticmethod
    def _known(by: Tried | Facts, written: float, writer: Caller, read_at: float) -> bool:
        """Whether whoever wrote `by` knew of something: it had read it, or written it in the same round."""
        author = by.claimer if isinstance(by, Tried) else by.wisher
        return written <= by.read_at or (writer is author and read_at == by.read_at)

    def requested(self, facts: Facts) -> None:
        there = [one for one in self._world.store.slices.values() if one is not facts and "gone" not in one.noted]
        known = [one for one in there if self._known(facts, one.noted["requested"][0], one.wisher, one.read_at)]
        most = self._world.plan.policy.slices_at_once
        self._must(len(known) < most, f"a slice is asked for beside {len(known)} others")

    def ended(self, stage: str, tried: Tried, looked_at: float) -> None:
        assert tried.end is not None
        world, facts, end = self._world, self._world.store.stages[stage], tried.end
        name = f"{stage} {tried.number}"
        marked = any(digest == tried.digest for _, digest in facts.markers)
        self._must(marked or end.ending is not Ending.DONE, f"{name} counts as done without a marker")
        furthest = facts.progress(world.store.word.digests[stage], world.clock.now)
        if self._recent(world.store.word.at):
            furthest = max((step for _, _, step in facts.saved), default=0)
        self._must(end.progress <= furthest, f"{name} ended at {end.progress}, but no more than {furthest} is safe")
        one = next((one for one in reversed(world.machines.all) if self._is(one, stage, tried)), None)
        if one is None:
            none = end.ending in (Ending.PREEMPTED, Ending.STOPPED, Ending.DONE)
            hung = tried.stop is not None and tried.stop.hung
            self._must(none or hung, f"{name} never had a process, and counts as {end.ending}")
            return
        if one.alive and one.shown in SHOWN:
            self._must(looked_at <= one.appeared, f"{name} is ended while its process lives")
        elif one.shown is Process.EXITED and not marked:
            allowed = self._allowed_endings(one, tried, looked_at)
            self._must(end.ending in allowed, f"{name} ended with {one.code} and counts as {end.ending}")
        elif one.shown is Process.LOST and tried.stop is None and not marked:
            self._must(end.ending is Ending.PREEMPTED, f"{name} vanished with its host and counts as {end.ending}")
        if tried.stop is not None and tried.stop.hung and self._true_clocks:
            silent = one.fate == "hang" or one.id in self._woken or not self._recent(one.born, 80)
            self._must(silent, f"{name} was healthy and was stopped as hanging")

    @staticmethod
    def _is(one: Running, stage: str, tried: Tried) -> bool:
        return (one.stage, one.attempt) == (stage, tried.number)

    def _allowed_endings(self, one: Running, tried: Tried, looked_at: float) -> set[Ending]:
        by_code = Ending.PREEMPTED if one.disrupted else BY_CODE.get(one.code or 0, Ending.FAILED)
        if tried.stop is not None:
            by_stop = Ending.FAILED if tried.stop.hung else Ending.STOPPED
            return {by_stop} if not self._recent(tried.stop_at) else {by_stop, by_code}
        # Whoever looked before it appeared saw none, and may have slept on that while it lived and ended.
        return {by_code, Ending.PREEMPTED} if looked_at <= one.appeared else {by_code}

    def _counted(self, facts: StageFacts, digest: str) -> list[End]:
        forgiven = self._world.store.word.intent.forgiven.get(facts.plan.name, 0)
        mine = [one.end for one in facts.tried if one.digest == digest and one.number > forgiven]
        return [end for end in mine if end is not None and end.ending is not Ending.STOPPED]

    def _given_up(self, facts: StageFacts, digest: str) -> bool:
        """Whether a stage has failed for good, counted by hand: no preemption is among it."""
        policy, ends = self._world.plan.policy, self._counted(facts, digest)
        count = furthest = 0
        for end in ends:
            if end.progress > furthest:
                count, furthest = 0, end.progress
            if end.ending is Ending.FAILED:
                count += 1
        still = policy.attempts_without_progress
        nowhere = len(ends) >= still and len({end.progress for end in ends[-still:]}) == 1
        return count >= policy.failures or nowhere or any(end.ending is Ending.CONFIGURATION for end in ends)

    # -- processes -----------------------------------------------------------------------------------------------------

    def wrote(self, name: str, one: Running) -> None:
        self._world.say(f"{one.name} saves {name}")
        self._must(self._writers.setdefault(name, one.id) == one.id, f"{name} is written by two processes")

    def publishes(self, one: Running) -> None:
        store = self._world.store
        there, wanted = store.stages[one.stage].marked(self._world.clock.now), store.word.digests[one.stage]
        if there == wanted and one.digest != wanted:
            grace = self._world.plan.policy.termination_seconds + 10
            self._must(self._recent(store.word.at, grace), f"{one.name} overwrites the marker that counts")

    def published(self, one: Running) -> None:
        self._world.say(f"{one.name} is done")
        self._published[one.stage, one.digest] += 1
        wanted = [word.digests[one.stage] == one.digest for word in self._world.store.words]
        times = sum(now and not before for before, now in zip([False, *wanted], wanted, strict=False))
        self._must(self._published[one.stage, one.digest] <= times, f"{one.stage} is done twice with one digest")

    def killed(self, one: Running) -> None:
        tried = self._world.store.tried(one.stage, one.attempt)
        over = tried is None or tried.end is not None or tried.stop is not None
        self._must(over, f"{one.name} is killed, and nobody had told it to leave")

    def died(self, one: Running) -> None:
        self._world.say(f"{one.name} ends with {one.code}")

    def woke(self, one: Running) -> None:
        self._world.say(f"{one.name} wakes up")
        self._woken[one.id] = self._world.clock.now

    # -- every look ----------------------------------------------------------------------------------------------------

    def budget_changed(self, dollars: float | None) -> None:
        """What is spent is spent, and stopping costs."""
        self._allowed = float("inf") if dollars is None else max(dollars, self._world.zones.spent() + self._stopping())

    def _stopping(self) -> float:
        policy = self._world.plan.policy
        seconds = policy.termination_seconds + policy.release_seconds + (LOOKS + 1) * policy.seconds_between_looks
        return sum(one.price for one in self._world.zones.present()) * seconds / 3600

    def looked(self, decision: Decision) -> None:
        self._money()
        self._slices()
        self._strays()
        self._stops(decision)
        for name, state in decision.stages.items():
            facts, word = self._world.store.stages[name], self._world.store.word
            if state.state is State.FAILED and not self._recent(word.at):
                self._must(self._given_up(facts, word.digests[name]), f"{name} is given up without a cause")

    def _money(self) -> None:
        world = self._world
        excuse = CENT
        for one in world.zones.all:
            if one.ready is not None:
                until = one.paid_until or world.clock.now
                seconds = world.disturbed.seconds(one.ready, until) + 2 * world.stepped
                excuse += one.price * seconds / 3600
        spent = world.zones.spent()
        self._must(spent <= self._allowed + excuse, f"${spent:.4f} spent, ${self._allowed:.4f} allowed, +{excuse:.4f}")

    def _slices(self) -> None:
        world, policy = self._world, self._world.plan.policy
        live = {one.slice for facts in world.store.stages.values() for one in facts.tried if one.end is None}
        live |= {one.slice for one in world.machines.alive() if one.shown in SHOWN}
        before, self._idle_since = self._idle_since, {}
        for one in world.zones.present():
            if one.name not in live and one.ready is not None:
                since = self._idle_since[one.name] = before.get(one.name, world.clock.now)
                bound = policy.hold_minutes * 60 + policy.release_seconds
                self._must(self._recent(since, bound), f"nobody has used {one.name} since {since:.0f}")
            if one.ready is None:
                bound = policy.provision_minutes * 60 + policy.release_seconds
                self._must(self._recent(one.asked, bound), f"{one.name} never came and is still asked for")

    def _strays(self) -> None:
        world = self._world
        for one in world.machines.alive():
            tried = world.store.tried(one.stage, one.attempt)
            if one.shown in SHOWN and (tried is None or tried.end is not None):
                since = max(one.born, one.since, tried.end_at if tried else 0.0)
                self._must(self._recent(since), f"{one.name} lives though its attempt has ended")

    def _stops(self, decision: Decision) -> None:
        """What the user has stopped has nothing live, and holds nothing."""
        world, policy = self._world, self._world.plan.policy
        if world.store.word.intent.want == "run":
            return
        if not self._recent(world.store.word.at, policy.termination_seconds + policy.release_seconds):
            alive = [one for one in world.machines.alive() if one.shown in SHOWN and not self._recent(one.appeared)]
            self._must(not alive, f"{[one.name for one in alive]} live though the run is stopped")
            held = [one.name for one in world.zones.present() if not self._recent(one.asked, policy.release_seconds)]
            self._must(not held, f"{held} are held though the run is stopped")

    # -- the end -------------------------------------------------------------------------------------------------------

    def rested(self, decision: Decision) -> None:
        """Everything is over: nothing is left, and how it ended is true."""
        world, word = self._world, self._world.store.word
        now = world.clock.now
        self._must(not world.machines.alive(), "a process is left")
        self._must(not world.zones.present(), "a slice is left")
        left = [
            f"{name} {one.number}" for name, facts in world.store.stages.items() for one in facts.tried if not one.end
        ]
        self._must(not left, f"{left} are left open")
        done = {name: facts.marked(now) == word.digests[name] for name, facts in world.store.stages.items()}
        said = {name: state.state is State.DONE for name, state in decision.stages.items()}
        self._must(done == said, f"done are {done}, and it says {said}")
        self._must((decision.state is State.DONE) == all(done.values()), f"the run is {decision.state}: {done}")
        want = {State.SUSPENDED: "suspend", State.CANCELLED: "cancel"}.get(decision.state, "run")
        self._must(
            decision.state is State.DONE or want == word.intent.want,
            f"{decision.state}: the user wants {word.intent.want}",
        )
        if decision.state is State.FAILED:
            causes = [self._given_up(facts, word.digests[name]) for name, facts in world.store.stages.items()]
            self._must(any(causes), "the run has failed without a cause")
        if decision.state is State.OVER_BUDGET:
            self._spent_enough()

    def _spent_enough(self) -> None:
        world, policy = self._world, self._world.plan.policy
        dearest = max(policy.dollars_per_slice_hour.values())
        seconds = policy.termination_seconds + policy.release_seconds + (LOOKS + 1) * policy.seconds_between_looks
        kept = policy.slices_at_once * dearest * (seconds + 300) / 3600
        slack = dearest * (2 * world.stepped + sum(world.disturbed.seconds(one.asked, 1e12) for one in world.zones.all))
        dollars = world.store.word.budget.dollars
        spent = world.zones.spent()
        enough = dollars is not None and spent + kept + slack / 3600 >= dollars
        self._must(enough, f"stopped by the budget of {dollars} with ${spent:.4f} spent")
