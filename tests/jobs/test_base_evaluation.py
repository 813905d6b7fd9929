"""The base model is measured by however many hosts there are, and one of them publishes."""

import shutil
from pathlib import Path

import pytest

from nanocode.run.exits import Exit
from tests.jobs.runs import directory, together


def test_two_processes_measure_what_one_measures(trained: Path, tmp_path: Path, free_port: int) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    bundle = Path(__file__).parents[1] / "golden/core-bundle"
    config = max((run / "config").iterdir()).read_text()
    directory(run).add_config(config.replace("core_bundle: null", f"core_bundle: {bundle}"))
    hosts = together("base_eval", run, free_port)
    endings = [host.communicate(timeout=120) for host in hosts]
    assert [host.returncode for host in hosts] == [Exit.DONE] * 2, endings
    alone, both = directory(trained).done("base-eval"), directory(run).done("base-eval")
    assert alone is not None
    assert both is not None
    assert (alone.attempt, both.attempt) == (1, 2), "two hosts make one attempt"
    assert both.metrics["bits_per_byte"] == pytest.approx(alone.metrics["bits_per_byte"], rel=1e-4)
    assert both.metrics["core"]["tasks"].keys() == {"toy_mc", "toy_mc_zero_shot", "toy_schema", "toy_lm"}
