"""The controller over node pools of an in-process GKE, through random schedules of faults.

No slice twice, none that nobody holds, none left behind, and none whose cost is missing from the bill.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from deploy.controller import policies
from deploy.controller.backend import Unreachable
from deploy.controller.decision import Decision
from deploy.controller.journal import Written
from deploy.controller.observed import Attempt, Observed, Process, Seen, Slice, Stage, Trouble
from deploy.controller.reconcile import Reconciler
from deploy.provisioners.gke import NodePools
from deploy.provisioners.gke_client import Container
from deploy.provisioners.labels import SLICE, name_of, run_label
from nanocode.config.settings import Budget, Cloud, Controller
from nanocode.run.attempts import End, Stop
from nanocode.run.intent import Intent
from tests.clouds.fixtures import Now
from tests.clouds.gke import FakeGke
from tests.clouds.world import Code, World, Zone
from tests.deploy.provisioners.gke_lab import FOUR_HOSTS, A, B, C
from tests.deploy.simulation.runner import silence

LOOK, WORK, LONGEST = 10.0, 900.0, 24 * 3600.0
ACTS = ("CreateNodePool", "DeleteNodePool")
LOOKS = ("ListNodePools", "GetNodePool", "GetOperation", "ListOperations", "GetCluster")
LOST = (Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE, Code.INTERNAL, Code.ABORTED)
DIGEST = "a" * 32
RUN = run_label("gs://b/r")


class Memory:
    """`Journal` in this process, of a run of one stage; facts are written once."""

    def __init__(self, policy: Controller, now: Now) -> None:
        self.policy, self.now = policy, now
        self.attempts: dict[int, Attempt] = {}
        self.slices: dict[str, Slice] = {}
        self.marked: str | None = None

    def read(self) -> Written:
        attempts = tuple(self.attempts[number] for number in sorted(self.attempts))
        stage = Stage("pretrain", "accelerator", (), DIGEST, marked=self.marked, attempts=attempts)
        slices = tuple(self.slices[name] for name in sorted(self.slices))
        return Written(Intent(), self.policy, Budget(), (stage,), slices)

    def claim(self, stage: str, attempt: int, digest: str, slice: str | None) -> bool:
        if attempt in self.attempts:
            return False
        self.attempts[attempt] = Attempt(attempt, digest, self.now(), slice=slice)
        return True

    def stop(self, stage: str, attempt: int, stop: Stop) -> None:
        one = self.attempts[attempt]
        self.attempts[attempt] = replace(one, stop=one.stop or stop)

    def end(self, stage: str, attempt: int, end: End) -> None:
        # Every attempt gets a little further: none of these runs goes nowhere.
        one = self.attempts[attempt]
        self.attempts[attempt] = replace(one, end=one.end or end.model_copy(update={"progress": attempt}))

    def request(self, name: str, zone: str, dollars_per_hour: float | None, at: float) -> str:
        wish = Slice(name, zone, dollars_per_hour, requested=at, present=False)
        return self.slices.setdefault(name, wish).zone

    def note(self, name: str, fact: str, at: float, reason: str = "") -> None:
        one = self.slices[name]
        if fact in ("ready", "released", "gone"):
            if getattr(one, fact) is None:
                self.slices[name] = replace(one, **{fact: at})
        elif one.trouble is None:
            self.slices[name] = replace(one, trouble=Trouble(fact), reason=reason)

    def told(self, key: str) -> bool:
        return False

    def show(self, decision: Decision, at: float) -> None:
        """Nobody looks."""


class Schedule:
    """One of them."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.now, self.met = Now(), Counter[str]()
        self.world = World(self.now)
        self.world.zones = {zone: Zone(rng.choice((0, 16, 32)), rng.choice((None, 4, 16))) for zone in (A, B, C)}
        self.world.zones[B] = Zone(16)
        self.gke = FakeGke(self.world, operation_seconds=rng.uniform(5, 120), serves=False)
        self.cloud = Cloud(**(FOUR_HOSTS if rng.random() < 0.5 else {}))
        self.prices = prices = {zone: rng.uniform(2, 6) for zone in (A, B, C)}
        policy = Controller(
            seconds_between_looks=LOOK, zones=(A, B, C), dollars_per_slice_hour=prices, attempts_without_progress=1000
        )
        self.journal = Memory(policy, self.now)
        self.pods: dict[int, tuple[str, float | None, Seen | None]] = {}
        self.done = 0.0
        self.broken: list[str] = []
        self.faults_until = self.now() + 2 * 3600
        self.controllers = [Mind(self) for _ in range(rng.choice((1, 1, 2)))]

    def run(self) -> "Schedule":
        end = self.now() + LONGEST
        while self.now() < end and not self.broken:
            self.now.seconds += LOOK
            if self.now() < self.faults_until:
                self._strike()
            decisions = [one.look() for one in self.controllers]
            self._check()
            if all(one is not None and one.resting for one in decisions) and self.now() > self.faults_until:
                self._at_rest()
                return self
        self.broken = self.broken or ["it does not come to rest"]
        return self

    def _strike(self) -> None:
        rng = self.rng
        if rng.random() > 0.08:
            return
        kind = rng.choice(
            ("reply lost", "call fails", "outage", "preempted", "crash", "stockout", "back", "no permission")
        )
        self.met[kind] += 1
        match kind:
            case "reply lost":
                self.world.fail(rng.choice(ACTS), rng.choice(LOST), took_effect=True)
            case "call fails":
                self.world.fail(rng.choice(ACTS + LOOKS), rng.choice(LOST), times=rng.randint(1, 3))
            case "outage":
                self.world.fail("ListNodePools", Code.UNAVAILABLE, times=rng.randint(3, 30))
            case "preempted":
                self.world.preempt(rng.choice((A, B, C)))
            case "crash":
                index = rng.randrange(len(self.controllers))
                self.controllers[index].crashes_after = rng.randint(0, 12)
            case "stockout":
                self.world.set_capacity(rng.choice((A, C)), 0)
            case "back":
                self.world.set_capacity(rng.choice((A, B, C)), 16)
            case "no permission":
                self.world.fail("CreateNodePool", Code.PERMISSION_DENIED, 'Required "container.clusters.update"')

    def _check(self) -> None:
        """What has to hold at every moment."""
        self.world.settle()
        slices = Counter(str(pool.shown.config.resource_labels[SLICE]) for pool in self.gke.pools.values())
        self.broken += [f"{name} was made and never written down" for name in slices if name not in self.journal.slices]
        self.broken += [f"{name} was made {count} times" for name, count in slices.items() if count > 1]
        costing = [one.name for one in self.world.held()]
        if len(costing) > 1:
            self.broken.append(f"slices that cost at once, where one may: {costing}")

    def _at_rest(self) -> None:
        if self.journal.marked is None:
            self.broken.append("it rests and is not done")
        if self.gke.pools or self.world.held() or self.world.reserved:
            self.broken.append(f"left behind: {sorted(self.gke.pools)}")
        self._bill_is_whole()

    def _bill_is_whole(self) -> None:
        """Nothing that the cloud bills is missing from ours, which is rounded up; but for machines that came and went
        while nobody looked, and those that an instance group makes again in a pool that we have given up."""
        written = self.journal.read()
        ours = policies.bill(Observed(self.now(), written.intent, written.stages, written.slices))
        chips = 16 if self.cloud.topology == "4x4" else 8
        known = {name_of(RUN, name): one for name, one in self.journal.slices.items() if one.ready is not None}
        theirs = sum(
            line.hours(self.now()) * self.prices[line.zone] / chips
            for line in self.world.ledger
            if (one := known.get(line.name)) is not None
            and (one.trouble is not Trouble.PREEMPTED or line.begin < (one.released or self.now()))
        )
        if sum(ours.values()) < theirs - 1e-6:
            self.broken.append(f"${theirs:.4f} by the cloud, ${sum(ours.values()):.4f} by us")


class Mind:
    """A controller: it may end at any call, and another one that knows nothing takes over."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.crashes_after: int | None = None
        self.begin()

    def begin(self) -> None:
        one = self.schedule
        container = Container(one.gke.where, one.gke.direct)
        self.pools = NodePools(
            container,
            RUN,
            "ada",
            one.gke.view,
            lambda: one.cloud,
            one.now,
            recorded=one.journal.slices.values,
        )
        self.reconciler = Reconciler(one.journal, self, self.pools, lambda tell: None, one.now)

    def look(self) -> Decision | None:
        world = self.schedule.world
        world.ends_of_calls = self._maybe_crash
        try:
            return self.reconciler.once()
        except Crash:
            self.crashes_after = None
            self.begin()
            return None
        finally:
            world.ends_of_calls = lambda method: None

    def _maybe_crash(self, method: str) -> None:
        if self.crashes_after is not None:
            self.crashes_after -= 1
            if self.crashes_after < 0:
                raise Crash

    # -- its backend: pods that run once their nodes are ready, and vanish with them -----------------------------------

    def observe(self, live: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], Seen]:
        return {("pretrain", number): self._seen(number) for number in list(self.schedule.pods)}

    def _seen(self, number: int) -> Seen:
        one = self.schedule
        pool, running, ended = one.pods[number]
        if ended is None and running is None and one.gke.is_ready(pool):
            running = one.now()
        elif ended is None and running is not None:
            if not one.gke.is_ready(pool):
                ended = Seen(Process.LOST, reason="its node is gone")
            elif one.done + one.now() - running >= WORK:
                one.journal.marked, ended = DIGEST, Seen(Process.EXITED, 0)
        if ended is not None and one.pods[number][2] is None:
            self._leave(number)
        one.pods[number] = (pool, running, ended)
        return ended or Seen(Process.PENDING if running is None else Process.RUNNING, since=running or one.now())

    def _leave(self, number: int) -> None:
        one = self.schedule
        pool, running, _ = one.pods[number]
        one.done += one.now() - running if running is not None else 0.0
        one.gke.leave(pool)

    def start(self, stage: str, attempt: int, slice: str | None) -> None:
        assert slice is not None
        one = self.schedule
        if attempt not in one.pods:
            try:
                pool = self.pools.pool_of(slice)
            except LookupError as error:
                raise Unreachable(str(error)) from error
            one.pods[attempt] = (pool, None, None)
            one.gke.wait_for(pool)

    def stop(self, stage: str, attempt: int) -> None:
        if attempt in self.schedule.pods and self.schedule.pods[attempt][2] is None:
            self._leave(attempt)
            pool, running, _ = self.schedule.pods[attempt]
            self.schedule.pods[attempt] = (pool, running, Seen(Process.EXITED, 75))

    kill = stop

    def forget(self, stage: str, attempt: int) -> None:
        self.schedule.pods.pop(attempt, None)


class Crash(BaseException):
    """The controller's process ends here."""


def run(first: int, count: int) -> tuple[list[tuple[int, str]], Counter[str]]:
    """What was broken, with its seed, and what was met."""
    met, broken = Counter[str](), []
    with silence():
        for seed in range(first, first + count):
            one = Schedule(seed).run()
            met += one.met
            broken += [(seed, text) for text in one.broken]
    return broken, met
