"""Trouble on purpose: what can be asked for, and that a run survives it."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deploy.local.chaos import Chaos, parse_chaos
from nanocode.run.attempts import Ending
from nanocode.run.exits import Exit, UsageError
from nanocode.storage.objects import NotFound, open_store
from tests.deploy.local.world import STAGES, World, gone, until

pytestmark = pytest.mark.slow

MakeWorld = Callable[..., World]


def test_every_part_is_optional_and_times_have_units() -> None:
    assert parse_chaos("preempt-every=60s") == Chaos(preempt_every=60)
    assert parse_chaos("kill-every=1.5m, kill-controller-every=2h,slow-storage=2s,seed=7") == Chaos(
        kill_every=90, kill_controller_every=7200, slow_storage=2, seed=7
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("earthquake=1s", "'earthquake=1s' is nothing that can go wrong: choose from preempt-every, kill-every"),
        ("", "'' is nothing that can go wrong"),
        ("kill-every", "'kill-every' is nothing that can go wrong"),
        ("kill-every=60", "kill-every='60': give a time such as 60s or 2m"),
        ("kill-every=0s", "give a time such as"),
        ("kill-every=-1s", "give a time such as"),
        ("seed=x", "seed='x': give a whole number"),
    ],
)
def test_anything_else_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        parse_chaos(text)


def begin(one: World, chaos: str) -> list[str]:
    return ["jobs.cli", "run", "--run-dir", one.run.store.url, "--stages", ",".join(STAGES), "--chaos", chaos]


def test_a_run_survives_preemptions_vanishing_hosts_and_killed_controllers(world: MakeWorld) -> None:
    one = world("controller.attempts_without_progress=99", tokenizer="wait " * 6 + "done", corpus="wait " * 4 + "done")
    spec = "preempt-every=3s,kill-every=4s,kill-controller-every=5s,seed=3"
    process = one.start(*begin(one, spec))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == Exit.DONE, errors
    ends = [one.end(number, stage) for stage in STAGES for number in range(1, len(one.run.attempts(stage)) + 1)]
    kinds = [end and end.ending for end in ends]
    assert kinds.count(Ending.DONE) == 2
    assert set(kinds) <= {Ending.DONE, Ending.PREEMPTED}, "preemptions are free"
    for trouble in ("is preempted", "vanishes", "the controller is killed"):
        assert trouble in errors, f"{trouble!r} never happened: the test proves nothing"


def test_what_does_not_leave_within_its_grace_is_killed(world: MakeWorld) -> None:
    one = world("pretrain.grace_seconds=0.5", "controller.termination_seconds=60", tokenizer="deaf done")
    process = one.start(*begin(one, "preempt-every=6s,seed=1"))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == Exit.DONE, errors
    assert "chaos: the grace of attempt 1 of tokenizer is over" in errors
    assert gone(one.pid())


def test_told_to_leave_in_the_midst_of_it_nothing_stays_behind(world: MakeWorld) -> None:
    one = world(tokenizer="wait")
    process = one.start(*begin(one, "kill-controller-every=100s"))
    playing = one.pid()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (Exit.PREEMPTED, "nanocode: told to leave; saved\n")
    assert gone(playing)


def controllers(one: World) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if "deploy.local.loop" in arguments and one.run.store.url in arguments:
            found.append(process)
    return found


@pytest.mark.parametrize("again", [False, True], ids=["before the next one begins", "while the next one begins"])
def test_ctrl_c_between_two_controllers_leaves_nothing_behind(world: MakeWorld, again: bool) -> None:
    one = world(tokenizer="wait")
    process = one.start(*begin(one, "seed=1"))
    playing = one.pid()
    (killed,) = controllers(one)
    supervisor = psutil.Process(process.pid)
    if not again:
        supervisor.suspend()
    killed.kill()
    if again:
        until(lambda: [it for it in controllers(one) if it.pid != killed.pid], "the next one is there", 10)
    else:
        until(lambda: gone(killed.pid), "it has ended")
    process.send_signal(signal.SIGINT)
    supervisor.resume()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, gone(playing)) == (Exit.PREEMPTED, True), errors
    assert errors.splitlines()[-1].startswith("nanocode: told to leave"), errors
    end = one.end()
    assert end is not None
    assert end.ending is Ending.STOPPED


def test_slow_storage_waits_before_every_operation_and_changes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = open_store(tmp_path)
    monkeypatch.setenv("SLOW_STORAGE", "0.2,1")
    slow, began = open_store(tmp_path), time.monotonic()
    for number in range(10):
        slow.child("a").create(f"{number}", b"x")
    assert 0.3 < time.monotonic() - began < 2.5
    assert (slow.url, slow.list("a/")) == (quick.url, quick.list("a/"))
    with pytest.raises(NotFound):
        slow.read("b")
