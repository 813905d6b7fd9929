"""What makes a stage stale: the content of the SOUL, and everything a stage stands on."""

from pathlib import Path

import pytest

from nanocode.config.settings import load
from nanocode.run.digests import stage_digests
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError
from nanocode.storage.objects import LocalStore

SOUL = "1. Look first. [check: look-first]\n"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(LocalStore(tmp_path / "run"))


def changed(run: RunDirectory, before: list[str], after: list[str]) -> list[str]:
    """The stages that other settings make stale."""
    first, second = (stage_digests(load("demo", several, environment={}), run) for several in (before, after))
    return [name for name in first if first[name] != second[name]]


def test_a_new_soul_makes_synth_and_what_follows_stale_and_nothing_before(run: RunDirectory, tmp_path: Path) -> None:
    soul = tmp_path / "SOUL.md"
    soul.write_text(SOUL)
    settings = load("demo", [f"soul={soul}"], environment={})
    before = stage_digests(settings, run)
    soul.write_text(SOUL + "2. Say less.\n")
    after = stage_digests(settings, run)
    assert [name for name in before if before[name] != after[name]] == ["synth", "sft", "preference", "agent-eval"]


def test_the_souls_content_counts_and_not_its_path(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(SOUL)
    (tmp_path / "b.md").write_text(SOUL)
    assert changed(run, [f"soul={tmp_path}/a.md"], [f"soul={tmp_path}/b.md"]) == []
    assert changed(run, [], [f"soul={tmp_path}/a.md"]) == ["synth", "sft", "preference", "agent-eval"]


def test_a_soul_that_is_not_there_is_named(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        stage_digests(load("demo", [f"soul={tmp_path}/absent.md"], environment={}), run)
    told = str(error.value)
    assert told == f"cannot read soul {tmp_path}/absent.md (no such file or directory): correct the setting `soul`"


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ("pretrain.steps=9", ["pretrain", "base-eval", "sft", "preference", "agent-eval"]),
        ("synth.scenarios=9", ["synth", "sft", "preference", "agent-eval"]),
        ("sft.steps=9", ["sft", "preference", "agent-eval"]),
        ("preference.steps=9", ["preference", "agent-eval"]),
        ("agent_eval.instances=9", ["agent-eval"]),
    ],
)
def test_a_setting_makes_its_stage_and_those_on_top_stale(run: RunDirectory, change: str, stale: list[str]) -> None:
    assert changed(run, [], [change]) == stale
