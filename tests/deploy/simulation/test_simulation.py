"""Some hundred schedules at every test run; `python -m tests.deploy.simulation` runs them by the thousand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.controller import stages
from tests.deploy.simulation.__main__ import main
from tests.deploy.simulation.controllers import CELLS
from tests.deploy.simulation.runner import Summary, run, silence
from tests.deploy.simulation.schedule import AT_LEAST, KINDS, draw
from tests.deploy.simulation.world import simulate

SCHEDULES = 250
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def summary() -> Summary:
    return run(0, SCHEDULES)


def test_no_schedule_of_faults_breaks_an_invariant(summary: Summary) -> None:
    assert summary.broken == []
    assert summary.schedules == SCHEDULES


def test_a_process_that_lived_and_died_while_its_controller_slept_may_count_as_never_started() -> None:
    trace: list[str] = []
    with silence():
        result = simulate(91325, trace)
    told = [line for line in trace if "Close(stage='corpus', attempt=1" in line]
    assert any("claimed and never started" in line for line in told), "the seed still leads there"
    assert result.broken == []


def test_every_schedule_meets_several_faults_and_all_together_meet_every_kind(summary: Summary) -> None:
    assert summary.fewest_faults >= AT_LEAST
    assert [kind for kind in KINDS if not summary.met[kind]] == []


def test_every_action_is_cut_off_at_every_point(summary: Summary) -> None:
    assert [cell for cell in CELLS if not summary.cut[cell[0].__name__, cell[1]]] == []


def test_runs_end_in_every_way_there_is(summary: Summary) -> None:
    assert set(summary.states) == {"done", "failed", "over budget", "suspended", "cancelled"}


def test_a_seed_replays_the_same_schedule_in_another_process() -> None:
    trace: list[str] = []
    with silence():
        result = simulate(7, trace)
    assert draw(7) == draw(7) != draw(8)
    command = [sys.executable, "-m", "tests.deploy.simulation", "7"]
    again = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True, text=True, check=True
    )
    assert again.stdout.splitlines()[:-1] == trace
    assert result.met.total() >= AT_LEAST
    assert result.broken == []


def test_a_broken_invariant_names_the_command_that_replays_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "missing", lambda *_: "")
    monkeypatch.setattr("tests.deploy.simulation.__main__.run_in_processes", lambda first, count, _: run(first, count))
    monkeypatch.setattr(sys, "argv", ["simulation", "--schedules", "8"])
    assert main() == 1
    said = capsys.readouterr().out
    found = re.search(
        r"^  (.*begins before.*)\n    replay: python -m tests.deploy.simulation (\d+)$", said, re.MULTILINE
    )
    assert found is not None
    monkeypatch.setattr(sys, "argv", ["simulation", found[2]])
    assert main() == 1
    assert f"broken: {found[1]}" in capsys.readouterr().out
