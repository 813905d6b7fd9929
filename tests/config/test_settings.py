"""Settings: who wins, what is refused and how, and what a digest covers."""

from pathlib import Path

import pytest

from nanocode.config.settings import PRESETS, from_yaml, load
from nanocode.run.exits import ConfigurationError
from nanocode.run.graph import STAGES


def test_command_line_wins_over_environment_over_file_over_preset(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("seed: 1\npretrain: {steps: 11, log_steps: 12, eval_rows: 13}\n")
    environment = {"NANOCODE_PRETRAIN__STEPS": "21", "NANOCODE_PRETRAIN__LOG_STEPS": "22", "HOME": "/"}
    found = load("demo", ["pretrain.steps=31"], file, environment)
    assert (found.pretrain.steps, found.pretrain.log_steps, found.pretrain.eval_rows, found.seed) == (31, 22, 13, 1)
    assert found.pretrain.batch_tokens == load("demo", environment={}).pretrain.batch_tokens


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_loads_and_survives_being_written(preset: str) -> None:
    settings = load(preset, environment={})
    assert from_yaml(settings.to_yaml(), "test") == settings
    if preset != "demo":
        assert settings.corpus.tokens == pytest.approx(8 * settings.model.parameters(), rel=0.01)
        assert sum(source.share for source in settings.corpus.sources) == pytest.approx(1.0)
    small = preset in ("demo", "d3", "d6")  # guessing is all they do in CORE
    assert (settings.base_eval.core_bundle is None) == small


def test_a_tilde_is_the_home_of_whoever_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    found = load("demo", ["corpus.sources=~/src", "base_eval.core_bundle=~/core"], environment={})
    assert found.corpus.sources[0].location == "/home/somebody/src"
    assert found.base_eval.core_bundle == "/home/somebody/core"


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("pretrain.step=5", "no setting is called pretrain.step: did you mean pretrain.steps"),
        ("pretrain.steps=0", "pretrain.steps = 0 cannot be: it has to be more than 0"),
        (
            "pretrain.batch_tokens=500",
            "batch_tokens 500 is not a multiple of model.context 384: set it to 384",
        ),
        ("pretrain.accumulate=3", "pretrain.accumulate 3 does not divide the 8 rows of a batch"),
        ("sft.batch_tokens=500", "sft.batch_tokens 500 is not a multiple of model.context 384: set it to 384"),
        (
            "preference.accumulate=16",
            "preference.batch_tokens 6144 gives 1 rows at a time, which are no pairs: set it to 12288",
        ),
        ("corpus.validation_share=0.7", "corpus.validation_share = 0.7"),
        ("model.rope_share=0.3", "rope_share 0.3 of head width 64"),
        ("seed", "has no value: write --set section.key=value"),
        ("pretrain.steps=many", "pretrain.steps = 'many' cannot be: it has to be a whole number"),
        ("pretrain.compute_dtype=half", "it has to be one of 'float32', 'bfloat16'"),
        ("budget.dollars=lots", "budget.dollars = 'lots' cannot be: it has to be a number"),
        ("cloud.secrets=[a]", "cloud.secrets = ['a'] cannot be: it has to be keys with values"),
        ("corpus.sources=5", "corpus.sources = 5 cannot be: it has to be a list"),
        ("controller.webhook=slack", "controller.webhook is no http(s) address: write https://HOST/PATH"),
        ("controller.webhook=ftp://a/b", "controller.webhook is no http(s) address: write https://HOST/PATH"),
    ],
)
def test_one_line_with_key_value_and_next_move(assignment: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load("demo", [assignment], environment={})
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_variable_and_a_file_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pretrain.stepz"):
        load("demo", environment={"NANOCODE_PRETRAIN__STEPZ": "1"})
    with pytest.raises(ConfigurationError, match="cannot read --config"):
        load("demo", config_file=tmp_path / "absent.yaml", environment={})
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigurationError, match="is not YAML"):
        load("demo", config_file=tmp_path / "bad.yaml", environment={})
    with pytest.raises(ConfigurationError, match="no preset is called 'd7'"):
        load("d7", environment={})


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ("pretrain.checkpoint_minutes=9", []),
        ("corpus.workers=3", []),
        ("budget.dollars=5", []),
        ("synth.teacher={url: 'http://a/v1', model: m}", ["synth"]),
        ("synth.public=[{location: a}]", ["synth"]),
        ("pretrain.steps=9", ["pretrain"]),
        ("corpus.tokens=9", ["corpus"]),
        ("corpus.sources=elsewhere", ["tokenizer", "corpus"]),
        ("tokenizer.digits=3", ["tokenizer"]),
        ("model.vocab_size=2048", ["tokenizer", "pretrain"]),
        ("model.context=192", ["corpus", "pretrain"]),
        ("model.rope_share=0.5", ["pretrain"]),
        ("base_eval.core_examples=3", ["base-eval"]),
        ("synth.scenarios=9", ["synth"]),
        ("synth.workers=3", []),
        ("sft.steps=9", ["sft"]),
        ("sft.log_steps=9", []),
        ("preference.beta=0.5", ["preference"]),
        ("agent_eval.instances=9", ["agent-eval"]),
        ("agent_eval.slots=9", []),
        ("seed=3", list(STAGES)),
    ],
)
def test_a_setting_is_in_the_digest_of_exactly_the_stages_it_changes(change: str, stages: list[str]) -> None:
    before, after = load("demo", environment={}), load("demo", [change], environment={})
    changed = [s.name for s in STAGES.values() if before.digested(s.settings) != after.digested(s.settings)]
    assert changed == stages


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ("concurrency=9", False),
        ("prompt_dollars=3", False),
        ("timeout_seconds=9", False),
        ("cap_dollars=7", True),
        ("model=other", True),
        ("options.temperature=0.5", True),
    ],
)
@pytest.mark.parametrize("whose", ["teacher", "critic"])
def test_of_an_endpoint_only_what_changes_its_answers_or_their_number_is_digested(
    whose: str, change: str, matters: bool
) -> None:
    begun = [f"synth.{whose}={{url: 'http://a/v1', model: m, prompt_dollars: 1}}"]
    before = load("demo", begun, environment={})
    after = load("demo", [*begun, f"synth.{whose}.{change}"], environment={})
    assert (before.digested(["synth"]) != after.digested(["synth"])) == matters


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("synth.teacher_scenarios=5", "synth.teacher_scenarios 5 has no teacher: set synth.teacher.url"),
        ("synth.public_pairs=5", "synth.public_pairs 5 has no set of that kind"),
        ("synth.teacher.model=m", "setting synth.teacher.url has no value"),
        ("synth.critic.model=m", "setting synth.critic.url has no value"),
        ("synth.critic=maybe", "synth.critic = 'maybe' cannot be: it has to be true or false"),
        (
            "synth.teacher={url: 'http://a/v1?key=1', model: m}",
            "synth.teacher.url: write http(s)://HOST/v1; a key belongs",
        ),
    ],
)
def test_what_synth_cannot_do_is_refused(assignment: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load("demo", [assignment], environment={})
    assert told in str(error.value)


def test_a_file_of_settings_that_cannot_be_read_is_told_without_errno(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, why in (("missing", "no such file or directory"), (".", "is a directory"), ("binary", "it is not UTF-8")):
        with pytest.raises(ConfigurationError, match=rf"cannot read --config .*\({why}.*: give a YAML file") as error:
            load("demo", config_file=tmp_path / name, environment={})
        assert "Errno" not in str(error.value)
