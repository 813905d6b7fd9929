"""A change of a TrainingRun that is refused: what goes on, what waits, and what is not begun again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from deploy.kubernetes import settled
from deploy.kubernetes.client import Cluster
from deploy.kubernetes.templates import TEMPLATES as TEMPLATES_OF
from nanocode.run import digests
from nanocode.run.attempts import Stop, recorded
from nanocode.run.settling import read_settings
from tests.deploy.kubernetes.api_server import ApiServer
from tests.deploy.kubernetes.objects import ran, taken
from tests.deploy.kubernetes.releases import IMAGE, TEMPLATES, put_templates
from tests.deploy.kubernetes.world import World

pytestmark = pytest.mark.slow

MakeWorld = Callable[..., World]


@pytest.fixture
def world(server: ApiServer, cluster: Callable[..., Cluster], tmp_path: Path) -> MakeWorld:
    return lambda **how: World(server, cluster(timeout=(1.0, 1.0)), tmp_path, **how)


@pytest.fixture
def soul(tmp_path: Path) -> Path:
    """A SOUL of a user's own, as the pods see it."""
    path = tmp_path / "SOUL.md"
    path.write_text("1. Be brief.\n")
    return path


def write(one: World, soul: Path, text: str, **spec: object) -> None:
    """As an upgrade with another SOUL does: its pods have another file, and the controller's pod is another one."""
    soul.write_text(text)
    one.change(**spec)
    one.controller = one.another_controller()


def until_pretrain(one: World) -> None:
    one.rounds()
    for stage in ("tokenizer", "synth", "corpus"):
        one.done(stage)
        one.rounds(2)
    assert "r-pretrain-1" in one.jobs


def stopped(one: World, stage: str) -> bool:
    return recorded(one.directory, stage, 1, Stop) is not None


def test_another_soul_that_nobody_accepted_changes_nothing_and_one_that_is_accepted_is_not_asked_for_again(
    world: MakeWorld, soul: Path
) -> None:
    one = world(settings={"soul": str(soul)})
    until_pretrain(one)
    write(one, soul, "1. Be long.\n", queueName="other")
    one.rounds(2)
    refusal = "settings or sources have changed and make synth stale: they run again, what they made is kept"
    said = f"{refusal}; set acceptStale to true to go on, or put them back as they were"
    assert one.status["message"] == f"{said}; pretrain: its pods are being made"
    assert "r-synth-2" not in one.jobs and not stopped(one, "pretrain")
    for stage in ("pretrain", "base-eval"):
        one.done(stage)
        one.rounds(2)
    assert "r-sft-1" in one.jobs, "with the SOUL that the run has"
    one.done("sft")
    one.rounds(2)
    one.change(acceptStale=True)
    one.rounds(3)
    assert "r-synth-2" in one.jobs
    write(one, soul, "1. Be long.\n", acceptStale=False, settings={"controller.hold_minutes": 5})
    one.rounds(2)
    assert "stale" not in (one.status["message"] or ""), "the second synth is under way, as somebody has said"
    one.done("synth", 2)
    write(one, soul, "1. Be long.\n", settings={"controller.hold_minutes": 4})
    one.rounds(3)
    assert "r-sft-2" in one.jobs and "stale" not in (one.status["message"] or "")
    assert read_settings(one.directory).controller.hold_minutes == 4
    write(one, soul, "1. Be brief.\n", queueName="")
    one.rounds(3)
    assert "make synth stale" in one.status["message"], "the first one again is another one, too"
    assert "r-synth-3" not in one.jobs and not stopped(one, "sft")


def test_what_an_image_reads_otherwise_begins_nothing_that_nobody_accepted(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world()
    until_pretrain(one)
    monkeypatch.setattr(digests, "soul_text", lambda path: "1. Be long.\n")
    one.change(image="registry:5000/nanocode:2")
    one.controller = one.another_controller()
    one.rounds(2)
    assert "make synth stale" in one.status["message"]
    held = "synth, sft, preference, agent-eval, report"
    assert f"; until then nothing of {held} begins, and what lives of it goes on" in one.status["message"]
    for stage in ("pretrain", "base-eval"):
        assert not stopped(one, stage)
        one.done(stage)
        one.rounds(2)
    assert not {"r-synth-2", "r-sft-1"} & set(one.jobs)
    one.change(acceptStale=True)
    one.rounds(2)
    assert "r-synth-2" in one.jobs and "until then" not in (one.status["message"] or "")


def test_a_run_that_has_not_taken_up_its_soul_yet_is_not_begun_again_either(world: MakeWorld, soul: Path) -> None:
    one = world(settings={"soul": str(soul)})
    until_pretrain(one)
    earlier = {**read_settings(one.directory).model_dump(mode="json")}
    del earlier["soul_text"]
    one.directory.add_config(settled.DECLARED + yaml.safe_dump(earlier))
    one.directory.store.delete("accepted.json", one.directory.store.generation("accepted.json"))
    write(one, soul, "1. Be long.\n", queueName="other")
    one.rounds(2)
    assert "make synth stale" in one.status["message"]
    assert "r-synth-2" not in one.jobs and not stopped(one, "pretrain")


def test_while_a_change_is_refused_the_first_stage_that_needs_a_slice_gets_one(world: MakeWorld, soul: Path) -> None:
    one = world(settings={"soul": str(soul)})
    one.rounds()
    for stage in ("tokenizer", "synth"):
        one.done(stage)
        one.rounds(2)
    write(one, soul, "1. Be long.\n", queueName="other")
    one.rounds(2)
    assert "make synth stale" in one.status["message"]
    one.done("corpus")
    one.rounds(2)
    assert "r-pretrain-1" in one.jobs


def test_a_soul_that_is_taken_away_is_another_one_too(world: MakeWorld, soul: Path) -> None:
    one = world(settings={"soul": str(soul)})
    until_pretrain(one)
    soul.unlink()
    one.change(settings={"soul": None})
    one.controller = one.another_controller()
    one.rounds(2)
    assert one.status["message"].startswith("settings or sources have changed and make synth stale")
    assert "r-synth-2" not in one.jobs and not stopped(one, "pretrain")
    one.change(acceptStale=True)
    one.rounds(2)
    assert "r-synth-2" in one.jobs and one.status["phase"] == "Starting"


def test_a_setting_that_is_refused_leaves_the_stages_alone_that_nobody_touched(world: MakeWorld, soul: Path) -> None:
    one = world(settings={"soul": str(soul)})
    until_pretrain(one)
    one.change(settings={"synth.scenarios": 7})
    one.controller = one.another_controller()
    one.rounds(2)
    assert "set acceptStale to true" in one.status["message"]
    for stage in ("pretrain", "base-eval"):
        one.done(stage)
        one.rounds(2)
    assert "r-sft-1" in one.jobs and "r-synth-2" not in one.jobs


@pytest.mark.parametrize("restarted", [False, True], ids=["the same controller", "another controller"])
def test_the_next_attempt_is_made_from_the_templates_and_the_image_that_are_there(
    world: MakeWorld, server: ApiServer, restarted: bool
) -> None:
    one = world()
    one.rounds(2)
    del server.objects["configmaps", TEMPLATES]
    put_templates(server, "r-templates-0000ffff")
    one.change(templates="r-templates-0000ffff", image="registry:5000/nanocode:2", settings={"pretrain.stepz": 3})
    if restarted:
        one.controller = one.another_controller()
    one.rounds()
    one.node()
    one.pod("r-tokenizer-1", ran(137), 0, "node-0", taken())
    one.ended("r-tokenizer-1", reason="PodFailurePolicy")
    one.rounds(3)
    assert "did you mean pretrain.steps?" in one.status["message"]
    first, second = (server.objects["jobs", f"r-tokenizer-{number}"] for number in (1, 2))
    assert second["metadata"]["annotations"][TEMPLATES_OF] == "r-templates-0000ffff"
    images = [job["spec"]["template"]["spec"]["containers"][0]["image"] for job in (first, second)]
    assert images == [IMAGE, "registry:5000/nanocode:2"]
