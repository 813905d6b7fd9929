"""What the backend says of attempts, and what becomes of what it is asked."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from deploy.controller.observed import Process
from deploy.local.backend import LocalBackend, ThisMachine
from deploy.local.loop import LocalJournal
from deploy.local.processes import end_session
from nanocode.run.exits import Exit
from nanocode.run.segments import SegmentWriter
from tests.deploy.local.world import ROOT, World, gone, until

pytestmark = pytest.mark.slow

MakeWorld = Callable[..., World]
KEY = ("tokenizer", 1)
HERE = socket.gethostname()


@pytest.fixture
def backend(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[World], LocalBackend]]:
    made: list[LocalBackend] = []

    def make(one: World) -> LocalBackend:
        monkeypatch.chdir(one.folder)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        made.append(LocalBackend(one.run))
        return made[-1]

    yield make
    for keeper in [keeper for one in made for keeper in one._started.values()]:
        keeper.kill()
        keeper.wait()


def seen(backend: LocalBackend, key: tuple[str, int] = KEY) -> Process:
    return backend.observe([key])[key].process


def test_an_attempt_runs_until_it_has_ended_and_the_backend_knows_how(world: MakeWorld, backend: Callable) -> None:
    one = world(tokenizer="fail")
    one.claimed()
    mine = backend(one)
    mine.start(*KEY, None)
    mine.start(*KEY, None)
    assert seen(mine) is Process.RUNNING
    until(lambda: seen(mine) is Process.EXITED, "it has ended")
    ended = mine.observe([KEY])[KEY]
    assert (ended.exit_code, ended.reason) == (Exit.FAILED, "RuntimeError: it broke")
    assert one.run.store.children("tokenizer/attempts") == ("1",)


def test_waiting_ends_when_an_attempt_does(world: MakeWorld, backend: Callable) -> None:
    one = world()
    one.claimed()
    mine = backend(one)
    readable, writable = os.pipe()
    mine.start(*KEY, None)
    began = time.monotonic()
    mine.wait(60, readable)
    assert time.monotonic() - began < 30
    assert seen(mine) is Process.EXITED
    other = LocalBackend(one.run)
    other.alive[KEY] = os.getpid()
    os.write(writable, b"!")
    began = time.monotonic()
    other.wait(60, readable)
    assert time.monotonic() - began < 1, "nor does it outlast a signal"


def test_whoever_comes_later_sees_the_same_attempt_and_can_stop_it(world: MakeWorld, backend: Callable) -> None:
    one = world(tokenizer="wait")
    one.claimed()
    backend(one).start(*KEY, None)
    one.pid()
    heir = LocalBackend(one.run)
    assert seen(heir) is Process.RUNNING
    heir.stop(*KEY)
    until(lambda: seen(heir) is Process.EXITED, "it has left")
    assert heir.observe([KEY])[KEY].exit_code == Exit.PREEMPTED


def test_a_keeper_that_was_killed_is_lost_and_leaves_nobody_behind(world: MakeWorld, backend: Callable) -> None:
    one = world(tokenizer="crowd")
    one.claimed()
    mine = backend(one)
    mine.start(*KEY, None)
    playing, child = one.pid(), one.pid(name="child")
    os.kill(one.keeper_pid(), signal.SIGKILL)
    until(lambda: seen(mine) is Process.LOST, "it is lost")
    mine.forget(*KEY)
    until(lambda: gone(playing) and gone(child), "what it had started is gone")


def test_a_keeper_that_was_killed_before_it_noted_itself_is_lost_too(world: MakeWorld, backend: Callable) -> None:
    one = world()
    one.claimed()
    mine = backend(one)
    mine.start(*KEY, None)
    os.kill(mine.alive[KEY], signal.SIGKILL)
    until(lambda: seen(mine) is not Process.RUNNING, "it is gone")
    assert (seen(mine), one.run.store.exists("tokenizer/attempts/1/keeper.json")) == (Process.LOST, False)


def test_killed_by_force_it_leaves_its_stacks(world: MakeWorld, backend: Callable) -> None:
    one = world(tokenizer="deaf")
    one.claimed()
    mine = backend(one)
    mine.start(*KEY, None)
    one.pid()
    assert seen(mine) is Process.RUNNING
    mine.stop(*KEY)
    mine.kill(*KEY)
    until(lambda: seen(mine) is Process.EXITED, "it has ended")
    assert mine.observe([KEY])[KEY].exit_code == -signal.SIGKILL
    assert "Current thread" in one.said()


def test_a_keeper_that_does_not_obey_is_killed_itself(
    world: MakeWorld, backend: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world(tokenizer="wait")
    one.claimed()
    mine = backend(one)
    mine.start(*KEY, None)
    playing = one.pid()
    os.kill(one.keeper_pid(), signal.SIGSTOP)
    assert seen(mine) is Process.RUNNING
    mine.kill(*KEY)
    time.sleep(0.3)
    assert seen(mine) is Process.RUNNING
    monkeypatch.setattr("deploy.local.backend.SECONDS_TO_OBEY", 0.1)
    mine.kill(*KEY)
    until(lambda: seen(mine) is Process.LOST and gone(playing), "it is gone")


@pytest.mark.parametrize(
    ("who", "process"),
    [
        ("nanocode import", Process.ABSENT),
        ("controller {here}:{parent} 0badcafe", Process.ABSENT),
        ("controller elsewhere:1 0badcafe", Process.ABSENT),
        ("controller {here}:{gone} 0badcafe", Process.LOST),
        ("{here}:{this}", Process.RUNNING),
        ("{here}:{gone}", Process.LOST),
        ("elsewhere:1", Process.RUNNING),
    ],
)
def test_an_attempt_without_a_keeper_is_judged_by_who_claimed_it(world: MakeWorld, who: str, process: Process) -> None:
    one = world()
    ended = subprocess.Popen(["true"])
    ended.wait()
    one.claimed(who=who.format(here=HERE, this=os.getpid(), parent=os.getppid(), gone=ended.pid))
    assert seen(LocalBackend(one.run)) is process


def test_a_number_that_is_used_again_is_another_process(world: MakeWorld) -> None:
    one = world()
    one.claimed(who=f"{HERE}:{os.getpid()}")
    claim = one.run.attempts("tokenizer")[0]
    before = psutil.Process().create_time() - 60
    earlier = claim.model_copy(update={"claimed": claim.claimed.fromtimestamp(before, claim.claimed.tzinfo)})
    one.run.store.write("tokenizer/attempts/1/claim.json", earlier.model_dump_json().encode())
    assert seen(LocalBackend(one.run)) is Process.LOST
    one.run.store.create(
        "tokenizer/attempts/1/keeper.json", f'{{"host": "{HERE}", "pid": {os.getpid()}, "at": {time.time()}}}'.encode()
    )
    other = LocalBackend(one.run)
    assert seen(other) is Process.LOST
    other.kill(*KEY)  # would be the end of these tests


def test_the_session_of_another_program_with_the_number_of_a_keeper_is_left_alone(world: MakeWorld) -> None:
    one = world()
    one.claimed(who=f"controller {HERE}:{os.getppid()} 0badcafe")
    with subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True) as other:
        until(psutil.Process(other.pid).children, "it has a child")
        (child,) = psutil.Process(other.pid).children()
        note = {"host": HERE, "pid": other.pid, "at": time.time() - 60}
        one.run.store.create("tokenizer/attempts/1/keeper.json", json.dumps(note).encode())
        mine = LocalBackend(one.run)
        assert seen(mine) is Process.LOST
        mine.forget(*KEY)
        other.kill()
    assert child.is_running(), "it was none of our business"
    end_session(other.pid, psutil.boot_time() - 1)
    assert child.is_running(), "nor is what is there since the machine has restarted"
    end_session(other.pid, time.time())
    until(lambda: gone(child.pid), "what a keeper of ours has left is")


def test_a_keeper_on_another_host_runs_while_it_is_heard_of(world: MakeWorld) -> None:
    one = world()
    one.claimed(who="controller elsewhere:1 0badcafe")
    one.run.store.create("tokenizer/attempts/1/keeper.json", b'{"host": "elsewhere", "pid": 1, "at": 0}')
    assert seen(LocalBackend(one.run)) is Process.RUNNING
    claim = one.run.attempts("tokenizer")[0]
    long_ago = claim.model_copy(update={"claimed": claim.claimed.fromtimestamp(1e9, claim.claimed.tzinfo)})
    one.run.store.write("tokenizer/attempts/1/claim.json", long_ago.model_dump_json().encode())
    assert seen(LocalBackend(one.run)) is Process.LOST
    with SegmentWriter(one.run.store, "tokenizer", 1, "metrics", 0) as metrics:
        metrics.write({"kind": "step"})
    assert seen(LocalBackend(one.run)) is Process.RUNNING


def test_a_keeper_that_nobody_asks_about_is_reported_all_the_same(world: MakeWorld) -> None:
    one = world(tokenizer="wait")
    one.claimed()
    one.keeper()
    one.pid()
    assert LocalBackend(one.run).observe([])[KEY].process is Process.RUNNING
    assert LocalBackend(world().run).observe([]) == {}, "it is none of another run's business"


def test_an_hour_of_this_machine_costs_what_the_settings_say(world: MakeWorld) -> None:
    one = world("controller.dollars_per_slice_hour.local=2.5")
    journal = LocalJournal(one.run, LocalBackend(one.run))
    journal.read()
    (here,) = ThisMachine(journal.price).observe().values()
    assert here.dollars_per_hour == 2.5


def test_a_stage_begun_by_hand_can_be_stopped(world: MakeWorld, backend: Callable) -> None:
    one = world(tokenizer="wait")
    by_hand = one.start("jobs.tokenizer", "--run-dir", one.run.store.url)
    one.pid()
    mine = backend(one)
    assert seen(mine) is Process.RUNNING
    mine.stop(*KEY)
    by_hand.communicate(timeout=30)
    assert by_hand.returncode == Exit.PREEMPTED
    assert seen(mine) is Process.LOST
