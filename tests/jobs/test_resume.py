"""Nothing makes a run lose its place: killed or told to leave, it ends as if nothing had happened."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nanocode.run.digests import stage_digests
from nanocode.run.exits import Exit
from nanocode.run.history import stage_ledger
from nanocode.run.settling import read_settings
from nanocode.run.spans import Kind
from tests.jobs.runs import STEPS, directory, environment, job, nanocode, steps_of, together

KILLS = 20
pytestmark = pytest.mark.slow


def final_state(run: Path) -> dict:
    marker = directory(run).done("pretrain")
    assert marker is not None
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return jax.device_get(checkpointer.restore(run / marker.outputs["checkpoint"]))


def losses(run: Path) -> list[tuple[int, float, float]]:
    steps = steps_of(run)
    return [(step, one["loss"], one["gradient_norm"]) for step, one in sorted(steps.items())]


def assert_same_ending(run: Path, other: Path) -> None:
    mine, its = final_state(run), final_state(other)
    assert jax.tree.structure(mine) == jax.tree.structure(its)
    jax.tree.map(np.testing.assert_array_equal, mine, its)
    assert losses(run) == losses(other)
    assert len(losses(run)) == STEPS


def test_killed_twenty_times_at_random_moments_it_ends_with_the_same_bits(run: Path, trained: Path) -> None:
    dice = random.Random(20261124)
    for kill in range(KILLS):
        process = job("pretrain", run)
        if kill % 2:  # while it starts, restores and compiles
            time.sleep(dice.uniform(0.3, 3.0))
        else:  # while it steps, saves and publishes: a checkpoint begins every 0.2 s
            wait_for_checkpoint(run, attempt=len(directory(run).attempts("pretrain")) + 1)
            time.sleep(dice.uniform(0.0, 0.25))
        assert process.poll() is None, "it ended before it could be killed: give it more steps"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finished = job("pretrain", run)
    out, errors = finished.communicate(timeout=120)
    assert finished.returncode == Exit.DONE, errors
    assert '"resumed"' in out, "no kill left a checkpoint behind: the test proves nothing"
    assert len(directory(run).attempts("pretrain")) >= 5
    assert_same_ending(run, trained)
    assert_time_is_accounted_for(run)


def assert_time_is_accounted_for(run: Path) -> None:
    marker, claims = directory(run).done("pretrain"), directory(run).attempts("pretrain")
    assert marker is not None
    found = stage_ledger(directory(run), "pretrain", marker.input_digest, marker)
    assert found.wall_seconds == pytest.approx((marker.ended - claims[0].claimed).total_seconds(), abs=1e-5)
    for kind in (Kind.PRODUCTIVE, Kind.STARTUP, Kind.COMPILE, Kind.RESTORE, Kind.EVALUATION, Kind.IDLE):
        assert found.seconds[kind] > 0, kind


def test_killed_between_the_last_checkpoint_and_the_marker_it_still_knows_loss_rate_and_cost(
    trained: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    first = directory(run).done("pretrain")
    assert first is not None
    (run / "pretrain/DONE.json").unlink()
    process = job("pretrain", run)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == Exit.DONE, errors
    assert f'"step": {STEPS}, ' in out, "nothing was left to do"
    again = directory(run).done("pretrain")
    assert again is not None
    assert [again.metrics[key] for key in ("loss", "tokens_per_second", "mfu")] == [
        first.metrics[key] for key in ("loss", "tokens_per_second", "mfu")
    ]
    assert again.metrics["loss"] == losses(trained)[-1][1]
    assert again.chip_seconds > first.chip_seconds, "the first attempt is paid for too"


def wait_for_checkpoint(run: Path, attempt: int = 1) -> None:
    """Until this attempt has a marked checkpoint."""
    deadline = time.monotonic() + 60
    while not list(run.glob(f"pretrain/attempts/{attempt}/checkpoints/*.json")):
        assert time.monotonic() < deadline, "no checkpoint within a minute"
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_leave_it_saves_at_the_next_step_and_leaves_with_75(run: Path, trained: Path, how: int) -> None:
    directory(run).add_config((run / "config/1.yaml").read_text().replace("log_steps: 10", "log_steps: 1"))
    process = job("pretrain", run)
    wait_for_checkpoint(run)
    told = time.time()
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == Exit.PREEMPTED
    step, saved = map(int, re.findall(r"told to leave at step (\d+) of \d+; saved at step (\d+)", errors)[0])
    assert step == saved, "it had time to save and did not"
    times = [one["time"] for one in steps_of(run).values()]
    assert sum(when > told for when in times) <= 3
    finished = nanocode("run", "--run-dir", str(run), "--stages", "pretrain")
    assert finished.returncode == 0, finished.stderr
    assert f'"step": {saved}' in finished.stdout
    assert_same_ending(run, trained)


def test_ctrl_c_in_a_terminal_is_one_line_with_the_step_that_was_saved(run: Path) -> None:
    command = [sys.executable, "-m", "jobs.cli", "run", "--run-dir", str(run)]
    terminal = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )
    wait_for_checkpoint(run)
    os.killpg(terminal.pid, signal.SIGINT)  # as a terminal does: to the command and to its child
    _, errors = terminal.communicate(timeout=30)
    assert terminal.returncode == Exit.PREEMPTED
    (line,) = errors.strip().splitlines()
    saved = re.findall(r"^nanocode: told to leave at step \d+ of \d+; saved at step (\d+);", line)[0]
    assert (run / f"pretrain/attempts/1/checkpoints/{saved}.json").exists()


def hears_sigterm(process: subprocess.Popen[str]) -> bool:
    """Whether it has a handler by now; until then the signal ends it as any other program."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_sigterm_before_the_first_step_leaves_at_once(run: Path, seconds: float) -> None:
    process = job("pretrain", run)
    while not hears_sigterm(process):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(seconds)
    told = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == Exit.PREEMPTED, errors
    assert time.monotonic() - told < 2


def test_a_damaged_newest_checkpoint_costs_one_checkpoint(run: Path, trained: Path) -> None:
    process = job("pretrain", run)
    wait_for_checkpoint(run)
    time.sleep(1.0)
    process.kill()
    process.communicate()
    newest = max(run.glob("pretrain/attempts/1/checkpoints/*.json"), key=lambda path: int(path.stem))
    shutil.rmtree(newest.with_suffix(""))
    finished = job("pretrain", run)
    out, errors = finished.communicate(timeout=120)
    assert finished.returncode == Exit.DONE, errors
    assert "checkpoint is damaged, falling back" in out
    assert_same_ending(run, trained)


def test_a_full_disk_is_one_line_and_loses_nothing(prepared: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    used = sum(path.stat().st_size + 8192 for path in prepared.rglob("*"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={used + 800_000}", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        run = Path(shutil.copytree(prepared, disk / "run"))
        directory(run).add_config(
            (run / "config/1.yaml").read_text().replace("keep_checkpoints: 3", "keep_checkpoints: 99")
        )
        process = job("pretrain", run)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == Exit.FAILED, errors
        told = [line for line in errors.splitlines() if line.startswith("nanocode: ")]
        assert len(told) == 1
        assert "no space left" in told[0]
        assert "Traceback" not in errors
        subprocess.run(["mount", "-o", "remount,size=500m", str(disk)], check=True)
        process = job("pretrain", run)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == Exit.DONE, errors
        assert '"resumed"' in out
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_two_processes_join_the_attempt_that_was_claimed_for_them(run: Path, free_port: int) -> None:
    directory(run).add_config((run / "config/1.yaml").read_text().replace(f"steps: {STEPS}", "steps: 20"))
    place = directory(run)
    place.claim_number("pretrain", 1, stage_digests(read_settings(place), place)["pretrain"], "a controller")
    hosts = together("pretrain", run, free_port, "--attempt", "1")
    endings = [host.communicate(timeout=120) for host in hosts]
    assert [host.returncode for host in hosts] == [Exit.DONE] * 2, endings
    marker = place.done("pretrain")
    assert marker is not None
    assert (marker.attempt, [claim.who for claim in place.attempts("pretrain")]) == (1, ["a controller"])
    assert {path.name[0] for path in run.glob("pretrain/attempts/1/log/*")} == {"0", "1"}


def test_two_processes_train_together_and_resume_as_one(
    run: Path, prepared: Path, trained: Path, tmp_path: Path, free_port: int
) -> None:
    steps = 300
    # Fewer steps than alone, for a save every ten of them is slow; the warm-up is as long, so they begin alike.
    config = (run / "config/1.yaml").read_text().replace(f"steps: {STEPS}", f"steps: {steps}")
    config = config.replace("warmup_share: 0.02", f"warmup_share: {0.02 * STEPS / steps}")
    whole = Path(shutil.copytree(prepared, tmp_path / "whole"))
    directory(whole).add_config(config.replace("checkpoint_minutes: 0.003", "checkpoint_minutes: 9"))
    directory(run).add_config(config)
    hosts = together("pretrain", run, free_port)
    wait_for_checkpoint(run)
    for host in hosts:
        host.send_signal(signal.SIGTERM)
    endings = [host.communicate(timeout=60) for host in hosts]
    assert [host.returncode for host in hosts] == [Exit.PREEMPTED] * 2, endings
    for place in (run, whole):
        hosts = together("pretrain", place, free_port)
        endings = [host.communicate(timeout=120) for host in hosts]
        assert [host.returncode for host in hosts] == [Exit.DONE] * 2, endings
        assert ('"resumed"' in endings[0][0]) == (place == run)
    assert losses(run) == losses(whole)
    both, alone = losses(run), losses(trained)
    assert len(both) == steps
    np.testing.assert_allclose([loss for _, loss, _ in both[:50]], [loss for _, loss, _ in alone[:50]], rtol=1e-3)
