"""The controller of this machine, with real keepers and stages that do nothing much."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable

import psutil
import pytest

from deploy.local.backend import LocalBackend
from deploy.local.loop import LocalJournal
from nanocode.run.attempts import Ending, Stop, recorded
from nanocode.run.exits import Exit
from nanocode.run.intent import change_intent, latest_intent
from tests.deploy.local.world import STAGES, World, gone, until
from tests.deploy.test_notify import Hook

pytestmark = pytest.mark.slow

MakeWorld = Callable[..., World]


def ended(process: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str]:
    """Exit code and what was said on stderr."""
    _, errors = process.communicate(timeout=seconds)
    return process.returncode, errors


def endings(world: World, stage: str = "tokenizer") -> list[Ending | None]:
    numbers = range(1, len(world.run.attempts(stage)) + 1)
    return [end.ending if (end := world.end(number, stage)) else None for number in numbers]


def test_stages_follow_one_another_without_a_pause(world: MakeWorld) -> None:
    one = world("controller.seconds_between_looks=30")
    assert ended(one.controller()) == (Exit.DONE, "")
    assert all(one.run.done(stage) is not None for stage in STAGES)
    assert [endings(one, stage) for stage in STAGES] == [[Ending.DONE], [Ending.DONE]]
    first = one.exit()
    assert first is not None
    begun = one.run.attempts("corpus")[0].claimed.timestamp()
    assert begun - first.at < 0.5


def test_a_run_in_a_bucket_is_controlled_from_here(world: MakeWorld, gcs_url: str) -> None:
    one = world(location=gcs_url, tokenizer="wait done")
    controller = one.controller()
    playing = one.pid()
    psutil.Process(one.keeper_pid()).terminate()
    code, errors = ended(controller)
    assert (code, gone(playing)) == (Exit.DONE, True), errors
    assert [endings(one, stage) for stage in STAGES] == [[Ending.PREEMPTED, Ending.DONE], [Ending.DONE]]


def test_a_failure_is_tried_again_and_the_last_one_named_with_its_log(world: MakeWorld) -> None:
    one = world(tokenizer="fail done")
    code, errors = ended(one.controller())
    assert code == Exit.DONE
    assert "nanocode: attempt 1 of tokenizer failed: exit code 1: RuntimeError: it broke\n" in errors
    assert endings(one) == [Ending.FAILED, Ending.DONE]
    other = world("controller.failures=2", tokenizer="fail")
    code, errors = ended(other.controller())
    assert code == Exit.FAILED
    said = "nanocode: stage tokenizer failed: 2 failures without progress, the last one: exit code 1: RuntimeError: it broke; "
    assert errors.splitlines()[-1] == f"{said}its log: {other.run.store.url}/tokenizer/attempts/2/log"


def test_a_wrong_setting_is_one_line_and_never_tried_again(world: MakeWorld) -> None:
    one = world(tokenizer="misconfigured")
    assert ended(one.controller()) == (Exit.CONFIGURATION, "nanocode: the setting x is wrong: correct it\n")
    assert endings(one) == [Ending.CONFIGURATION]


def test_a_stage_that_can_never_begin_is_a_wrong_setting(world: MakeWorld) -> None:
    one = world()
    change_intent(one.run, stages=("corpus",))
    code, errors = ended(one.controller())
    assert code == Exit.CONFIGURATION
    assert errors.startswith("nanocode: stage corpus: it needs stage tokenizer, which is not done")


def test_the_keeper_outlives_its_controller_and_the_next_one_adopts_the_attempt(world: MakeWorld) -> None:
    one = world(tokenizer="wait done")
    first = one.controller()
    playing = one.pid()
    first.kill()
    first.wait()
    time.sleep(0.3)
    assert not gone(playing)
    second = one.controller()
    time.sleep(2)
    assert endings(one) == [None], "it was adopted, not begun again"
    second.send_signal(signal.SIGTERM)
    code, errors = ended(second)
    assert code == Exit.PREEMPTED
    assert errors.count("\n") <= 1
    assert gone(playing)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_leave_it_lets_the_stage_save_and_begins_nothing(world: MakeWorld, how: signal.Signals) -> None:
    one = world(tokenizer="wait")
    controller = one.controller()
    one.pid()
    controller.send_signal(how)
    assert ended(controller) == (Exit.PREEMPTED, "nanocode: told to leave; saved\n")
    assert endings(one) == [Ending.STOPPED]
    assert latest_intent(one.run).want == "run"
    shown = json.loads(one.run.store.read("controller/status.json"))
    assert (shown["state"], shown["reason"], shown["stages"]["tokenizer"]["state"]) == (
        "waiting", "told to leave", "waiting",
    )  # fmt: skip
    (one.folder / "plays/tokenizer").write_text("done")
    assert ended(one.controller()) == (Exit.DONE, "")
    assert endings(one) == [Ending.STOPPED, Ending.DONE]


def test_a_stage_that_does_not_leave_in_time_is_ended_with_its_stacks(world: MakeWorld) -> None:
    one = world(tokenizer="deaf")
    controller = one.controller()
    playing = one.pid()
    told = time.monotonic()
    controller.send_signal(signal.SIGTERM)
    code, errors = ended(controller)
    assert (code, gone(playing)) == (Exit.PREEMPTED, True)
    assert 2 < time.monotonic() - told < 12, "the grace, the time for stacks, and a look or two"
    assert "in work" in one.said()
    assert "Current thread" in errors


def test_a_second_ctrl_c_does_not_wait_for_a_save(world: MakeWorld) -> None:
    one = world("controller.termination_seconds=60", tokenizer="slow-to-save")
    controller = one.controller()
    one.pid()
    controller.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert controller.poll() is None
    controller.send_signal(signal.SIGINT)
    code, _ = ended(controller, 10)
    assert code == Exit.PREEMPTED


def test_a_terminal_that_closes_may_say_so_twice_and_hurries_nobody(world: MakeWorld) -> None:
    one = world("controller.termination_seconds=60", tokenizer="slow-to-save")
    controller = one.controller()
    playing = one.pid()
    for _ in range(2):  # the shell tells its jobs, and the kernel the terminal's when the shell has ended
        controller.send_signal(signal.SIGHUP)
        time.sleep(1.5)
    assert not gone(playing)
    controller.send_signal(signal.SIGINT)
    assert ended(controller, 10)[0] == Exit.PREEMPTED


def test_an_outage_is_waited_out_whatever_ends_meanwhile(world: MakeWorld) -> None:
    one = world(tokenizer="wait done")
    controller = one.start("tests.deploy.local.outage", one.run.store.url)
    playing = one.pid()
    (one.folder / "down").touch()
    psutil.Process(one.keeper_pid()).terminate()
    until(lambda: gone(playing), "it has left")
    time.sleep(1.5)
    (one.folder / "down").unlink()
    code, errors = ended(controller)
    assert (code, endings(one)) == (Exit.DONE, [Ending.PREEMPTED, Ending.DONE])
    assert errors.count("gives no answer") < 10, "a look every half second"


def test_told_to_leave_during_an_outage_it_lets_the_stage_save(world: MakeWorld) -> None:
    one = world(tokenizer="wait")
    controller = one.start("tests.deploy.local.outage", one.run.store.url)
    one.pid()
    (one.folder / "down").touch()
    controller.send_signal(signal.SIGINT)
    _, errors = ended(controller)
    last = one.exit()
    assert last is not None
    assert (last.code, last.reason) == (Exit.PREEMPTED, "told to leave; saved")
    assert "nanocode: told to leave; saved\n" in errors


@pytest.mark.parametrize("tries", [2, 10_000])
def test_the_last_words_are_tried_again_and_not_for_long(world: MakeWorld, tries: int) -> None:
    hook = Hook(200)
    one = world(f"controller.webhook={hook.url}")
    (one.folder / "mute").write_text(str(tries))
    controller = one.start("tests.deploy.local.outage", one.run.store.url)
    until(lambda: one.run.done("corpus"), "the last stage is done")
    done = time.monotonic()
    assert ended(controller)[0] == Exit.DONE
    assert time.monotonic() - done < 10
    if tries < 10:
        assert "the run is done" in hook.received.get(timeout=1)[1]["text"]
    assert hook.received.empty()
    hook.server.shutdown()
    hook.server.server_close()


def test_a_slice_that_was_just_asked_for_is_held_though_no_look_has_found_it_yet(world: MakeWorld) -> None:
    one = world()
    journal = LocalJournal(one.run, LocalBackend(one.run))
    journal.read()
    journal.request("slice-1", "us-east5-b", 1.0, time.time())
    assert [(held.name, held.zone) for held in journal.held] == [("slice-1", "us-east5-b")]
    journal.read()
    assert [held.name for held in journal.held] == ["slice-1"], "it is counted once"
    journal.note("slice-1", "gone", time.time())
    journal.read()
    assert journal.held == []


def test_what_vanishes_is_begun_again(world: MakeWorld) -> None:
    one = world(tokenizer="wait done")
    controller = one.controller()
    one.pid()
    psutil.Process(one.keeper_pid()).kill()
    code, errors = ended(controller)
    assert code == Exit.DONE
    assert endings(one) == [Ending.PREEMPTED, Ending.DONE]
    assert "attempt 1 of tokenizer was cut off: process" in errors


def test_what_a_dead_controller_claimed_and_never_began_is_not_waited_for(world: MakeWorld) -> None:
    one = world()
    dead = subprocess.Popen(["true"])
    dead.wait()
    one.claimed(who=f"controller {socket.gethostname()}:{dead.pid} 0badcafe")
    assert ended(one.controller())[0] == Exit.DONE
    assert endings(one) == [Ending.PREEMPTED, Ending.DONE]


def test_suspended_and_cancelled_runs_stop_and_say_what_takes_them_up(world: MakeWorld) -> None:
    one = world(tokenizer="wait")
    controller = one.controller()
    one.pid()
    change_intent(one.run, want="suspend")
    code, errors = ended(controller)
    assert code == Exit.PREEMPTED
    assert errors.splitlines()[-1] == (
        f"nanocode: the user suspended the run; `nanocode run --run-dir {one.run.store.url}` takes it up again"
    )
    assert endings(one) == [Ending.STOPPED]


def test_two_controllers_at_once_do_every_stage_once(world: MakeWorld) -> None:
    one = world()
    both = [one.controller(), one.controller()]
    assert [ended(each)[0] for each in both] == [Exit.DONE, Exit.DONE]
    for stage in STAGES:
        claims, played = one.run.attempts(stage), list(one.folder.glob(f"played/{stage}-*"))
        assert len(claims) == len(played) == 1, f"{stage} was begun {len(claims)} times and played {len(played)} times"


def test_ctrl_c_in_one_of_two_controllers_stops_nothing_and_in_the_last_one_everything(world: MakeWorld) -> None:
    one = world(tokenizer="wait")
    first = one.controller()
    playing = one.pid()
    second = one.controller()
    assert second.stderr is not None
    assert "another controller of this run is at work" in second.stderr.readline()
    first.send_signal(signal.SIGINT)
    assert first.wait(20) == Exit.PREEMPTED  # without `ended`: the stage still holds the pipe
    time.sleep(1.5)
    assert (gone(playing), endings(one)) == (False, [None])
    second.send_signal(signal.SIGINT)
    assert ended(second)[0] == Exit.PREEMPTED
    assert (gone(playing), endings(one)) == (True, [Ending.STOPPED])
    said = "nanocode: another controller of this run goes on with it: `nanocode suspend "
    assert ended(first)[1].startswith(said)


def test_of_two_controllers_that_are_told_at_once_one_stops_everything(world: MakeWorld) -> None:
    one = world(tokenizer="wait")
    both = [one.controller(), one.controller()]
    playing = one.pid()
    time.sleep(1.5)
    for each in both:
        each.send_signal(signal.SIGHUP)
    assert [ended(each)[0] for each in both] == [Exit.PREEMPTED, Exit.PREEMPTED]
    assert (gone(playing), endings(one)) == (True, [Ending.STOPPED])


def test_a_paused_controller_that_wakes_up_late_begins_nothing_twice(world: MakeWorld) -> None:
    one = world(tokenizer="wait done", corpus="wait done")
    late = psutil.Process(one.controller().pid)
    playing = one.pid()
    late.suspend()
    heir = one.controller()
    psutil.Process(one.keeper_pid()).terminate()  # as a preemption; the sleeper's attempt ends while it sleeps
    one.pid(stage="corpus")
    assert gone(playing)
    late.resume()
    time.sleep(2)
    assert len(one.run.attempts("corpus")) == 1
    psutil.Process(one.keeper_pid(stage="corpus")).terminate()
    assert ended(heir)[0] == Exit.DONE
    assert [endings(one, stage) for stage in STAGES] == [[Ending.PREEMPTED, Ending.DONE]] * 2
    assert ended(one._begun[0])[0] == Exit.DONE
    for stage in STAGES:
        stops = [recorded(one.run, stage, number, Stop) for number in (1, 2)]
        assert stops == [None, None], "nobody was told to leave"


def test_a_controller_that_slept_between_claim_and_start_starts_nothing(world: MakeWorld) -> None:
    one = world("controller.admission_minutes=0.02")
    sleeper = one.start("tests.deploy.local.sleeper", one.run.store.url, "start")
    until(lambda: one.run.attempts("tokenizer"), "it has claimed")
    until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_STOPPED, "it sleeps")
    assert ended(one.controller())[0] == Exit.DONE
    assert endings(one) == [Ending.PREEMPTED, Ending.DONE]
    sleeper.send_signal(signal.SIGCONT)
    code, errors = ended(sleeper)
    assert code == Exit.DONE
    assert "attempt 1 of tokenizer has ended already" in errors
    assert not one.run.store.exists("tokenizer/attempts/1/keeper.json")


def test_a_controller_that_slept_before_it_looked_ends_nothing_that_began_meanwhile(world: MakeWorld) -> None:
    one = world(tokenizer="wait")
    sleeper = one.start("tests.deploy.local.sleeper", one.run.store.url, "observe")
    until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_STOPPED, "it sleeps")
    one.controller()
    playing = one.pid()
    sleeper.send_signal(signal.SIGCONT)
    time.sleep(3)  # a look or more, and the second for stacks
    assert (gone(playing), endings(one)) == (False, [None])


def test_settings_that_change_under_a_run_stop_what_was_begun_with_the_old_ones(world: MakeWorld) -> None:
    one = world(tokenizer="wait done")
    controller = one.controller()
    one.pid()
    one.settings = one.settings.model_copy(
        update={"tokenizer": one.settings.tokenizer.model_copy(update={"megabytes": 1.25})}
    )
    one.run.add_config(one.settings.to_yaml())
    code, _ = ended(controller)
    assert code == Exit.DONE
    assert endings(one) == [Ending.STOPPED, Ending.DONE]
