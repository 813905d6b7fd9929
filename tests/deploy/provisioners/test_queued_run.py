"""A run from beginning to end on queued resources: the real controller and journal, the real client, a fake Cloud TPU API."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from deploy.controller.decision import State
from deploy.controller.observed import Slice
from deploy.provisioners import labels
from deploy.provisioners.queued import Connection, QueuedResources
from nanocode.config.settings import Cloud
from nanocode.run.intent import change_intent
from tests.clouds.fixtures import Now
from tests.clouds.tpu import TpuServer, TpuService
from tests.clouds.world import Code, World, Zone
from tests.deploy.provisioners.scene import LOOK, WORK, Scene

A, B, C = "us-east5-a", "us-east5-b", "us-east5-c"
PRICES = {A: 4.0, B: 5.0, C: 6.0}
"""Of a slice of eight chips, by the hour."""
URL = "gs://bucket/d24"


class Tpus:
    """Three zones with room for two slices each, and the provisioner of a run in them."""

    def __init__(self) -> None:
        self.now = Now()
        self.world = World(self.now)
        self.world.zones = {zone: Zone(capacity=16) for zone in PRICES}
        self.service = TpuService(self.world)
        self.server = TpuServer(self.service)
        self.cloud = Cloud(image="jobs@sha256:0", owner="ada")
        self._connection = Connection(self.server.client(), "lab")

    def provisioner(self, recorded: Callable[[], Iterable[Slice]]) -> QueuedResources:
        return QueuedResources(self._connection, URL, lambda: self.cloud, recorded, self.now)

    def place(self, slice: str) -> str:
        return labels.name_of(labels.run_label(URL), slice)

    def wait_for(self, place: str) -> None:
        """Its VMs look for work by themselves."""

    leave = wait_for

    def is_ready(self, place: str) -> bool:
        self.world.settle()
        return any(name.endswith(f"/{place}") and one.state.name == "ACTIVE" for name, one in self.service.all.items())

    def is_empty(self) -> bool:
        self.world.settle()
        return not self.service.all and not self.world.held() and not self.world.reserved


@pytest.fixture
def tpus() -> Iterator[Tpus]:
    one = Tpus()
    yield one
    one.server.close()


def test_a_run_finishes_through_a_stockout_two_preemptions_and_half_a_quota_and_leaves_nothing_behind(
    tpus: Tpus, tmp_path: Path
) -> None:
    tpus.world.zones = {A: Zone(capacity=0), B: Zone(capacity=8), C: Zone(capacity=8, quota=4)}
    one = Scene(tpus, tmp_path, PRICES)
    for _ in range(2):
        one.lose_a_slice(B)
    end = one.until(State.DONE, resting=True)
    slices = one.slices
    assert one.zones == [A, B, A, C, B, A, C, B], (
        "the cheapest that has lost least, but for those that had nothing lately"
    )
    assert [one.trouble for one in slices if one.zone == B] == ["preempted", "preempted", None]
    assert {one.trouble for one in slices if one.zone == A} == {"stockout"}
    assert {one.trouble for one in slices if one.zone == C} == {"quota"}
    assert tpus.is_empty()
    assert slices[-1].gone == tpus.world.ledger[-1].end, "when it was deleted, the API says"
    looks = 3 + 2
    within = looks * LOOK * PRICES[B] / 3600
    assert one.ledger() < end.spent_dollars <= one.ledger() + within, (
        "one look for when each came, and one for when two went"
    )
    assert one.ledger() > 5.0 * WORK / 3600


def test_the_bill_of_a_slice_that_we_give_back_is_the_cloud_s_and_at_most_a_look_more(
    tpus: Tpus, tmp_path: Path
) -> None:
    one = Scene(tpus, tmp_path, PRICES)
    end = one.until(State.DONE, resting=True)
    assert one.zones == [A]
    assert one.ledger() <= end.spent_dollars <= one.ledger() + LOOK * PRICES[A] / 3600
    assert one.slices[0].gone == tpus.world.ledger[0].end


def test_every_call_that_is_lost_in_turn_makes_no_second_slice_and_leaves_none(tpus: Tpus, tmp_path: Path) -> None:
    one = Scene(tpus, tmp_path, PRICES)
    for method in ("CreateQueuedResource", "DeleteQueuedResource", "ListQueuedResources", "ListOperations"):
        tpus.world.fail(method, Code.DEADLINE_EXCEEDED, took_effect=True, times=2)
        tpus.world.fail(method, Code.UNAVAILABLE, times=2)
    end = one.until(State.DONE, every=3, resting=True)
    assert one.zones == [A] and len(tpus.world.ledger) == 1
    assert tpus.is_empty()
    assert one.ledger() <= end.spent_dollars <= one.ledger() + 5 * LOOK * PRICES[A] / 3600


def test_a_slice_that_somebody_else_deletes_is_billed_until_then(tpus: Tpus, tmp_path: Path) -> None:
    one = Scene(tpus, tmp_path, PRICES)
    one.until_it_works()
    tpus.provisioner(tuple).delete(A, tpus.place("slice-1"))
    at = tpus.now()
    one.until(State.DONE, resting=True)
    assert one.slices[0].gone == at


def test_a_cancelled_run_gives_its_slice_back(tpus: Tpus, tmp_path: Path) -> None:
    one = Scene(tpus, tmp_path, PRICES)
    one.until(State.STARTING)
    change_intent(one.run, want="cancel")
    one.until(State.CANCELLED, resting=True)
    assert tpus.is_empty()
