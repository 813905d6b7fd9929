"""The controller's rules one by one, at their edges."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.controller import policies
from deploy.controller.observed import Process, Seen, Slice, Trouble
from nanocode.config.settings import Controller
from nanocode.run.attempts import Ending
from tests.deploy.controller.builders import (
    HERE,
    MINUTE,
    NOW,
    OLD,
    POLICY,
    accelerator,
    attempt,
    cpu,
    ended,
    over,
    slice_,
)

F, P, C, S = Ending.FAILED, Ending.PREEMPTED, Ending.CONFIGURATION, Ending.STOPPED
DOLLARS = POLICY.dollars_per_slice_hour


def ends(*what: tuple[Ending, int]) -> list[policies.End]:
    return [ended(ending, progress) for ending, progress in what]


def test_failures_count_until_the_stage_gets_further() -> None:
    assert policies.failures(ends()) == 0
    assert policies.failures(ends((F, 0), (F, 0))) == 2
    assert policies.failures(ends((F, 0), (P, 0), (F, 0))) == 2
    assert policies.failures(ends((F, 0), (F, 0), (F, 10))) == 1
    assert policies.failures(ends((F, 0), (P, 10), (F, 10))) == 1
    assert policies.failures(ends((F, 10), (F, 10), (F, 5))) == 3


@given(st.lists(st.tuples(st.sampled_from([P, S, Ending.DONE]), st.integers(0, 9)), max_size=30))
def test_preemptions_never_use_up_the_failure_budget(what: list[tuple[Ending, int]]) -> None:
    assert policies.failures(ends(*what)) == 0
    patient = POLICY.model_copy(update={"attempts_without_progress": 99})
    assert policies.exhausted(ends(*what), patient) == ""


def test_a_stage_is_given_up_after_its_failures() -> None:
    assert policies.exhausted(ends((F, 0), (F, 0)), POLICY) == ""
    assert policies.exhausted(ends((F, 0), (F, 0), (P, 0), (F, 0)), POLICY) == (
        "3 failures without progress, the last one: because"
    )


def test_a_stage_that_goes_nowhere_is_given_up() -> None:
    many = POLICY.attempts_without_progress
    assert policies.exhausted(ends(*[(P, 5)] * (many - 1)), POLICY) == ""
    assert policies.exhausted(ends((P, 4), *[(P, 5)] * (many - 1)), POLICY) == ""
    assert (
        policies.exhausted(ends(*[(P, 5)] * many), POLICY)
        == f"{many} attempts ended where they began, the last one: because"
    )
    assert policies.exhausted(ends((P, 4), *[(P, 5)] * many), POLICY) != ""


def test_what_we_stopped_ourselves_is_not_held_against_a_stage() -> None:
    stage = cpu("a", over(1, F), over(2, S), over(3, F, digest=OLD), over(4, P), attempt(5))
    assert [end.ending for end in policies.counted(stage, forgiven=0)] == [F, P]
    assert [end.ending for end in policies.counted(stage, forgiven=1)] == [P]
    assert policies.counted(stage, forgiven=4) == []


def test_the_wait_doubles_with_every_failure() -> None:
    policy = POLICY.model_copy(update={"retry_seconds": 10.0})
    assert policies.waits([ended(F, ago=0)], policy, NOW)
    assert policies.waits([ended(F, ago=9)], policy, NOW)
    assert not policies.waits([ended(F, ago=10)], policy, NOW)
    twice = [ended(F, ago=99), ended(F, ago=19)]
    assert policies.waits(twice, policy, NOW)
    assert not policies.waits([ended(F, ago=99), ended(F, ago=20)], policy, NOW)
    assert not policies.waits([ended(P, ago=0)], policy, NOW)
    assert not policies.waits([], policy, NOW)
    assert not policies.waits([ended(F, ago=-60)], policy, NOW)  # by a clock that has stepped back since


def test_an_age_is_never_negative() -> None:
    assert policies.age(NOW, NOW - 5) == 5
    assert policies.age(NOW, NOW + 5) == 0
    assert policies.age(NOW, None) == 0


def lost_slice(number: int, zone: str, ago: float) -> policies.Slice:
    return slice_(number, zone, gone=NOW - ago, present=False)


def refused(number: int, zone: str, trouble: Trouble, ago: float) -> policies.Slice:
    return slice_(number, zone, ready=None, trouble=trouble, released=NOW - ago, gone=NOW - ago, present=False)


def zones(*slices: policies.Slice) -> list[str]:
    return policies.zones((*slices, HERE), POLICY, NOW)


def test_the_cheapest_zone_comes_first_and_the_users_order_decides_between_equals() -> None:
    assert zones() == ["east", "west", "north"]
    other = Controller(zones=("north", "west", "east"), dollars_per_slice_hour=DOLLARS)
    assert policies.zones((), other, NOW) == ["west", "east", "north"]


def test_a_zone_that_took_slices_away_lately_comes_later() -> None:
    assert zones(lost_slice(1, "east", 5 * MINUTE)) == ["west", "north", "east"]
    assert zones(lost_slice(1, "east", 29.9 * MINUTE)) == ["west", "north", "east"]
    assert zones(lost_slice(1, "east", 30.1 * MINUTE)) == ["east", "west", "north"]
    twice = [lost_slice(1, "east", MINUTE), lost_slice(2, "east", MINUTE), lost_slice(3, "west", MINUTE)]
    assert zones(*twice) == ["north", "west", "east"]
    preempted = slice_(1, "east", trouble=Trouble.PREEMPTED, released=NOW - MINUTE)
    assert zones(preempted) == ["west", "north", "east"]
    assert zones(replace(preempted, released=NOW - 31 * MINUTE)) == ["east", "west", "north"]


def test_a_slice_that_is_ours_or_never_came_is_no_loss() -> None:
    assert zones(slice_(1, "east")) == ["east", "west", "north"]
    assert zones(slice_(1, "east", ready=None, gone=NOW - 30, present=False)) == ["east", "west", "north"]


def test_a_slice_that_came_is_not_hopeless_however_long_ago_it_was_asked_for() -> None:
    assert policies.hopeless(slice_(1), POLICY, NOW + 10 * POLICY.provision_minutes * 60) == ""


def test_what_waits_for_a_machine_may_do_so_for_longer_than_a_start_takes() -> None:
    policy = Controller(admission_minutes=60, start_minutes=5)
    assert policies.overdue(attempt(1, Process.PENDING, ago=10 * MINUTE), policy, NOW, None) is None
    assert policies.overdue(attempt(1, Process.RUNNING, ago=10 * MINUTE), policy, NOW, None) is not None


@pytest.mark.parametrize("process", [Process.PENDING, Process.RUNNING])
def test_a_deadline_begins_with_the_process_or_else_with_the_claim(process: Process) -> None:
    policy = Controller(admission_minutes=5, start_minutes=5)
    old, late = attempt(1, ago=10 * MINUTE), Seen(process, since=NOW - MINUTE)
    assert policies.overdue(replace(old, seen=late), policy, NOW, None) is None
    assert policies.overdue(replace(old, seen=Seen(process)), policy, NOW, None) is not None
    waits_longer = replace(attempt(1, ago=MINUTE), seen=Seen(process, since=NOW - 10 * MINUTE))
    assert policies.overdue(waits_longer, policy, NOW, None) is not None


def test_a_start_has_its_time_after_what_was_copied_from_another_region() -> None:
    policy = Controller(start_minutes=30, heartbeat_minutes=10)
    compiles = attempt(1, ago=90 * MINUTE, copying=NOW - 20 * MINUTE, last_sign=NOW - 19 * MINUTE)
    assert policies.overdue(compiles, policy, NOW, None) is None
    late = policies.overdue(replace(compiles, copying=NOW - 31 * MINUTE), policy, NOW, None)
    assert late == ("it did no step within 30 minutes", True)


def test_the_last_failure_is_named_though_a_preemption_came_after_it() -> None:
    three = [ended(F, reason="broken"), ended(F, reason="broken"), ended(F, reason="out of memory")]
    assert policies.exhausted([*three, ended(P, reason="spot")], POLICY).endswith("the last one: out of memory")


def test_an_attempt_that_has_ended_uses_no_slice() -> None:
    stage = accelerator("a", over(1, P, slice="slice-1"), attempt(2, slice="slice-2"))
    assert policies.user_of(slice_(1), [stage]) is None
    assert policies.user_of(slice_(2), [stage]) == stage.attempts[1]


def test_a_slice_that_we_gave_back_is_no_loss() -> None:
    assert zones(slice_(1, "east", released=NOW - MINUTE, gone=NOW - 30, present=False)) == ["east", "west", "north"]


@pytest.mark.parametrize("trouble", [Trouble.STOCKOUT, Trouble.QUOTA, Trouble.OTHER])
def test_a_zone_without_a_slice_for_us_is_left_alone_for_a_while(trouble: Trouble) -> None:
    assert zones(refused(1, "east", trouble, 4 * MINUTE)) == ["west", "north"]
    assert zones(refused(1, "east", trouble, 5.1 * MINUTE)) == ["east", "west", "north"]
    assert zones(*[refused(n, zone, trouble, 0) for n, zone in enumerate(POLICY.zones)]) == []


def test_cheap_zones_that_have_nothing_do_not_keep_us_from_a_dear_one_that_may() -> None:
    tried = [refused(n, zone, Trouble.QUOTA, (20 - n) * MINUTE) for n, zone in enumerate(("east", "west") * 2)]
    assert zones(*tried)[0] == "north"
    assert zones(*tried[1:])[0] == "east", "once is no habit"
    long_ago = [refused(n, zone, Trouble.QUOTA, (40 - n) * MINUTE) for n, zone in enumerate(("east", "west") * 2)]
    assert zones(*long_ago)[0] == "east"


def test_a_zone_where_we_may_do_nothing_is_left_alone_for_longer() -> None:
    assert zones(refused(1, "east", Trouble.PERMISSION, 59 * MINUTE)) == ["west", "north"]
    assert zones(refused(1, "east", Trouble.PERMISSION, 61 * MINUTE)) == ["east", "west", "north"]


def test_what_is_held_and_of_use() -> None:
    assert policies.held(slice_(1))
    assert not policies.held(slice_(1, released=NOW))
    assert not policies.held(slice_(1, gone=NOW))
    assert not policies.held(HERE)
    assert policies.of_use(HERE)
    assert policies.of_use(slice_(1))
    assert not policies.of_use(slice_(1, ready=None))
    assert not policies.of_use(slice_(1, released=NOW))
    assert not policies.of_use(replace(slice_(1), requested=None))


def test_a_slice_is_idle_since_it_came_or_since_its_last_attempt_ended() -> None:
    one = slice_(1, ready=60 * MINUTE)
    assert policies.idle_seconds(one, [], NOW) == 3600
    stage = accelerator("a", over(1, P, ago=120, slice="slice-1"), over(2, P, ago=7, slice="slice-2"))
    assert policies.idle_seconds(one, [stage], NOW) == 120
    assert policies.idle_seconds(one, [stage, accelerator("b", attempt(1, slice="slice-1"))], NOW) == 120


def test_the_newest_slice_that_came_to_nothing_says_why() -> None:
    old = slice_(1, "east", requested=NOW - 99, trouble=Trouble.QUOTA, reason="no quota")
    new = slice_(2, "west", requested=NOW - 9, trouble=Trouble.STOCKOUT, reason="nothing there")
    assert policies.last_reason((new, old, slice_(3))) == "nothing there"
    assert policies.last_reason((slice_(3),)) == ""


WAITING = attempt(1, Process.PENDING, slice="slice-1")


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (slice_(1), ""),
        (slice_(1, ready=None), ""),
        (slice_(2, released=NOW), ""),
        (Slice("slice-1", "east", trouble=Trouble.STOCKOUT), ""),
        (slice_(1, released=NOW), "slice-1 is given back"),
        (slice_(1, gone=NOW), "slice-1 is given back"),
        (slice_(1, trouble=Trouble.STOCKOUT), "slice-1 came to nothing, stockout"),
        (slice_(1, trouble=Trouble.OTHER, reason="no such type"), "slice-1 came to nothing, other: no such type"),
    ],
)
def test_who_waits_for_a_slice_that_will_not_come_is_told_why(one: Slice, why: str) -> None:
    other = slice_(3, trouble=Trouble.QUOTA)
    assert policies.withdrawn(WAITING, (other, one), POLICY, NOW) == why
    assert policies.withdrawn(attempt(1, slice="slice-1"), (other, one), POLICY, NOW) == "", "it runs already"


def test_the_newest_reason_counts() -> None:
    def failed(number: int, ago: float, reason: str) -> Slice:
        return replace(slice_(number, ready=None), requested=NOW - ago, trouble=Trouble.STOCKOUT, reason=reason)

    assert policies.last_reason([failed(1, 900, "old"), failed(2, 60, "new"), failed(3, 300, "between")]) == "new"
    assert policies.last_reason([failed(1, 900, "old"), failed(2, 60, ""), replace(slice_(3), reason="fine")]) == "old"
    assert policies.last_reason([]) == ""
