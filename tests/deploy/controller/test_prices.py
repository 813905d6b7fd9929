"""What a budget asks of prices, and of what is still to come."""

from dataclasses import replace

import pytest

from deploy.controller import policies
from deploy.controller.observed import Slice, Stage, Trouble
from nanocode.config.settings import Budget, Controller
from nanocode.run.attempts import Ending
from nanocode.run.intent import Intent
from tests.deploy.controller.builders import (
    DIGEST,
    HERE,
    MINUTE,
    NOW,
    POLICY,
    accelerator,
    attempt,
    cpu,
    over,
    slice_,
    world,
)


def test_a_zone_without_a_price_uses_up_no_budget() -> None:
    policy = POLICY.model_copy(update={"zones": ("south",)})
    assert policies.over_budget(world(slices=()), policy, Budget(dollars=0.001)) == ""


def test_a_slice_that_is_coming_costs_nothing_yet_and_has_to_be_worth_its_start() -> None:
    coming, stopping = world(slices=(slice_(1, ready=None),)), policies.cost_of_stopping([4.0], POLICY)
    assert policies.over_budget(coming, POLICY, Budget(dollars=stopping + 4.0 * 4 / 60))
    assert policies.over_budget(coming, POLICY, Budget(dollars=stopping + 4.0 * 6 / 60)) == ""


def test_a_slice_that_was_taken_away_costs_nothing_while_its_remains_are_cleared_away() -> None:
    taken = {"trouble": Trouble.PREEMPTED, "released": NOW - 30 * MINUTE}
    one = slice_(1, "east", ready=60 * MINUTE, **taken)
    assert policies.spent(world(slices=(one,))) == pytest.approx(2.0)
    given_back = slice_(1, "east", ready=60 * MINUTE, released=NOW - 30 * MINUTE)
    assert policies.spent(world(slices=(given_back,))) == pytest.approx(4.0)


def test_slices_cost_from_when_they_came_until_they_are_gone() -> None:
    hour = 60 * MINUTE
    going = slice_(1, "east", ready=hour)
    back = slice_(2, "north", ready=2 * hour, released=NOW - hour - 60, gone=NOW - hour, present=False)
    coming = slice_(3, "north", ready=None)
    assert policies.spent(world(slices=(going, back, coming))) == pytest.approx(4.0 + 8.0)
    assert policies.spent(world(slices=(replace(going, released=NOW - 60),))) == pytest.approx(4.0)


def test_a_permanent_slice_costs_while_an_attempt_lives_on_it() -> None:
    pool = replace(HERE, dollars_per_hour=6.0)
    stage = accelerator(
        "a", over(1, Ending.PREEMPTED, ago=30 * MINUTE, slice=HERE.name), attempt(2, ago=10 * MINUTE, slice=HERE.name)
    )
    elsewhere = accelerator("b", attempt(1, ago=60 * MINUTE, slice="slice-1"))
    assert policies.spent(world(stage, elsewhere, slices=(pool,))) == pytest.approx(6.0 * (10 + 600) / 3600)


def test_stopping_costs_the_grace_and_the_way_back() -> None:
    policy = Controller(termination_seconds=100, release_seconds=200, seconds_between_looks=12)
    assert policies.cost_of_stopping([3.0, 6.0], policy) == pytest.approx(9.0 * 360 / 3600)
    assert policies.cost_of_stopping([], policy) == 0


def test_without_a_budget_there_is_no_limit() -> None:
    assert policies.over_budget(world(slices=(slice_(1, ready=1e6),)), POLICY, Budget()) == ""


def test_with_nothing_held_a_new_slice_has_to_be_worth_its_start() -> None:
    gone = slice_(1, "east", ready=60 * MINUTE, released=NOW, gone=NOW, present=False)
    worth = policies.cost_of_stopping([4.0], POLICY) + 4.0 * 5 / 60
    assert policies.over_budget(world(slices=(gone,)), POLICY, Budget(dollars=4.0 + worth + 0.001)) == ""
    assert "raise budget.dollars" in policies.over_budget(
        world(slices=(gone,)), POLICY, Budget(dollars=4.0 + worth - 0.001)
    )


def test_the_bill_is_by_slice() -> None:
    hour = 60 * MINUTE
    back = slice_(2, "north", ready=2 * hour, gone=NOW - hour, present=False)
    bill = policies.bill(world(slices=(slice_(1, "east", ready=hour / 2), back, HERE)))
    assert bill == pytest.approx({"slice-1": 2.0, "slice-2": 8.0, HERE.name: 0.0})
    assert policies.bill(world(slices=(slice_(1, dollars_per_hour=None),))) == {"slice-1": 0.0}


def test_a_slice_costs_nothing_from_when_the_cloud_says_that_it_went() -> None:
    taken = slice_(1, "east", ready=60 * MINUTE, until=NOW - 30 * MINUTE, trouble=Trouble.PREEMPTED)
    assert policies.spent(world(slices=(taken,))) == pytest.approx(2.0)


def test_cluster_and_nodes_cost_while_the_run_is_at_work_and_once() -> None:
    hour = 60 * MINUTE
    early = cpu("a", over(1, Ending.DONE, ago=5 * hour))
    side_by_side = [cpu("b", attempt(1, ago=hour)), cpu("c", attempt(1, ago=hour / 2))]
    seen = world(early, *side_by_side, slices=(), dollars_per_hour_at_work=3.0)
    assert policies.spent(seen) == pytest.approx(3.0 * (1 + 10 / 3600))


def test_when_a_slice_came_is_what_the_cloud_says_or_else_the_look_that_did_not_show_it_yet() -> None:
    coming = slice_(1, ready=None, requested=NOW - 600)
    assert policies.came(replace(coming, since=NOW - 17), world(looked=NOW - 15)) == NOW - 17
    assert policies.came(coming, world(looked=NOW - 15)) == NOW - 15
    assert policies.came(coming, world(looked=NOW - 900)) == NOW - 600, "not before it was asked for"
    assert policies.came(coming, world(looked=NOW + 90)) is None, "a clock was set back"
    assert policies.came(coming, world()) is None, "now"


UNPRICED = Controller(zones=("east", "west"), dollars_per_slice_hour={"west": 9.0})


def test_a_zone_without_a_price_is_asked_last() -> None:
    assert policies.zones((), UNPRICED, NOW) == ["west", "east"]


def test_a_budget_is_refused_where_nobody_has_said_a_price() -> None:
    seen = world(accelerator("a"), slices=())
    assert policies.over_budget(seen, UNPRICED, Budget()) == ""
    refusal = policies.over_budget(seen, UNPRICED, Budget(dollars=40))
    assert "a slice in east costs" in refusal
    assert "prices.chip_hour" in refusal
    assert policies.over_budget(world(cpu("a"), slices=()), UNPRICED, Budget(dollars=40)) == ""
    there = world(accelerator("a"), slices=(replace(HERE, dollars_per_hour=2.0),))
    assert policies.over_budget(there, UNPRICED, Budget(dollars=40)) == "", "nobody is asked for a slice"
    nobody_knows = world(accelerator("a"), slices=(replace(HERE, zone="pool", dollars_per_hour=None),))
    assert "a slice in pool" in policies.over_budget(nobody_knows, POLICY, Budget(dollars=40))


def test_a_slice_that_came_at_an_unknown_price_stops_a_run_with_a_budget() -> None:
    seen = world(accelerator("a"), slices=(slice_(1, "north", dollars_per_hour=None),))
    assert "a slice in north" in policies.over_budget(seen, POLICY, Budget(dollars=40))


def test_a_permanent_slice_in_use_keeps_back_what_stopping_costs() -> None:
    pool = replace(HERE, dollars_per_hour=6.0)
    stage = accelerator("a", attempt(1, ago=60 * MINUTE, slice=HERE.name))
    stopping = policies.cost_of_stopping([6.0], POLICY)
    seen = world(stage, slices=(pool,))
    assert policies.over_budget(seen, POLICY, Budget(dollars=6.0 + stopping + 0.01)) == ""
    assert policies.over_budget(seen, POLICY, Budget(dollars=6.0 + stopping - 0.01)) != ""


def test_when_a_slice_came_is_not_known_before_it_was_asked_for() -> None:
    assert policies.came(Slice("slice-1", "east"), world(looked=NOW - 300)) is None


def test_a_budget_needs_the_price_of_every_slice_that_has_still_to_run() -> None:
    policy, money = POLICY.model_copy(update={"zones": ("south",), "dollars_per_slice_hour": {}}), Budget(dollars=1)

    def refused(*stages: Stage, slices: tuple[Slice, ...] = (), only: tuple[str, ...] = ()) -> bool:
        seen = world(*stages, slices=slices, intent=Intent(stages=only))
        return "nobody has said what a slice in" in policies.over_budget(seen, policy, money)

    assert refused(accelerator("a"))
    assert refused(accelerator("a"), cpu("b"), only=("a",))
    assert not refused(accelerator("a"), cpu("b"), only=("b",))
    assert not refused(accelerator("a", marked=DIGEST), cpu("b"))
    assert not refused(accelerator("a"), slices=(replace(HERE, dollars_per_hour=0.0),)), "nothing else is asked for"
    coming = slice_(1, ready=None, zone="west", dollars_per_hour=None)
    assert policies.unpriced(world(slices=(coming,)), POLICY) == [], "what has not come has not cost"
    assert policies.burning(world(slices=(slice_(1), slice_(2, dollars_per_hour=None)))) == [4.0]


def test_the_start_that_has_to_be_worth_it_is_of_a_slice_that_can_be_had_and_of_what_works_beside_it() -> None:
    def worth(rate: float) -> float:
        return policies.cost_of_stopping([rate], POLICY) + rate * policies.USEFUL_MINUTES / 60

    beside = world(slices=(), dollars_per_hour_at_work=2.0)
    assert policies.over_budget(beside, POLICY, Budget(dollars=worth(6.0) - 0.001))
    assert policies.over_budget(beside, POLICY, Budget(dollars=worth(6.0) + 0.001)) == ""
    pool = world(slices=(replace(HERE, dollars_per_hour=9.0), slice_(1, gone=NOW, ready=0, dollars_per_hour=1.0)))
    assert policies.over_budget(pool, POLICY, Budget(dollars=worth(9.0) - 0.001))
    assert policies.over_budget(pool, POLICY, Budget(dollars=worth(9.0) + 0.001)) == ""
