"""Which configuration counts, what the run takes up with it, and who has to be asked."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nanocode.config.settings import Settings
from nanocode.run import settling
from nanocode.run.digests import stage_digests
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.exits import ConfigurationError, UsageError
from nanocode.run.intent import change_intent
from nanocode.storage.objects import LocalStore

ASK, ACT = "1. Ask first. [check: ask-first]\r\n", "1. Act — at once. [check: act-at-once]\n"
AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(LocalStore(tmp_path / "run"))


@pytest.fixture
def soul(tmp_path: Path) -> Path:
    path = tmp_path / "SOUL.md"
    path.write_bytes(ASK.encode())
    return path


def refuse(line: str) -> None:
    raise UsageError(line)


def settle(run: RunDirectory, *sets: str, accept: Callable[[str], None] = refuse) -> Settings:
    settings, before = settling.proposed(run, None, sets, None)
    return settling.settle(run, settings, before, accept)


def finish(run: RunDirectory, stage: str) -> None:
    digest = stage_digests(settling.read_settings(run), run)[stage]
    run.finish(stage, Marker(stage=stage, input_digest=digest, attempt=1, outputs={}, started=AT, ended=AT))


def settle_and_change(run: RunDirectory, soul: Path) -> None:
    """Two stages are done with one SOUL, and the file says another."""
    settle(run, f"soul={soul}")
    for stage in ("synth", "sft"):
        finish(run, stage)
    soul.write_text(ACT)


def test_the_soul_counts_as_it_was_when_the_run_took_it_up_also_where_the_file_is_not(
    run: RunDirectory, soul: Path
) -> None:
    digests = stage_digests(settle(run, f"soul={soul}"), run)
    soul.write_text(ACT)
    assert stage_digests(settling.read_settings(run), run) == digests
    assert settling.read_settings(run).soul_text == ASK, "to the byte"
    soul.unlink()
    assert settling.proposed(run, None, (), None)[0] == settling.read_settings(run)
    with pytest.raises(ConfigurationError, match="cannot read soul /nowhere/SOUL.md"):
        settling.proposed(run, None, ["soul=/nowhere/SOUL.md"], None)
    assert settle(run, "soul=null").soul_text is None


def test_what_somebody_has_agreed_to_is_not_asked_for_again_until_something_else_was(
    run: RunDirectory, soul: Path
) -> None:
    settle_and_change(run, soul)
    with pytest.raises(UsageError, match="make synth, sft stale"):
        settle(run)
    assert settling.read_settings(run).soul_text == ASK
    settle(run, accept=lambda line: None)
    assert settle(run, "budget.dollars=5").budget.dollars == 5
    finish(run, "synth")
    settle(run, "budget.dollars=4")
    with pytest.raises(UsageError, match="make synth, sft stale"):
        settle(run, "synth.scenarios=7")
    soul.write_bytes(ASK.encode())
    with pytest.raises(UsageError, match="make synth stale"):
        settle(run)
    settle(run, accept=lambda line: None)
    soul.write_text(ACT)
    with pytest.raises(UsageError, match="make sft stale"):
        settle(run)


def test_what_somebody_has_begun_again_needs_no_word_for_what_was_agreed_to_before(
    run: RunDirectory, soul: Path
) -> None:
    settle_and_change(run, soul)
    settle(run, accept=lambda line: None)
    change_intent(run, again={"synth": 1})
    settle(run)


def test_a_configuration_that_somebody_copies_has_the_soul_in_it(run: RunDirectory, soul: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.yaml").write_text(settle(run, f"soul={soul}").to_yaml())
    soul.unlink()
    other = RunDirectory(LocalStore(tmp_path / "other"))
    assert settling.proposed(other, None, (), tmp_path / "copy.yaml")[0].soul_text == ASK
    assert "soul_text" not in settle(other, "soul=null").to_yaml(), "an image that is older knows no such key"
