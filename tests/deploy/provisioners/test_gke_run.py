"""A run from beginning to end: the real controller and journal, the real client, a fake GKE, and work that takes time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.controller.backend import Unreachable
from deploy.controller.decision import Decision, State
from deploy.controller.observed import Process, Seen
from deploy.controller.reconcile import Reconciler
from deploy.controller.record import RunJournal
from nanocode.config.settings import load
from nanocode.run.digests import stage_digests
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.intent import change_intent
from nanocode.run.settling import read_settings
from nanocode.storage.objects import open_store
from tests.clouds.world import Code, Zone
from tests.deploy.provisioners.gke_lab import A, B, C, Lab

LOOK = 15.0
PRICES = {A: 4.0, B: 5.0, C: 6.0}
"""Of a slice of eight chips, by the hour."""
WORK = 1200.0
"""Seconds that the stage takes, whatever it is cut into."""


@dataclass
class Pod:
    """One that needs a node of a pool."""

    pool: str
    running: float | None = None
    ended: Seen | None = None


class Pods:
    """`Backend`: a pod runs once its node is ready, and vanishes with it. What is done of the work is never lost."""

    def __init__(self, lab: Lab, run: RunDirectory) -> None:
        self._lab, self._run = lab, run
        self.pods: dict[tuple[str, int], Pod] = {}
        self.done = 0.0

    def observe(self, live: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], Seen]:
        return {key: self._seen(key, pod) for key, pod in self.pods.items() if key in live or pod.ended is None}

    def _seen(self, key: tuple[str, int], pod: Pod) -> Seen:
        now = self._lab.now()
        if pod.ended is not None:
            return pod.ended
        if pod.running is None:
            if not self._lab.gke.is_ready(pod.pool):
                return Seen(Process.PENDING, since=now)
            pod.running = now
        elif not self._lab.gke.is_ready(pod.pool):
            self._end(pod, Seen(Process.LOST, reason="its node is gone"))
        elif self.done + now - pod.running >= WORK:
            self._publish(*key)
            self._end(pod, Seen(Process.EXITED, 0))
        return pod.ended or Seen(Process.RUNNING, since=pod.running)

    def _end(self, pod: Pod, seen: Seen) -> None:
        self.done += self._lab.now() - pod.running if pod.running is not None else 0.0
        pod.ended = seen
        self._lab.gke.leave(pod.pool)

    def _publish(self, stage: str, attempt: int) -> None:
        digest = stage_digests(read_settings(self._run), self._run)[stage]
        at = datetime.fromtimestamp(self._lab.now(), UTC)
        self._run.finish(
            stage, Marker(stage=stage, input_digest=digest, attempt=attempt, outputs={"x": "y"}, started=at, ended=at)
        )

    def start(self, stage: str, attempt: int, slice: str | None) -> None:
        assert slice is not None
        self.pods[stage, attempt] = Pod(pool := self._lab.pools.pool_of(slice))
        self._lab.gke.wait_for(pool)

    def stop(self, stage: str, attempt: int) -> None:
        pod = self.pods.get((stage, attempt))
        if pod is not None and pod.ended is None:
            self._end(pod, Seen(Process.EXITED, 75))

    kill = stop

    def forget(self, stage: str, attempt: int) -> None:
        """Nothing is kept."""


class Scene:
    """One run of one accelerator stage; controllers come and go."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.run = RunDirectory(open_store(folder / "run"))
        sets = [
            "corpus.sources=[{location: gs://elsewhere/text}]",
            f"controller.seconds_between_looks={LOOK}",
            f"controller.zones=[{A}, {B}, {C}]",
            f"controller.dollars_per_slice_hour={{{A}: 4.0, {B}: 5.0, {C}: 6.0}}",
            "controller.start_minutes=600",
        ]
        self.run.add_config(load("demo", sets, environment={}).to_yaml())
        self.pods = Pods(lab, self.run)
        for stage in ("tokenizer", "corpus"):
            self.pods._publish(stage, 0)
        change_intent(self.run, stages=("pretrain",))
        self.begin()

    def begin(self) -> None:
        """A controller that knows nothing takes over."""
        self.lab.pools = self.lab.another()
        self.journal = RunJournal(self.run)
        self.controller = Reconciler(self.journal, self.pods, self.lab.pools, lambda tell: None, self.lab.now)

    def until(
        self, state: State | None = None, minutes: float = 180, every: int = 7, resting: bool = False
    ) -> Decision:
        """Look after look, with another controller now and then."""
        for number in range(int(minutes * 60 / LOOK)):
            self.lab.now.seconds += LOOK
            if number % every == every - 1:
                self.begin()
            decision = self.controller.once()
            if decision.state is state and (decision.resting or not resting):
                return decision
        raise AssertionError(f"{decision.state}: {decision.reason}, {decision.stages}")

    @property
    def zones(self) -> list[str]:
        """Where slices were asked for, in that order."""
        slices = self.journal.read().slices
        return [one.zone for one in sorted(slices, key=lambda one: int(one.name.rpartition("-")[2]))]

    def bill(self) -> float:
        return self.lab.world.bill({zone: price / 8 for zone, price in PRICES.items()})


@pytest.fixture
def lab() -> object:
    with Lab() as one:
        yield one


def test_a_run_finishes_through_a_stockout_two_preemptions_and_half_a_quota_and_leaves_nothing_behind(
    lab: Lab, tmp_path: Path
) -> None:
    lab.world.zones = {A: Zone(capacity=0), B: Zone(capacity=8), C: Zone(capacity=8, quota=4)}
    one = Scene(lab, tmp_path)
    for _ in range(2):
        one.until(State.STARTING)
        while not lab.world.held():
            one.until(State.STARTING)
        for _ in range(20):
            lab.now.seconds += LOOK
            one.controller.once()
        assert lab.world.preempt(B) is not None
    end = one.until(State.DONE, resting=True)
    assert one.zones == [A, B, A, C, B, C, A, B], (
        "the cheapest that has lost least, but for those that had nothing lately"
    )
    slices = one.journal.read().slices
    assert [one.trouble for one in slices if one.zone == A] == ["stockout"] * 3
    assert [one.trouble for one in slices if one.zone == C] == ["quota"] * 2
    assert [one.trouble for one in slices if one.zone == B] == ["preempted", "preempted", None]
    assert lab.names == [] and not lab.world.held() and not lab.world.reserved
    within = LOOK * sum(PRICES[zone] for zone in one.zones if zone == B) / 3600
    assert one.bill() <= end.spent_dollars <= one.bill() + within, "when a node went is seen a look later at most"
    begun = [one.ready for one in slices if one.ready is not None]
    assert begun == [holding.begin for holding in lab.world.ledger], "when it came, the node says"
    assert one.bill() > 5.0 * WORK / 3600


def test_every_call_that_is_lost_in_turn_makes_no_second_pool_and_leaves_none(lab: Lab, tmp_path: Path) -> None:
    one = Scene(lab, tmp_path)
    acts = ("CreateNodePool", "DeleteNodePool")
    looks = ("ListNodePools", "ListOperations", "GetOperation", "GetCluster")
    for method in (*acts, *looks):
        lab.world.fail(method, Code.DEADLINE_EXCEEDED, took_effect=True, times=2)
        lab.world.fail(method, Code.UNAVAILABLE, times=2)
    end = one.until(State.DONE, every=3, resting=True)
    assert one.zones == [A]
    assert lab.names == [] and not lab.world.held()
    assert len(lab.world.ledger) == 1
    late = 5 * LOOK * PRICES[A] / 3600
    assert one.bill() <= end.spent_dollars <= one.bill() + late, "so many looks in a row are lost"


def test_a_cancelled_run_gives_its_slice_back(lab: Lab, tmp_path: Path) -> None:
    one = Scene(lab, tmp_path)
    one.until(State.STARTING)
    change_intent(one.run, want="cancel")
    one.until(State.CANCELLED, resting=True)
    assert lab.names == [] and not lab.world.held()


def test_while_gke_gives_no_answer_nothing_is_decided_about_slices(lab: Lab, tmp_path: Path) -> None:
    one = Scene(lab, tmp_path)
    one.until(State.STARTING)
    before = one.journal.read().slices
    lab.world.fail("ListNodePools", Code.UNAVAILABLE, times=8)
    for _ in range(8):
        lab.now.seconds += LOOK
        one.controller.once()
    assert one.journal.read().slices == before
    lab.world.fail("ListNodePools", Code.UNAVAILABLE)
    with pytest.raises(Unreachable):
        lab.pools.observe()
