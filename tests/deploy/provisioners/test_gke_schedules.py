"""Node pools under random faults; `python -m tests.deploy.provisioners` runs thousands."""

import pytest

from deploy.controller.observed import Slice
from deploy.provisioners.gke_client import Container
from tests.deploy.provisioners.gke_schedules import run

pytestmark = pytest.mark.slow

SCHEDULES = 60


def test_no_schedule_makes_a_slice_twice_leaves_one_behind_or_forgets_to_bill_one() -> None:
    broken, met = run(0, SCHEDULES)
    assert broken == []
    assert min(met.values()) >= SCHEDULES / 4


def test_a_pool_that_is_never_deleted_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Container, "delete", lambda container, name: None)
    assert run(0, 1)[0]


def test_a_slice_that_is_billed_a_minute_short_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(slice: Slice, seen: object) -> float | None:
        return None if slice.since is None else slice.since + 60

    monkeypatch.setattr("deploy.controller.slices.came", late)
    assert run(0, 5)[0]
