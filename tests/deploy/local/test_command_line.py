"""`nanocode run` and the wishes of a user, on runs whose stages do nothing much."""

import os
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pexpect
import pytest
from pexpect import fdpexpect

from jobs.cli import main
from nanocode.run.attempts import Ending
from nanocode.run.exits import Exit
from nanocode.run.intent import latest_intent
from tests.deploy.local.world import ROOT, STAGES, World, gone, until

pytestmark = pytest.mark.slow

MakeWorld = Callable[..., World]


def run(one: World, *more: str) -> list[str]:
    return ["jobs.cli", "run", "--run-dir", one.run.store.url, "--stages", ",".join(STAGES), *more]


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line that was printed, on whichever stream."""
    out, errors = capsys.readouterr()
    (line,) = (out + errors).splitlines()
    return line


def on_a_terminal(one: World, *more: str) -> tuple[subprocess.Popen[bytes], fdpexpect.fdspawn]:
    """The command with a terminal of its own that it is controlled by, and the other end of it."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    # No fork in Python, as pexpect.spawn does: jax's threads, if other tests have started them, would not survive it.
    command = ["setsid", "--ctty", sys.executable, "-m", *run(one, *more)]
    process = subprocess.Popen(command, cwd=one.folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    return process, fdpexpect.fdspawn(ours, timeout=30)


def test_ctrl_c_on_a_terminal_saves_once_and_leaves_with_75(world: MakeWorld) -> None:
    one = world(tokenizer="show")
    process, terminal = on_a_terminal(one)
    terminal.expect(r"tokenizer: waiting.*5/10 steps", timeout=30)
    playing = one.pid()
    terminal.send("\x03")
    terminal.expect(r"nanocode: told to leave; saved\r\n")
    terminal.expect(pexpect.EOF)
    assert process.wait(30) == Exit.PREEMPTED
    terminal.close()
    assert gone(playing)
    assert latest_intent(one.run).want == "run"


def test_a_terminal_that_closes_takes_nothing_with_it_that_is_not_saved(world: MakeWorld) -> None:
    one = world(tokenizer="show")
    process, terminal = on_a_terminal(one)
    terminal.expect(r"5/10 steps", timeout=30)
    process.send_signal(signal.SIGHUP)
    until(lambda: one.end() is not None, "the attempt has been closed")
    ended = one.exit()
    assert ended is not None
    assert (ended.code, ended.reason) == (Exit.PREEMPTED, "told to leave; saved")
    process.wait(30)
    terminal.close()


@pytest.mark.parametrize("chaos", [(), ("--chaos", "seed=1")], ids=["alone", "under a supervisor"])
def test_what_is_said_to_a_terminal_that_is_gone_is_lost_and_nothing_else(
    world: MakeWorld, chaos: tuple[str, ...]
) -> None:
    one = world(tokenizer="narrate")
    process, terminal = on_a_terminal(one, *chaos)
    terminal.expect(r"still here", timeout=30)
    terminal.close()  # from here on a write to the other end fails, and the kernel has sent SIGHUP
    assert process.wait(30) == Exit.PREEMPTED
    ended = one.exit()
    assert ended is not None
    assert (ended.code, ended.reason) == (Exit.PREEMPTED, "told to leave; saved")
    end = one.end()
    assert end is not None
    assert end.ending is Ending.STOPPED


def test_a_reader_that_leaves_takes_nothing_with_it(world: MakeWorld) -> None:
    one = world(tokenizer="narrate")
    process = one.start(*run(one))  # as in `nanocode run | tee log`: Ctrl-C ends tee, too
    one.pid()
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()
    process.stdout = process.stderr = None
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == Exit.PREEMPTED
    ended = one.exit()
    assert ended is not None
    assert (ended.code, ended.reason) == (Exit.PREEMPTED, "told to leave; saved")


def test_a_budget_that_nothing_is_held_against_is_named(world: MakeWorld) -> None:
    said = "nanocode: budget.dollars limits nothing here without controller.dollars_per_slice_hour.local"
    for settings, told in ((["budget.dollars=5"], 1), (["controller.dollars_per_slice_hour.local=2"], 0)):
        one = world("budget.dollars=5", *settings)
        _, errors = one.start(*run(one)).communicate(timeout=60)
        assert errors.count(said) == told


def test_running_again_forgives_the_failures_of_before(world: MakeWorld) -> None:
    one = world("controller.failures=1", tokenizer="fail done")
    first = one.start(*run(one))
    first.communicate(timeout=60)
    again = one.start(*run(one))
    _, errors = again.communicate(timeout=60)
    assert (first.returncode, again.returncode) == (Exit.FAILED, Exit.DONE), errors


def test_a_suspended_run_stops_and_goes_on_when_it_is_resumed(
    world: MakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    one = world(tokenizer="wait done")
    process = one.start(*run(one))
    one.pid()
    assert main(["suspend", one.run.store.url]) == Exit.DONE
    assert told(capsys) == f"{one.run.store.url} saves and stops; `nanocode resume {one.run.store.url}` takes that back"
    _, errors = process.communicate(timeout=60)
    assert process.returncode == Exit.PREEMPTED
    assert errors.splitlines()[-1].startswith("nanocode: the user suspended the run; ")
    assert main(["resume", one.run.store.url]) == Exit.DONE
    assert f"`nanocode run --run-dir {one.run.store.url}`" in told(capsys)
    idle = one.controller()
    idle.communicate(timeout=60)
    assert idle.returncode == Exit.DONE


def test_a_cancelled_run_is_neither_suspended_nor_resumed_but_may_be_run_again(
    world: MakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    one = world()
    assert main(["cancel", one.run.store.url]) == Exit.DONE
    assert "is cancelled" in told(capsys)
    for command in ("suspend", "resume"):
        assert main([command, one.run.store.url]) == Exit.USAGE
        assert "was cancelled" in told(capsys)
    idle = one.controller()
    idle.communicate(timeout=60)
    assert (idle.returncode, one.run.attempts("tokenizer")) == (Exit.PREEMPTED, [])
    again = one.start(*run(one))
    again.communicate(timeout=60)
    assert again.returncode == Exit.DONE


def test_retry_does_a_stage_and_what_stands_on_it_again_and_keeps_what_was_made(
    world: MakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    one = world()
    first = one.start(*run(one))
    first.communicate(timeout=60)
    before = {stage: one.run.done(stage) for stage in STAGES}
    assert main(["retry", one.run.store.url, "--from", "corpus"]) == Exit.DONE
    assert told(capsys).startswith("corpus, pretrain, base-eval, sft, preference, agent-eval, report: done again")
    again = one.start(*run(one))
    _, errors = again.communicate(timeout=60)
    assert (again.returncode, errors) == (Exit.DONE, ""), "what was asked for needs no --yes"
    after = {stage: one.run.done(stage) for stage in STAGES}
    assert after["tokenizer"] == before["tokenizer"]
    assert after["corpus"] != before["corpus"]
    assert len([name for name in one.run.store.children("corpus") if name.startswith("DONE.")]) == 2
    idle = one.start(*run(one))
    idle.communicate(timeout=60)
    assert (idle.returncode, len(one.run.attempts("corpus"))) == (Exit.DONE, 2)


def test_settings_that_change_after_a_retry_still_need_a_yes(
    world: MakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    one = world()
    one.start(*run(one)).communicate(timeout=60)
    main(["retry", one.run.store.url, "--from", "corpus"])
    capsys.readouterr()
    assert main([*run(one)[1:], "--set", "tokenizer.digits=2"]) == Exit.USAGE
    assert "make tokenizer, corpus stale" in told(capsys)


@pytest.mark.parametrize("answer", ["n", EOFError])
def test_whoever_does_not_say_yes_changes_nothing(
    world: MakeWorld, answer: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = world()
    monkeypatch.setattr("nanocode.run.settling.stale_stages", lambda *_: ["tokenizer"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", Mock(side_effect=[answer]))
    assert main([*run(one)[1:], "--set", "tokenizer.digits=2"]) == Exit.USAGE
    assert told(capsys) == "nanocode: nothing was changed"
    assert one.run.store.children("config") == ("1.yaml",)


def test_a_soul_that_is_wrong_is_refused_before_the_question(
    world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = world()
    monkeypatch.setattr("nanocode.run.settling.stale_stages", lambda *_: ["synth"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", Mock(side_effect=AssertionError("nobody is asked")))
    for text, why in ((b"Be good.\n", "has no principles"), (b"1. A\xff", "is not UTF-8 text")):
        (tmp_path / "SOUL.md").write_bytes(text)
        assert main([*run(one)[1:], "--set", f"soul={tmp_path}/SOUL.md"]) == Exit.CONFIGURATION
        assert why in told(capsys)
    assert one.run.store.children("config") == ("1.yaml",)


@pytest.mark.parametrize("command", [["suspend"], ["resume"], ["cancel"], ["retry", "--from", "sft"]])
def test_a_wish_for_a_run_that_is_not_there_is_refused(
    command: list[str], tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command[0], f"{tmp_path}/nothing", *command[1:]]) == Exit.CONFIGURATION
    assert "is no run directory" in told(capsys)
    assert not os.path.exists(f"{tmp_path}/nothing")


def test_an_unknown_stage_is_not_retried(world: MakeWorld, capsys: pytest.CaptureFixture[str]) -> None:
    one = world()
    assert main(["retry", one.run.store.url, "--from", "pretrian"]) == Exit.USAGE
    assert "no stage is called 'pretrian'" in told(capsys)


def test_bad_chaos_is_refused_before_anything_is_written(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--run-dir", f"{tmp_path}/new", "--chaos", "kill-every=1"]) == Exit.USAGE
    assert "kill-every='1': give a time such as 60s or 2m" in told(capsys)
    assert not os.path.exists(f"{tmp_path}/new")


def test_an_assigned_attempt_is_joined_and_not_claimed_again(world: MakeWorld) -> None:
    one = world()
    one.claimed()
    job = one.start("jobs.tokenizer", "--run-dir", one.run.store.url, "--attempt", "1")
    _, errors = job.communicate(timeout=60)
    marker = one.run.done("tokenizer")
    assert marker is not None, errors
    assert (marker.attempt, len(one.run.attempts("tokenizer"))) == (1, 1)


def test_an_assigned_attempt_that_is_over_or_was_meant_for_other_inputs_is_left(world: MakeWorld) -> None:
    one = world()
    one.claimed()
    one.run.claim_number("tokenizer", 2, "f" * 32, "nobody")

    def left(attempt: int) -> tuple[int, str]:
        job = one.start("jobs.tokenizer", "--run-dir", one.run.store.url, "--attempt", str(attempt))
        _, errors = job.communicate(timeout=60)
        assert re.fullmatch(r"nanocode: .*\n", errors), errors
        return job.returncode, errors

    code, errors = left(1)
    assert (code, "attempt 2 has begun" in errors) == (Exit.PREEMPTED, True)
    code, errors = left(2)
    assert (code, "changed since attempt 2 of tokenizer was claimed" in errors) == (Exit.CONFIGURATION, True)
    code, errors = left(3)
    assert (code, "nobody has claimed" in errors) == (Exit.USAGE, True)
    assert one.run.done("tokenizer") is None


def test_the_command_and_its_keepers_start_without_what_is_heavy() -> None:
    check = (
        "import sys, jobs.local, deploy.local.keeper; print(*{'jax', 'numpy', 'httpx2', 'google'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
