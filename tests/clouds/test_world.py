"""The fake world keeps its own promises, or the tests that stand on it show nothing."""

import pytest

from tests.clouds.world import Code, Holding, Refusal, World, Zone


class Now:
    def __init__(self) -> None:
        self.seconds = 1_000_000.0


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def world(now: Now) -> World:
    world = World(lambda: now.seconds)
    world.zones["a"] = Zone(capacity=8, quota=16)
    return world


def test_what_was_planned_happens_at_its_time_however_late_somebody_looks(world: World, now: Now) -> None:
    held: list[Holding | None] = []
    world.after(60, lambda: held.append(world.take("one", "a", 8, lambda: None)))
    world.after(90, lambda: world.give_back(world.held()[0]))
    now.seconds += 3600
    world.settle()
    assert held[0] is not None and held[0].end is not None and held[0].end - held[0].begin == 30


def test_whoever_waits_for_chips_gets_them_when_they_become_free(world: World, now: Now) -> None:
    first = world.take("one", "a", 8, lambda: None)
    got: list[str] = []

    def ask() -> bool:
        if world.take("two", "a", 8, lambda: None) is None:
            return False
        got.append("two")
        return True

    world.wait("a", ask)
    assert first is not None and not got
    now.seconds += 5
    world.give_back(first)
    assert got == ["two"] and world.free("a") == 0


def test_less_capacity_preempts_the_newest_slice_first(world: World) -> None:
    taken: list[str] = []

    def hold(name: str) -> None:
        holding = world.take(name, "a", 4, lambda: (taken.append(name), world.give_back(one))[0])
        assert holding is not None
        one = holding

    hold("old")
    hold("new")
    world.set_capacity("a", 4)
    assert taken == ["new"]


def test_a_lost_reply_is_an_error_after_the_act(world: World) -> None:
    done: list[int] = []
    world.fail("Create", Code.DEADLINE_EXCEEDED, took_effect=True)
    world.fail("Create", Code.UNAVAILABLE)
    for code in (Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE):
        with pytest.raises(Refusal) as refusal:
            world.call("Create", lambda: done.append(1))
        assert refusal.value.code is code
    assert done == [1]
    world.call("Create", lambda: done.append(2))
    assert done == [1, 2]


def test_a_quota_counts_what_is_asked_for_until_it_is_let_go(world: World) -> None:
    assert world.reserve("one", "a", 8) and world.reserve("two", "a", 8)
    assert world.reserve("two", "a", 8), "asking again takes no more"
    assert not world.reserve("three", "a", 8)
    world.unreserve("one")
    assert world.reserve("three", "a", 8)


def test_the_bill_is_for_what_existed_while_it_did(world: World, now: Now) -> None:
    holding = world.take("one", "a", 8, lambda: None)
    assert holding is not None
    now.seconds += 1800
    world.give_back(holding)
    now.seconds += 1800
    assert world.bill({"a": 0.5}) == pytest.approx(8 * 0.5 * 0.5)
