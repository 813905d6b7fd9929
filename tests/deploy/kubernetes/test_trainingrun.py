"""A spec as settings and wishes; a decision as a status that people and `kubectl wait` read."""

from dataclasses import replace
from typing import Any

import pytest

from deploy.controller.decision import Decision, StageState, State
from deploy.kubernetes import settled
from deploy.kubernetes.trainingrun import News, overrides, spec_of, status, timestamp, wanted
from nanocode.config.settings import load
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError, UsageError
from nanocode.run.intent import Intent, Want, change_intent, latest_intent
from nanocode.run.settling import read_settings
from nanocode.storage.objects import open_store
from tests.deploy.kubernetes.releases import training_run

NOW = 1_800_000_000.0


@pytest.fixture
def run(tmp_path: Any) -> RunDirectory:
    return RunDirectory(open_store(tmp_path / "run"))


def spec(**changes: Any) -> Any:
    return spec_of(training_run("gs://b/r", **changes))


def settings_of(**changes: Any) -> Any:
    return load("demo", overrides(spec(**changes)), environment={})


def test_fields_beside_settings_are_settings_too_and_settings_have_the_last_word() -> None:
    found = settings_of(
        budgetDollars=12.5,
        zones=["a", "b"],
        dollarsPerSliceHour={"pool": 4.3},
        settings={"pretrain.steps": 7, "controller.zones": ["c"]},
    )
    assert (found.budget.dollars, found.controller.zones, found.pretrain.steps) == (12.5, ("c",), 7)
    assert found.controller.dollars_per_slice_hour == {"pool": 4.3}
    assert settings_of(settings={"budget": {"dollars": 3}}).budget.dollars == 3


def test_settings_may_be_nested_or_text_as_on_the_command_line() -> None:
    found = settings_of(settings={"sft": {"steps": 5}, "preference.steps": "6", "base_eval.core_bundle": "null"})
    assert (found.sft.steps, found.preference.steps, found.base_eval.core_bundle) == (5, 6, None)


def test_an_unknown_setting_is_refused_with_its_neighbour(run: RunDirectory) -> None:
    with pytest.raises(ConfigurationError, match="did you mean pretrain.steps"):
        settled.settle(run, spec(settings={"pretrain.stepz": 3}))
    assert run.latest_config() is None


@pytest.mark.parametrize(
    ("deleted", "wishes", "before", "want"),
    [
        (False, {}, "run", "run"),
        (False, {"suspend": True}, "run", "suspend"),
        (False, {"suspend": False}, "suspend", "suspend"),
        (False, {"suspend": True, "cancel": True}, "run", "cancel"),
        (True, {"suspend": True}, "run", "cancel"),
        (False, {}, "cancel", "cancel"),
    ],
)
def test_whoever_wants_less_of_the_run_is_heard(deleted: bool, wishes: Any, before: Want, want: Want) -> None:
    one = training_run("gs://b/r", **wishes)
    if deleted:
        one["metadata"]["deletionTimestamp"] = timestamp(NOW)
    assert wanted(one, Intent(want=before, again={"sft": 1})) == Intent(want=want, again={"sft": 1})


def test_what_the_spec_does_not_say_any_more_goes_back_to_the_preset(run: RunDirectory) -> None:
    settled.settle(run, spec(settings={"sft.steps": 5}))
    assert read_settings(run).sft.steps == 5
    settled.settle(run, spec())
    assert read_settings(run).sft.steps == load("demo", environment={}).sft.steps
    settled.settle(run, spec())
    assert run.latest_config()[0] == 2, "nothing is written where nothing changes"  # type: ignore[index]


def test_a_run_that_somebody_else_began_keeps_what_the_spec_does_not_say(run: RunDirectory) -> None:
    run.add_config(load("demo", ["sft.steps=5", "corpus.sources=gs://elsewhere/text"], environment={}).to_yaml())
    settled.settle(run, spec(settings={"preference.steps": 6}))
    assert (read_settings(run).sft.steps, read_settings(run).preference.steps) == (5, 6)


def test_an_upgrade_of_the_image_changes_no_digest(run: RunDirectory) -> None:
    embedded = {"corpus.sources": "embedded"}
    first = settled.settle(run, spec(settings=embedded))
    assert first.corpus.sources[0].revision
    assert settled.settle(run, spec(settings=embedded, image="registry:5000/nanocode:2")) == first


def test_another_preset_and_stale_stages_are_refused_with_the_next_move(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled.settle(run, spec())
    with pytest.raises(ConfigurationError, match="is a run of preset demo, not d3: choose another run directory"):
        settled.settle(run, spec(preset="d3"))
    monkeypatch.setattr("nanocode.run.settling.stale_stages", lambda run, settings: ["sft"])
    with pytest.raises(UsageError, match="make sft stale.*; set acceptStale to true to go on"):
        settled.settle(run, spec(settings={"sft.elsewhere": 0.5}))
    settled.settle(run, spec(settings={"sft.elsewhere": 0.5}, acceptStale=True))
    assert read_settings(run).sft.elsewhere == 0.5


def test_a_retry_counts_once_however_often_it_is_read(run: RunDirectory) -> None:
    for _ in range(2):
        settled.wish(run, spec(retry={"sft": 1}))
    assert latest_intent(run).again == {"sft": 1}
    change_intent(run, again={"sft": 4})
    settled.wish(run, spec(retry={"sft": 2}))
    assert latest_intent(run).again == {"sft": 4}, "never less than before"
    with pytest.raises(UsageError, match="no stage is called 'stf'"):
        settled.wish(run, spec(retry={"stf": 1}))


# -- status ------------------------------------------------------------------------------------------------------------


def test_the_status_says_what_the_run_will_have_cost() -> None:
    found = {**FOUND, "forecast_dollars": 41.237}
    one = training_run("gs://b/r")
    shown = status(one, News(decision(State.RUNNING), found), NOW)
    assert (shown["costDollars"], shown["forecastDollars"]) == (1.23, 41.24)
    assert status(one, News(decision(State.RUNNING), FOUND), NOW)["forecastDollars"] is None


def decision(state: State, reason: str = "", **stages: StageState) -> Decision:
    return Decision((), stages, state, reason, spent_dollars=1.234, resting=False)


def stage(name: str, state: str, **more: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("attempt", "step", "steps", "loss", "mfu", "reason"))
    return {"name": name, **nothing, "attempts": 0, "preemptions": 0, "failures": 0, "state": state, **more}


FOUND = {
    "stages": [
        stage("tokenizer", "done", attempt=1, attempts=1),
        stage("pretrain", "running", attempt=3, attempts=3, preemptions=2, step=120, steps=1000, loss=2.5, mfu=0.31),
        stage("report", "waiting"),
    ]
}


def shown(news: News, one: Any = None) -> Any:
    return status(one or training_run("gs://b/r"), news, NOW)


def conditions(found: Any) -> dict[str, str]:
    return {one["type"]: one["status"] for one in found["conditions"]}


def test_a_running_run_shows_the_stage_at_work_and_its_numbers() -> None:
    found = shown(News(decision(State.RUNNING, "pretrain"), FOUND))
    assert {key: found[key] for key in ("phase", "stage", "step", "steps", "loss", "mfu")} == {
        "phase": "Running", "stage": "pretrain", "step": 120, "steps": 1000, "loss": 2.5, "mfu": 0.31,
    }  # fmt: skip
    assert (found["attempts"], found["preemptions"], found["failures"], found["costDollars"]) == (4, 2, 0, 1.23)
    assert conditions(found) == {"Progressing": "True", "Succeeded": "False", "Failed": "False", "Reachable": "True"}


def test_what_a_stage_counts_in_other_units_is_shown_in_whole_ones() -> None:
    reading = {"stages": [stage("tokenizer", "running", attempt=1, attempts=1, step=1.7, steps=4.0)]}
    found = shown(News(decision(State.RUNNING, "tokenizer"), reading))
    assert [found["step"], found["steps"], found["stages"][0]["step"]] == [1, 4, 1]
    assert all(isinstance(found[key], int) for key in ("step", "steps")), "the schema takes no others"


@pytest.mark.parametrize(
    ("state", "phase", "true"),
    [
        (State.DONE, "Succeeded", ["Succeeded", "Reachable"]),
        (State.FAILED, "Failed", ["Failed", "Reachable"]),
        (State.OVER_BUDGET, "OverBudget", ["Failed", "Reachable"]),
        (State.SUSPENDED, "Suspended", ["Reachable"]),
        (State.CANCELLED, "Cancelled", ["Reachable"]),
        (State.PREEMPTED, "Preempted", ["Progressing", "Reachable"]),
        (State.WAITING, "Waiting", ["Progressing", "Reachable"]),
    ],
)
def test_phase_and_conditions_say_the_same(state: State, phase: str, true: list[str]) -> None:
    found = shown(News(decision(state, "because"), FOUND))
    assert found["phase"] == phase
    assert [kind for kind, value in conditions(found).items() if value == "True"] == true


def test_a_condition_that_stays_keeps_the_time_of_its_transition() -> None:
    one = training_run("gs://b/r")
    one["status"] = status(one, News(decision(State.RUNNING), FOUND), NOW - 500)
    later = shown(News(decision(State.DONE), FOUND), one)
    times = {each["type"]: each["lastTransitionTime"] for each in later["conditions"]}
    assert {kind for kind, time in times.items() if time == timestamp(NOW)} == {"Progressing", "Succeeded"}
    assert {kind for kind, time in times.items() if time == timestamp(NOW - 500)} == {"Failed", "Reachable"}


def test_what_pods_wait_for_is_the_message_and_the_reason_of_the_stage() -> None:
    found = shown(News(decision(State.STARTING, "pretrain"), FOUND, {"pretrain": "no node has the labels a=b"}))
    assert found["message"] == "pretrain: no node has the labels a=b"
    assert found["stages"][1]["reason"] == "no node has the labels a=b"


def test_a_spec_that_cannot_be_begins_nothing_and_says_so() -> None:
    found = shown(News(None, None, problem="no setting is called x", fatal=True))
    assert (found["phase"], found["message"]) == ("Failed", "no setting is called x")
    assert conditions(found)["Failed"] == "True"


def test_a_refused_change_is_told_while_the_run_goes_on() -> None:
    found = shown(News(decision(State.RUNNING), FOUND, problem="make sft stale"))
    assert (found["phase"], found["message"], conditions(found)["Failed"]) == ("Running", "make sft stale", "False")


def test_without_an_answer_from_the_bucket_the_numbers_of_before_stay() -> None:
    one = training_run("gs://b/r")
    one["status"] = status(one, News(decision(State.RUNNING), FOUND), NOW - 500)
    found = shown(News(None, None, problem="no answer", reachable="Unknown"), one)
    assert (found["phase"], found["step"], found["message"]) == ("Unreachable", 120, "no answer")
    assert conditions(found) == {
        "Progressing": "False", "Succeeded": "False", "Failed": "False", "Reachable": "Unknown",
    }  # fmt: skip


def test_a_deleted_run_is_releasing_until_it_is_gone() -> None:
    one = training_run("gs://b/r")
    one["metadata"]["deletionTimestamp"] = timestamp(NOW)
    assert shown(replace(News(decision(State.CANCELLED), FOUND)), one)["phase"] == "Releasing"
