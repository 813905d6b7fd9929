"""What a run has cost, from the facts in its directory, and by the same rules as the controller's."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.controller import policies
from deploy.controller.observed import Observed
from deploy.controller.record import RunJournal
from nanocode.config.settings import Settings, load
from nanocode.run import copied, costs
from nanocode.run.costs import Bill, bill
from nanocode.run.directory import Claim, RunDirectory
from nanocode.storage.objects import LocalStore

NOW = 1_000_000.0
HOUR = 3600.0
PRICES = ("controller.dollars_per_slice_hour={pool: 6.0, east: 5.0}", "prices.cluster_hour=0.5")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(LocalStore(tmp_path / "run"))
    run.add_config(settings(run).to_yaml())
    return run


def settings(run: RunDirectory, *overrides: str) -> Settings:
    return load("demo", [f"corpus.sources={run.store.url}", *PRICES, *overrides], environment={})


def slice_(run: RunDirectory, name: str, zone: str = "west", price: float | None = 4.0, **ago: float) -> None:
    """Facts of one slice, by how many hours ago they became true."""
    wish = {"zone": zone, "dollars_per_hour": price, "at": NOW - ago.pop("asked") * HOUR}
    run.store.create(f"slices/{name}/REQUEST.json", json.dumps(wish).encode())
    for fact, hours in ago.items():
        run.store.create(f"slices/{name}/{fact}.json", json.dumps({"at": NOW - hours * HOUR}).encode())


def attempt(slice: str | None, begin: float, end: float | None, number: int = 1) -> tuple[Claim, float | None]:
    """From so many hours ago until so many hours ago."""
    claimed = datetime.fromtimestamp(NOW - begin * HOUR, UTC)
    claim = Claim(
        stage="pretrain", attempt=number, input_digest="a" * 32, who="controller", claimed=claimed, slice=slice
    )
    return claim, None if end is None else NOW - end * HOUR


def billed(run: RunDirectory, *attempts: tuple[Claim, float | None]) -> Bill:
    return bill(run, settings(run), attempts, NOW)


def by_slice(found: Bill) -> dict[str, Any]:
    return {one.name: one.dollars for one in found.slices}


def test_a_slice_costs_from_when_it_came_until_it_is_gone(run: RunDirectory) -> None:
    slice_(run, "slice-1", asked=9, ready=8, released=6, gone=5)
    slice_(run, "slice-2", asked=4, ready=2)
    slice_(run, "slice-3", asked=1)
    slice_(run, "slice-4", asked=3, quota=3, released=3, gone=2)
    found = billed(run)
    assert by_slice(found) == pytest.approx({"slice-1": 12.0, "slice-2": 8.0, "slice-3": 0.0, "slice-4": 0.0})
    assert [one.name for one in found.slices if one.costs] == ["slice-2"]
    assert found.at_work == pytest.approx(0.5 * 8), "asked 9 h ago until gone 5 h ago, and from 4 h ago until now"


def test_a_slice_that_was_taken_away_costs_until_that_was_seen(run: RunDirectory) -> None:
    slice_(run, "slice-1", asked=9, ready=8, preempted=6, released=6)
    slice_(run, "slice-2", asked=9, ready=8, preempted=6, released=6, gone=7)
    found = billed(run)
    assert by_slice(found) == pytest.approx({"slice-1": 8.0, "slice-2": 4.0})
    assert not any(one.costs for one in found.slices)


def test_what_nobody_priced_when_it_was_asked_for_has_the_price_of_now(run: RunDirectory) -> None:
    slice_(run, "slice-1", "east", None, asked=2, ready=2)
    slice_(run, "slice-2", "north", None, asked=2, ready=2)
    slice_(run, "slice-3", "south", None, asked=2)
    found = billed(run)
    assert by_slice(found)["slice-1"] == pytest.approx(10.0)
    assert by_slice(found)["slice-2"] is None
    assert found.unpriced == ["north"]
    assert found.dollars == pytest.approx(10.0 + 1.0)


def test_a_pool_costs_while_an_attempt_lives_on_it_and_this_machine_nothing(run: RunDirectory) -> None:
    found = billed(run, attempt("pool", 5, 4), attempt("pool", 2, None, 2), attempt("this machine", 9, 8, 3))
    assert by_slice(found) == pytest.approx({"pool": 18.0, "this machine": 0.0})
    assert costs.dollars_per_hour(run, settings(run), "pool") == 6.0
    assert costs.dollars_per_hour(run, settings(run), "this machine") is None
    assert costs.dollars_per_hour(run, settings(run), None) is None
    assert costs.dollars_per_hour(run, settings(run), "slice-9") is None


def test_a_fact_that_cannot_be_read_is_none(run: RunDirectory) -> None:
    slice_(run, "slice-1", asked=2, ready=2)
    run.store.write("slices/slice-1/gone.json", b"{")
    run.store.write("slices/slice-2/REQUEST.json", b"[]")
    assert by_slice(billed(run)) == pytest.approx({"slice-1": 8.0})


spans = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=8)


@given(spans)
def test_a_union_holds_each_instant_once(several: Sequence[tuple[int, int]]) -> None:
    covered = {instant for begin, end in several for instant in range(begin, end)}
    found = costs.union([(float(begin), float(end)) for begin, end in several])
    assert costs.hours(found) * 3600 == pytest.approx(len(covered))


def test_the_controller_bills_the_same(run: RunDirectory) -> None:
    slice_(run, "slice-1", asked=9, ready=8, released=6, gone=5)
    slice_(run, "slice-2", "east", None, asked=4, ready=2)
    slice_(run, "slice-3", asked=3, ready=3, preempted=2, released=2, gone=1)
    copied.count(run, 4 * 2**30, "pretrain", 1)
    run.add_config(settings(run, "prices.egress_gb=0.5").to_yaml())
    written, found = RunJournal(run).read(), bill(run, settings(run, "prices.egress_gb=0.5"), (), NOW)
    seen = Observed(
        NOW,
        written.intent,
        written.stages,
        written.slices,
        dollars_per_hour_at_work=written.dollars_per_hour_at_work,
        dollars_copied=written.dollars_copied,
    )
    assert policies.bill(seen) == pytest.approx(by_slice(found))
    assert policies.spent(seen) == pytest.approx(found.dollars)
    assert policies.spent(seen) == pytest.approx(12.0 + 10.0 + 4.0 + 4.0 + 2.0)


def test_what_was_copied_between_regions_is_in_the_bill_and_without_a_price_known_as_that(run: RunDirectory) -> None:
    assert (billed(run).copied, billed(run).copied_bytes) == (0.0, 0)
    for size in (2**30, 2**30, 2**29):
        copied.count(run, size, "base-eval", 12)
    run.store.write("copied/nonsense", b"")
    priced = bill(run, settings(run, "prices.egress_gb=0.02"), (), NOW)
    assert (priced.copied_bytes, priced.copied) == (2.5 * 2**30, pytest.approx(0.05))
    assert priced.dollars == priced.copied
    assert billed(run).copied is None and billed(run).dollars == 0.0
