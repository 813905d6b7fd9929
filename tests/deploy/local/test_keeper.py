"""A keeper sees one attempt to its end, and writes down what that was."""

import os
import re
import signal
import time
from collections.abc import Callable

import psutil
import pytest

from nanocode.run.attempts import End, Ending, Stop, record
from nanocode.run.exits import Exit
from tests.deploy.local.world import World, gone, until

pytestmark = pytest.mark.slow

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
    assert re.fullmatch(r"ended by force, \d s after it was told to leave", ended.reason)
    assert "in work" in one.said(), "the frame that hangs"
    assert "in _watch" in one.said(), "the frames of the other threads"


def test_in_a_pod_it_ends_as_the_stage_does_and_tells_the_kubelet_why(world: MakeWorld) -> None:
    one = world(tokenizer="fail", corpus="wait")
    one.claimed()
    told = one.folder / "termination-log"
    told.touch()
    keeper = one.in_pod(termination_log=told)
    keeper.communicate(timeout=30)
    assert (keeper.returncode, told.read_text()) == (Exit.FAILED, "RuntimeError: it broke")
    assert one.exit() is None, "the container's exit code says it"
    assert "RuntimeError: it broke" in one.said()


def test_in_a_pod_the_number_of_a_signal_becomes_the_exit_code_that_shells_give_it(world: MakeWorld) -> None:
    one = world(tokenizer="wait")
    one.claimed()
    keeper = one.in_pod()
    os.kill(one.pid(), signal.SIGKILL)
    keeper.communicate(timeout=30)
    assert keeper.returncode == 128 + signal.SIGKILL


def test_workers_of_one_attempt_share_it_and_leave_notes_and_logs_of_their_own(world: MakeWorld) -> None:
    one = world(tokenizer="done", corpus="fail")
    one.claimed(stage="corpus")
    for worker in (0, 1, 1):  # the last one again, as its Job does after a failure
        keeper = one.in_pod("corpus", worker=worker, of=2)
        keeper.communicate(timeout=30)
        assert keeper.returncode == Exit.FAILED
    names = one.run.store.list("corpus/attempts/1/")
    assert [name for name in names if "/keeper-" in name and name.endswith(".json")] == [
        "corpus/attempts/1/keeper-0.json",
        "corpus/attempts/1/keeper-1.json",
    ]
    assert len([name for name in names if "/log/keeper-1-" in name]) == 2


def test_in_a_pod_the_stacks_of_what_hangs_are_kept_before_sigterm_goes_on(world: MakeWorld) -> None:
    one = world(tokenizer="deaf")
    one.claimed()
    keeper = one.in_pod()
    one.pid()
    record(one.run, "tokenizer", 1, Stop(reason="no sign of life", at=time.time(), hung=True))
    keeper.send_signal(signal.SIGTERM)
    until(lambda: "in work" in one.said(), "the stacks are in the run directory")
    assert keeper.poll() is None, "nobody has killed it yet"


def test_in_a_pod_what_is_only_told_to_leave_writes_no_stacks(world: MakeWorld) -> None:
    one = world(tokenizer="wait")
    one.claimed()
    keeper = one.in_pod()
    one.pid()
    record(one.run, "tokenizer", 1, Stop(reason="the user suspended the run", at=time.time()))
    keeper.send_signal(signal.SIGTERM)
    keeper.communicate(timeout=30)
    assert keeper.returncode == Exit.PREEMPTED
    assert "thread" not in one.said()


def test_in_a_pod_it_takes_the_exit_codes_of_orphans(world: MakeWorld) -> None:
    one = world(tokenizer="orphans")
    one.claimed()
    keeper = one.in_pod(subreaper=True)
    one.pid()
    orphan = one.pid(name="orphan")
    until(lambda: not psutil.pid_exists(orphan), "no zombie is left")
    keeper.send_signal(signal.SIGTERM)
    keeper.communicate(timeout=30)
    assert keeper.returncode == Exit.PREEMPTED
