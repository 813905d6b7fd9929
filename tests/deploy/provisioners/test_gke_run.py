"""A run from beginning to end: the real controller and journal, the real client, a fake GKE, and work that takes time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.controller.backend import Unreachable
from deploy.controller.decision import State
from nanocode.run.intent import change_intent
from tests.clouds.world import Code, Zone
from tests.deploy.provisioners.gke_lab import A, B, C, Lab
from tests.deploy.provisioners.scene import LOOK, WORK, Scene

PRICES = {A: 4.0, B: 5.0, C: 6.0}
"""Of a slice of eight chips, by the hour."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as one:
        yield one


def test_a_run_finishes_through_a_stockout_two_preemptions_and_half_a_quota_and_leaves_nothing_behind(
    lab: Lab, tmp_path: Path
) -> None:
    lab.world.zones = {A: Zone(capacity=0), B: Zone(capacity=8), C: Zone(capacity=8, quota=4)}
    one = Scene(lab, tmp_path, PRICES)
    for _ in range(2):
        one.lose_a_slice(B)
    end = one.until(State.DONE, resting=True)
    assert one.zones == [A, B, A, C, B, C, A, B], (
        "the cheapest that has lost least, but for those that had nothing lately"
    )
    slices = one.slices
    assert [one.trouble for one in slices if one.zone == A] == ["stockout"] * 3
    assert [one.trouble for one in slices if one.zone == C] == ["quota"] * 2
    assert [one.trouble for one in slices if one.zone == B] == ["preempted", "preempted", None]
    assert lab.names == [] and not lab.world.held() and not lab.world.reserved
    begun = [one.ready for one in slices if one.ready is not None]
    assert begun == [holding.begin for holding in lab.world.ledger], "when it came, the node says"
    assert slices[-1].gone == lab.world.ledger[-1].end, "when it was deleted, GKE says"
    taken = 2 * LOOK * PRICES[B] / 3600
    assert one.ledger() < end.spent_dollars <= one.ledger() + taken, "when it was taken, the next look sees"
    assert one.ledger() > 5.0 * WORK / 3600


def test_the_bill_is_the_cloud_s_to_the_second_where_nothing_is_taken_away(lab: Lab, tmp_path: Path) -> None:
    one = Scene(lab, tmp_path, PRICES)
    end = one.until(State.DONE, resting=True)
    assert end.spent_dollars == pytest.approx(one.ledger(), abs=1e-5) and one.ledger() > 4.0 * WORK / 3600


def test_every_call_that_is_lost_in_turn_makes_no_second_pool_and_leaves_none(lab: Lab, tmp_path: Path) -> None:
    one = Scene(lab, tmp_path, PRICES)
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
    assert one.ledger() <= end.spent_dollars <= one.ledger() + late, "so many looks in a row are lost"


def test_a_cancelled_run_gives_its_slice_back(lab: Lab, tmp_path: Path) -> None:
    one = Scene(lab, tmp_path, PRICES)
    one.until(State.STARTING)
    change_intent(one.run, want="cancel")
    one.until(State.CANCELLED, resting=True)
    assert lab.names == [] and not lab.world.held()


def test_while_gke_gives_no_answer_nothing_is_decided_about_slices(lab: Lab, tmp_path: Path) -> None:
    one = Scene(lab, tmp_path, PRICES)
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
