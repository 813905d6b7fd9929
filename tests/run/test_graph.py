"""The stage graph, its digests and the exit codes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode.run.exits import Exit, UsageError
from nanocode.run.graph import STAGES, downstream, input_digest, order, select

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CONFIGS = st.dictionaries(st.text(), VALUES, max_size=4)
FILES = st.dictionaries(st.text(min_size=1), st.text("0123456789abcdef", min_size=8, max_size=8), max_size=3)
UPSTREAM = {"tokenizer": "aa", "corpus": "bb"}


def backwards(value: Any) -> Any:
    """The same value with every dict in the opposite order."""
    if isinstance(value, dict):
        return {key: backwards(inner) for key, inner in reversed(value.items())}
    return [backwards(inner) for inner in value] if isinstance(value, list) else value


def test_every_stage_comes_after_those_it_reads() -> None:
    place = {name: i for i, name in enumerate(order())}
    assert set(place) == set(STAGES)
    assert all(place[read] < place[stage.name] for stage in STAGES.values() for read in stage.reads)


def test_downstream_is_what_becomes_stale() -> None:
    assert downstream("corpus") == ("pretrain", "base-eval", "sft", "preference", "agent-eval", "report")
    assert downstream("synth") == ("sft", "preference", "agent-eval", "report")
    assert downstream("base-eval") == ("report",)
    assert downstream("report") == ()


def test_the_report_reads_every_other_stage() -> None:
    assert set(STAGES["report"].reads) == set(STAGES) - {"report"}


def test_a_stage_runs_as_a_module_of_jobs() -> None:
    assert STAGES["base-eval"].module == "jobs.base_eval"


def test_select_puts_stages_in_order_once() -> None:
    assert [stage.name for stage in select(["pretrain", " tokenizer", "pretrain"])] == ["tokenizer", "pretrain"]


def test_an_unknown_stage_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"'train'.*tokenizer, corpus, pretrain, base-eval, synth, sft, preference, agent-eval, report"
    ):
        select(["tokenizer", "train"])


@given(CONFIGS, FILES)
def test_a_digest_does_not_depend_on_dict_order(config: dict[str, Any], files: dict[str, str]) -> None:
    digest = input_digest("pretrain", config, files, UPSTREAM)
    assert digest == input_digest("pretrain", backwards(config), backwards(files), backwards(UPSTREAM))
    assert len(digest) == 32 and set(digest) <= set("0123456789abcdef")


@given(CONFIGS, FILES, st.text(min_size=1), st.sampled_from(sorted(UPSTREAM)))
def test_a_digest_changes_with_each_input(config: dict[str, Any], files: dict[str, str], key: str, read: str) -> None:
    digests = {
        input_digest("pretrain", config, files, UPSTREAM),
        input_digest("pretrain", {**config, key: [config.get(key)]}, files, UPSTREAM),
        input_digest("pretrain", config, {**files, key: "changed"}, UPSTREAM),
        input_digest("pretrain", config, files, {**UPSTREAM, read: "cc"}),
    }
    assert len(digests) == 4


def test_the_same_inputs_of_another_stage_give_another_digest() -> None:
    upstream = {"pretrain": "aa"}
    assert input_digest("base-eval", {}, {}, upstream) != input_digest("report", {}, {}, upstream)


def test_a_forgotten_or_foreign_upstream_digest_is_refused() -> None:
    with pytest.raises(ValueError, match="stage pretrain needs the digests of"):
        input_digest("pretrain", {}, {}, {"corpus": "bb"})
    with pytest.raises(ValueError, match="stage corpus needs the digests of"):
        input_digest("corpus", {}, {}, UPSTREAM)


def test_the_report_takes_the_stages_that_are_there() -> None:
    assert input_digest("report", {}, {}, {"tokenizer": "aa"}) != input_digest("report", {}, {}, UPSTREAM)


def test_exit_codes_are_those_of_the_contract() -> None:
    assert {code.name: int(code) for code in Exit} == {
        "DONE": 0, "FAILED": 1, "USAGE": 2, "PREEMPTED": 75, "CONFIGURATION": 78,
    }  # fmt: skip
