"""Shares have one holder each, whoever comes, vanishes or hangs; time is what the test says it is."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from nanocode.run import leases
from nanocode.run.leases import PATIENCE_SECONDS, SECONDS_BETWEEN_SIGNS, Leases
from nanocode.storage.objects import StorageError, Store

A_MOMENT = SECONDS_BETWEEN_SIGNS + 1
LONG = PATIENCE_SECONDS + 1
Begin = Callable[..., Leases]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def begin(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Begins workers, whose threads give no sign: the tests do."""
    monkeypatch.setattr(Leases, "_sign_until_over", lambda self: None)
    with ExitStack() as stack:
        yield lambda worker, of=3, where=store: stack.enter_context(Leases(where, worker, of, clock))


def test_each_begins_with_its_own_share(begin: Begin) -> None:
    assert [begin(worker).held for worker in (2, 0, 1)] == [(2,), (0,), (1,)]


def test_one_that_is_alone_holds_the_only_share_and_writes_nothing(store: Store) -> None:
    with Leases() as alone:
        assert (alone.held, alone.holds(0)) == ((0,), True)
    with Leases(store, 0, 1) as alone:
        assert alone.held == (0,)
    assert store.list() == []


def test_what_nobody_came_for_is_taken_over_after_a_while_one_share_at_a_time(begin: Begin, clock: Clock) -> None:
    one = begin(1)
    clock.now += PATIENCE_SECONDS - 1
    assert one.take_over(range(3)) is None
    clock.now += A_MOMENT
    assert (one.take_over(range(3)), one.held) == (2, (1, 2))
    assert (one.take_over(range(3)), one.held) == (0, (0, 1, 2))


def test_it_looks_no_more_often_than_signs_come(begin: Begin, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    one = begin(0)
    looks: list[str] = []
    generation = one._store.generation  # type: ignore[union-attr]
    monkeypatch.setattr(one._store, "generation", lambda name: (looks.append(name), generation(name))[1])
    for _ in range(30):
        clock.now += 1
        assert one.take_over(range(3)) is None
    assert len(looks) == 3 * 2, "of two others, every ten seconds"


def test_a_share_whose_holder_gives_signs_stays_its_holders(begin: Begin, clock: Clock) -> None:
    one, other = begin(0, 2), begin(1, 2)
    for _ in range(12):
        clock.now += A_MOMENT
        other.sign()
        assert one.take_over([1]) is None
    assert other.holds(1)
    clock.now += LONG
    assert one.take_over([1]) == 1, "and when it gives none any more, it is taken over"


def test_whoever_was_away_for_too_long_knows_that_its_share_may_be_anothers(begin: Begin, clock: Clock) -> None:
    one, other = begin(0, 2), begin(1, 2)
    clock.now += PATIENCE_SECONDS - SECONDS_BETWEEN_SIGNS
    assert not one.holds(0), "before anybody can have taken it over"
    clock.now += LONG
    assert other.take_over([0]) == 0
    one.sign()
    assert (one.held, other.held) == ((), (0, 1))
    assert not one.holds(0)


def test_of_two_that_want_the_same_share_one_gets_it(begin: Begin, clock: Clock) -> None:
    several = [begin(worker, 4) for worker in (0, 1, 2)]
    clock.now += LONG
    found: list[int | None] = []
    threads = [threading.Thread(target=lambda one=one: found.append(one.take_over([3]))) for one in several]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=str) == [3, None, None]
    assert sum(3 in one.held for one in several) == 1


def test_a_worker_that_is_begun_again_has_its_own_share_at_once(begin: Begin) -> None:
    begin(1)
    assert begin(1).held == (1,)


def test_a_worker_that_comes_late_leaves_its_share_to_who_has_it(begin: Begin, clock: Clock) -> None:
    first = begin(0, 2)
    clock.now += LONG
    assert first.take_over([1]) == 1
    assert begin(1, 2).held == ()


def test_a_worker_that_comes_late_may_take_its_share_back(begin: Begin, clock: Clock) -> None:
    first = begin(0, 2)
    clock.now += LONG
    first.take_over([1])
    late, changes = begin(1, 2), first.changes
    late.take_back()
    assert (late.held, late.holds(1)) == ((1,), True)
    first.sign()
    assert (first.held, first.changes) == ((0,), changes + 1)
    late.take_back()
    with Leases() as alone:
        alone.take_back()
    assert (late.changes, alone.changes) == (1, 0), "who has it takes nothing"


def test_a_share_is_taken_back_though_its_holder_gives_a_sign_just_then(
    begin: Begin, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(0, 2)
    clock.now += LONG
    first.take_over([1])
    late, generation, signs = begin(1, 2), type(store).generation, iter([first.sign])

    def looked(self: Store, name: str) -> int:
        found = generation(self, name)  # type: ignore[arg-type]
        next(signs, lambda: None)()
        return found

    monkeypatch.setattr(type(store), "generation", looked)
    late.take_back()
    assert late.held == (1,)


def test_a_sign_whose_reply_was_lost_is_no_other_workers(begin: Begin, store: Store, clock: Clock) -> None:
    one, replace = begin(0, 2), type(store).replace

    def lose(self: Store, name: str, data: bytes, generation: int) -> None:
        replace(self, name, data, generation)  # type: ignore[arg-type]
        raise StorageError("no answer")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store), "replace", lose)
        clock.now += A_MOMENT
        one.sign()
    assert one.held == (0,)
    clock.now += PATIENCE_SECONDS - 2 * SECONDS_BETWEEN_SIGNS - 1
    assert not one.holds(0), "nobody has said that the sign is there"
    before = store.generation("0-of-2.json")
    one.sign()
    assert store.generation("0-of-2.json") != before, "others count from the sign that they can see"
    assert one.holds(0)


def test_who_stood_still_while_it_signed_does_not_take_anothers_sign_for_its_own(
    begin: Begin, store: Store, clock: Clock
) -> None:
    one, other, replace = begin(0, 2), begin(1, 2), type(store).replace

    def stand_still(self: Store, name: str, data: bytes, generation: int) -> None:
        replace(self, name, data, generation)  # type: ignore[arg-type]
        patch.undo()
        for _ in range(2):
            clock.now += LONG
            other.take_over([0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store), "replace", stand_still)
        one.sign()
    assert (one.held, other.held) == ((), (0, 1))
    one.sign()
    other.sign()
    assert (one.held, other.held) == ((), (0, 1))


def test_the_thread_gives_the_signs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SECONDS_BETWEEN_SIGNS", 0.01)
    with Leases(store, 0, 2) as one:
        before = store.generation("0-of-2.json")
        for _ in range(1000):
            if store.generation("0-of-2.json") != before:
                break
            threading.Event().wait(0.01)
        assert store.generation("0-of-2.json") != before
        assert one.holds(0)


# -- a stage -----------------------------------------------------------------------------------------------------------


def test_it_leaves_when_others_work_at_all_that_is_missing(begin: Begin, clock: Clock) -> None:
    other, one = begin(1, 2), begin(0, 2)
    done: set[int] = set()
    waited: list[float] = []

    def wait() -> None:
        waited.append(clock.now)
        clock.now += A_MOMENT
        if len(waited) == 2:
            other.sign()

    assert not one.work_off(done.add, lambda: {0, 1} - done, wait)
    assert done == {0}
    assert len(waited) == 2, "it was not known before that the other lives"
    assert other.work_off(done.add, lambda: {0, 1} - done, wait)
    assert done == {0, 1}


def test_it_does_not_leave_to_others_what_they_gave_a_sign_for_long_ago(begin: Begin, clock: Clock) -> None:
    other, one = begin(1, 2), begin(0, 2)
    done: list[int] = []

    def work(share: int) -> None:
        if share == 0:
            other.sign()  # its last one
            clock.now += 10 * LONG
        done.append(share)

    def wait() -> None:
        clock.now += A_MOMENT

    assert one.work_off(work, lambda: {0, 1} - set(done), wait)
    assert done == [0, 1]


def test_it_works_at_every_share_of_those_that_never_come(begin: Begin, clock: Clock) -> None:
    done: list[int] = []

    def wait() -> None:
        clock.now += A_MOMENT

    assert begin(2, 4).work_off(done.append, lambda: set(range(4)) - set(done), wait)
    assert done == [2, 3, 0, 1], "each once"
    assert clock.now < LONG + A_MOMENT


def test_a_share_that_was_lost_is_left_to_who_has_it(begin: Begin, clock: Clock) -> None:
    one, other = begin(0, 2), begin(1, 2)
    done: list[int] = []

    def stuck(share: int) -> None:
        clock.now += LONG
        other.sign()
        assert other.take_over([0]) == 0
        one.sign()

    def wait() -> None:
        clock.now += A_MOMENT
        other.sign()

    assert not one.work_off(stuck, lambda: {0, 1} - set(done), wait)
    assert other.work_off(done.append, lambda: {0, 1} - set(done), wait)
    assert done == [0, 1]
