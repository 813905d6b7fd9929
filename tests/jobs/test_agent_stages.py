"""From rollouts to an evaluated agent: what the stages leave behind, and that a kill changes none of it."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jobs.cli import main
from nanocode.evals.agent import BASELINES, SUITES
from nanocode.run.directory import Marker
from nanocode.run.exits import Exit
from nanocode.run.graph import order
from nanocode.run.segments import read_segments
from nanocode.storage.objects import LocalStore
from nanocode.synth.rollouts import read_pairs, read_rollouts
from nanocode.tasks.families import TRAINED
from tests.jobs.runs import directory, job

SCENARIOS, TASKS, SAMPLES = 120, 44, 2


def marker(run: Path, stage: str) -> Marker:
    found = directory(run).done(stage)
    assert found is not None, f"{stage} is not done"
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(run: Path, stage: str) -> dict:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return jax.device_get(checkpointer.restore(run / marker(run, stage).outputs["checkpoint"]))


def test_every_stage_is_done_and_status_says_so(agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(agent), "--json"]) == Exit.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "done"
    assert {stage["name"]: stage["state"] for stage in found["stages"]} == dict.fromkeys(order(), "done")


def test_synth_says_what_fell_at_which_gate(agent: Path) -> None:
    done = marker(agent, "synth")
    store = LocalStore(agent / done.outputs["rollouts"])
    gates, rollouts, pairs = done.metrics["gates"]["expert"], list(read_rollouts(store)), list(read_pairs(store))
    assert gates["scenarios"] == SCENARIOS
    assert len(rollouts) == gates["kept"] > 0.9 * SCENARIOS
    assert {family for family, _ in rollouts} == set(TRAINED)
    assert len(pairs) == gates["pairs"] > 0
    assert "## Principles" in done.metrics["soul"]


@pytest.mark.parametrize(("stage", "steps"), [("sft", 40), ("preference", 20)])
def test_a_training_stage_has_the_metrics_of_pretraining_and_its_own(agent: Path, stage: str, steps: int) -> None:
    found, base = marker(agent, stage).metrics, marker(agent, "pretrain").metrics
    assert set(base) <= set(found)
    assert found["steps"] == steps
    assert found["tokens"] == steps * 1536
    assert set(found["bits_per_byte"]) == {"code", "english"}
    records = [one for one in read_segments(directory(agent).store, stage, "metrics") if one["kind"] == "step"]
    assert [one["step"] for one in records] == list(range(steps))
    assert found["loss"] == records[-1]["loss"]


def test_sft_learns_from_what_the_agent_wrote(agent: Path) -> None:
    found = marker(agent, "sft").metrics
    evaluated = [one for one in read_segments(directory(agent).store, "sft", "metrics") if one["kind"] == "eval"]
    assert [one["step"] for one in evaluated] == [0, 20, 40]
    assert evaluated[-1]["validation"] == found["validation_loss"] < evaluated[0]["validation"] - 0.5
    assert sum(found["conversations"].values()) == marker(agent, "synth").metrics["gates"]["expert"]["kept"]
    assert 0 <= found["waste"] < 0.3


def test_preference_starts_at_the_fine_tuned_model(agent: Path) -> None:
    found = marker(agent, "preference").metrics
    assert found["pairs"]["attempts"] == TASKS * SAMPLES
    assert found["pairs"]["used"] + found["pairs"]["too long"] == (
        found["pairs"]["from synthesis"] + found["pairs"].get("tasks with a pair", 0)
    )
    before, sft = found["bits_per_byte_before"], marker(agent, "sft").metrics["bits_per_byte"]
    assert before == pytest.approx(sft, rel=1e-5)
    records = [one for one in read_segments(directory(agent).store, "preference", "metrics") if one["kind"] == "step"]
    assert records[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert records[0]["margin"] == pytest.approx(0.0, abs=1e-2)
    assert records[-1]["margin"] > records[0]["margin"]
    assert {"accuracy", "chosen_gain", "gradient_norm", "learning_rate"} <= set(records[0])


def test_agent_eval_has_every_model_and_every_suite(agent: Path) -> None:
    models = marker(agent, "agent-eval").metrics["models"]
    assert set(models) == {"pretrain", "sft", "preference", *BASELINES}
    assert set(models["preference"]) == set(SUITES)
    for name, suites in models.items():
        for suite, found in suites.items():
            assert 0 <= found["interval"][0] <= found["pass@1"] <= found["interval"][1] <= 1, (name, suite)
            assert {family: one["total"] for family, one in found["families"].items()} == dict.fromkeys(
                SUITES[suite][1], 1
            )
            assert found["steps"] > 0
            assert found["transcripts"]


def test_a_soul_that_is_not_there_is_one_line(agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((agent / "config").iterdir())
    assert main(["run", "--run-dir", str(agent), "--set", "soul=/nowhere/SOUL.md"]) == Exit.CONFIGURATION
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "nanocode: cannot read soul /nowhere/SOUL.md (no such file or directory): correct the setting `soul`"
    assert sorted((agent / "config").iterdir()) == before


def test_another_soul_names_what_it_makes_stale(
    agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "SOUL.md").write_text("1. Ask before you change. [check: ask-first]\n")
    assert main(["run", "--run-dir", str(agent), "--set", f"soul={tmp_path}/SOUL.md"]) == Exit.USAGE
    assert "make synth, sft, preference, agent-eval stale" in capsys.readouterr().err


def undone(agent: Path, tmp_path: Path, stage: str) -> Path:
    """A copy of the run in which this stage has not begun."""
    run = Path(shutil.copytree(agent, tmp_path / "run"))
    shutil.rmtree(run / stage)
    return run


def killed(stage: str, run: Path, when: Callable[[], bool]) -> None:
    """Begin the stage, and kill it and all that it has started as soon as this is so."""
    process = job(stage.replace("-", "_"), run)
    deadline = time.monotonic() + 240
    while not when():
        assert process.poll() is None, f"it ended before it could be killed: {process.communicate()}"
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (run / stage / "DONE.json").exists()


def resumed(stage: str, run: Path) -> str:
    """Run the stage to its end; what it said."""
    process = job(stage.replace("-", "_"), run)
    out, errors = process.communicate(timeout=240)
    assert process.returncode == Exit.DONE, errors
    return out


def there(run: Path, pattern: str, count: int = 1) -> Callable[[], bool]:
    return lambda: len(list(run.glob(pattern))) >= count


def test_synth_killed_between_shards_goes_on_to_the_same_bytes(agent: Path, tmp_path: Path) -> None:
    run = undone(agent, tmp_path, "synth")
    killed("synth", run, there(run, "synth/*/shards/*.jsonl", 2))
    kept = {path: path.stat().st_mtime_ns for path in run.glob("synth/*/shards/*.jsonl")}
    resumed("synth", run)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was published is not made again"
    folder = marker(run, "synth").outputs["rollouts"]
    assert content(run / folder) == content(agent / folder)


@pytest.mark.parametrize("stage", ["sft", "preference"])
def test_training_killed_after_a_checkpoint_ends_with_the_same_bits(agent: Path, tmp_path: Path, stage: str) -> None:
    run = undone(agent, tmp_path, stage)
    killed(stage, run, there(run, f"{stage}/attempts/1/checkpoints/*.json"))
    assert '"resumed"' in resumed(stage, run)
    jax.tree.map(np.testing.assert_array_equal, weights(run, stage), weights(agent, stage))
    if stage == "preference":
        (folder,) = (path.parent.name for path in run.glob("preference/*/reference.npy"))
        assert content(run / stage / folder) == content(agent / stage / folder)


def test_preference_killed_while_it_samples_ends_with_the_same_pairs_and_bits(agent: Path, tmp_path: Path) -> None:
    run = undone(agent, tmp_path, "preference")
    killed("preference", run, there(run, "preference/*/pairs/*.json"))
    (first,) = run.glob("preference/*/pairs/*.json")
    made = first.stat().st_mtime_ns
    resumed("preference", run)
    assert first.stat().st_mtime_ns == made, "what was sampled is not sampled again"
    folder = first.parent.parent.relative_to(run)
    assert content(run / folder) == content(agent / folder)
    jax.tree.map(np.testing.assert_array_equal, weights(run, "preference"), weights(agent, "preference"))


def test_agent_eval_killed_between_suites_gives_the_same_answers(agent: Path, tmp_path: Path) -> None:
    run = undone(agent, tmp_path, "agent-eval")
    killed("agent-eval", run, there(run, "agent-eval/*/sft/fresh/*.jsonl"))
    resumed("agent-eval", run)
    (folder,) = (path.parent.relative_to(run) for path in run.glob("agent-eval/*/baseline"))
    assert content(run / folder) == content(agent / folder)
    assert marker(run, "agent-eval").metrics == marker(agent, "agent-eval").metrics
