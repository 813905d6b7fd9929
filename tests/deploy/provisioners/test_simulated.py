"""Queued resources under the controller's simulator; `python -m tests.deploy.provisioners` runs thousands."""

import uuid
from typing import Any

import pytest

from deploy.provisioners import labels, queued
from tests.deploy.provisioners.simulated import QueuedZones
from tests.deploy.simulation.runner import Summary, run

SCHEDULES = 60


def schedules(count: int, stop_at_first: bool = False) -> Summary:
    return run(0, count, stop_at_first, zones=QueuedZones)


@pytest.fixture(scope="module")
def summary() -> Summary:
    return schedules(SCHEDULES)


def test_nothing_is_made_twice_and_nothing_is_left_whatever_goes_wrong(summary: Summary) -> None:
    assert summary.broken == []
    assert summary.schedules == SCHEDULES


def test_slices_are_preempted_refused_and_lost_meanwhile(summary: Summary) -> None:
    for fault in ("slice preempted", "stockout", "quota", "api error", "call late", "call twice", "response lost"):
        assert summary.met[fault], fault


def test_a_name_that_is_new_at_every_request_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "name_of", lambda run, slice: f"nanocode-{uuid.uuid4().hex[:20]}")
    assert schedules(20, stop_at_first=True).broken


def test_a_suspended_request_that_is_not_deleted_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    delete = queued.QueuedResources.delete

    def unless_suspended(self: queued.QueuedResources, zone: str, called: str) -> None:
        service: Any = self._connection.client._service
        if all(one.state.name != "SUSPENDED" for name, one in service.all.items() if name.endswith(called)):
            delete(self, zone, called)

    monkeypatch.setattr(queued.QueuedResources, "delete", unless_suspended)
    assert schedules(40, stop_at_first=True).broken
