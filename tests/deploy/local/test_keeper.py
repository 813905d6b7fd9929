"""A keeper sees one attempt to its end, and writes down what that was."""

import signal
import time
from collections.abc import Callable

import pytest

from nanocode.run.attempts import End, Ending, record
from nanocode.run.exits import Exit
from tests.deploy.local.world import World, gone, until

MakeWorld = Callable[..., World]


@pytest.mark.parametrize(
    ("word", "code", "reason"),
    [
        ("done", Exit.DONE, ""),
        ("fail", Exit.FAILED, "RuntimeError: it broke"),
        ("misconfigured", Exit.CONFIGURATION, "the setting x is wrong: correct it"),
        ("exit-0", Exit.DONE, ""),
    ],
)
def test_how_the_process_ended_is_recorded_with_its_last_words(
    world: MakeWorld, word: str, code: int, reason: str
) -> None:
    one = world(tokenizer=word)
    one.claimed()
    _, errors = one.keeper().communicate(timeout=30)
    ended = one.exit()
    assert ended is not None
    assert (ended.code, ended.reason) == (code, reason)
    assert reason in errors, "what it says is shown as it comes"
    assert reason in one.said(), "and kept in the log"
    assert (one.run.done("tokenizer") is not None) == (word == "done")


def test_told_to_leave_it_passes_that_on_and_waits_for_what_is_saved(world: MakeWorld) -> None:
    one = world(tokenizer="wait")
    one.claimed()
    keeper = one.keeper()
    one.pid()
    keeper.send_signal(signal.SIGTERM)
    keeper.communicate(timeout=30)
    ended = one.exit()
    assert ended is not None
    assert (ended.code, ended.reason) == (Exit.PREEMPTED, "told to leave; saved")


def test_a_second_keeper_of_an_attempt_leaves_at_once(world: MakeWorld) -> None:
    one = world(tokenizer="wait")
    one.claimed()
    one.keeper()
    playing = one.pid()
    second = one.keeper()
    _, errors = second.communicate(timeout=30)
    assert second.returncode == Exit.PREEMPTED
    assert errors == "nanocode: attempt 1 of tokenizer has a keeper already\n"
    assert not gone(playing)
    assert one.exit() is None


def test_a_keeper_that_comes_too_late_begins_nothing(world: MakeWorld) -> None:
    one = world()
    one.claimed()
    record(one.run, "tokenizer", 1, End(ending=Ending.PREEMPTED, reason="never started", at=time.time(), progress=0))
    late = one.keeper()
    _, errors = late.communicate(timeout=30)
    assert (late.returncode, one.run.done("tokenizer")) == (Exit.PREEMPTED, None)
    assert "has ended already (never started)" in errors
    one.claimed(attempt=2)
    one.claimed(attempt=3)
    _, errors = one.keeper(attempt=2).communicate(timeout=30)
    assert "attempt 3 has begun" in errors


def test_nothing_survives_a_keeper_that_is_killed(world: MakeWorld) -> None:
    one = world(tokenizer="deaf")
    one.claimed()
    keeper = one.keeper()
    playing = one.pid()
    keeper.kill()
    until(lambda: gone(playing), "its process is gone")
    assert one.exit() is None


def test_a_hung_process_leaves_its_stacks_before_it_is_killed(world: MakeWorld) -> None:
    one = world(tokenizer="deaf")
    one.claimed()
    keeper = one.keeper()
    playing = one.pid()
    keeper.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert not gone(playing), "it was to hang: the test proves nothing"
    keeper.send_signal(signal.SIGUSR2)
    keeper.communicate(timeout=30)
    ended = one.exit()
    assert ended is not None
    assert ended.code == -signal.SIGKILL
    assert "in work" in one.said(), "the frame that hangs"
    assert "in _watch" in one.said(), "the frames of the other threads"
