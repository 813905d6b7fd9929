"""A TrainingRun's spec as settings and wishes, and a decision as its status. Pure.

spec.preset, spec.settings and the fields beside them   ->  the overrides that `nanocode run --set` would take
spec.suspend, spec.cancel, deletion                     ->  what the user wants
decision, what the run directory says, what is waited for  ->  status
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from deploy.controller.decision import RESTS, Decision, State
from nanocode.config.refusals import requirement
from nanocode.run.exits import ConfigurationError
from nanocode.run.intent import Intent, Want

Object = dict[str, Any]

FINALIZER = "nanocode.dev/slices"
POOL = "pool"
"""What `dollarsPerSliceHour` calls a slice of a pool that somebody else manages."""
CLUSTER_DEFAULTS: Mapping[str, JsonValue] = {
    "controller.attempts_at_once": 3,  # stages have machines of their own here; slices have a limit of their own
}
PHASES = {
    State.WAITING: "Waiting",
    State.PROVISIONING: "Provisioning",
    State.STARTING: "Starting",
    State.RUNNING: "Running",
    State.PREEMPTED: "Preempted",
    State.FAILED: "Failed",
    State.DONE: "Succeeded",
    State.STALE: "Waiting",
    State.SUSPENDED: "Suspended",
    State.CANCELLED: "Cancelled",
    State.OVER_BUDGET: "OverBudget",
}
Reachable = Literal["True", "False", "Unknown"]
"""Whether the place where the run lives answers: it does, it refuses us (or is not there), it gives no answer."""
LONGEST_MESSAGE = 1000
DIGITS = 4
"""Of loss and MFU: `kubectl get` shows a number as it is written."""
AT_WORK = ("running", "starting", "provisioning", "preempted", "failed")
"""States of a stage that make it the one to show, the first that there is."""


class Spec(BaseModel):
    """`spec`, as the custom resource's schema has let it through."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    preset: str
    run_directory: str = Field(alias="runDirectory")
    settings: dict[str, JsonValue] = {}
    accept_stale: bool = Field(default=False, alias="acceptStale")
    accelerator: Literal["tpu", "nvidia", "none"] = "tpu"
    provisioner: str = "existing"
    zones: tuple[str, ...] = ()
    budget_dollars: float | None = Field(default=None, alias="budgetDollars")
    dollars_per_slice_hour: dict[str, float] = Field(default={}, alias="dollarsPerSliceHour")
    image: str
    templates: str
    suspend: bool = False
    cancel: bool = False
    retry: dict[str, int] = {}

    @field_validator("run_directory")
    @classmethod
    def _stays_where_it_is(cls, url: str) -> str:
        if {".", ".."} & set(url.split("/")):
            raise ValueError(f"has parts that are . or .. ({url}): uninstall the release, and choose another runPath")
        return url


def spec_of(training_run: Object) -> Spec:
    """`null` counts as left out; `ConfigurationError` for one that cannot be."""
    try:
        return Spec.model_validate({key: value for key, value in training_run["spec"].items() if value is not None})
    except ValidationError as error:
        one = error.errors()[0]
        path = ".".join(map(str, one["loc"]))
        raise ConfigurationError(f"spec.{path} cannot be: it {requirement(one)}") from error


def overrides(spec: Spec) -> list[str]:
    """Everything that differs from the preset, as `--set` takes it; `settings` have the last word."""
    values: dict[str, JsonValue] = {
        **CLUSTER_DEFAULTS,
        "budget.dollars": spec.budget_dollars,
        "controller.zones": list(spec.zones),
        "controller.dollars_per_slice_hour": dict(spec.dollars_per_slice_hour),
        **spec.settings,
    }
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def is_going(training_run: Object) -> bool:
    """Whether somebody has deleted it: then it is only waiting for us to release what it holds."""
    return "deletionTimestamp" in training_run["metadata"]


def wanted(training_run: Object, intent: Intent) -> Intent:
    """The run directory's intent with the TrainingRun's wishes over it: whoever wants less of the run is heard."""
    spec = training_run["spec"]
    wishes: set[Want] = {intent.want}
    if is_going(training_run) or spec.get("cancel"):
        wishes.add("cancel")
    if spec.get("suspend"):
        wishes.add("suspend")
    want: Want = "cancel" if "cancel" in wishes else "suspend" if "suspend" in wishes else "run"
    return intent.model_copy(update={"want": want, "stages": ()})


# -- status ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class News:
    """What a status is made of."""

    decision: Decision | None
    """None where nothing could be decided: then `problem` says why."""
    found: Mapping[str, Any] | None = None
    """What `nanocode status` says of the run directory; None while that is not known: the numbers of before stay."""
    waits: Mapping[str, str] | None = None
    """Stage -> what its pods wait for."""
    problem: str = ""
    """What is wrong with the spec, or with the place where the run lives."""
    fatal: bool = False
    """Nothing goes on before somebody corrects that."""
    reachable: Reachable = "True"
    image_digest: str | None = None
    settled: bool = True
    """Whether the spec was taken up: its wishes are written down, once, when it is."""


def status(training_run: Object, news: News, now: float) -> Object:
    """The whole status, conditions that did not change with the time of their last transition."""
    before = training_run.get("status") or {}
    generation = training_run["metadata"].get("generation", 1) if news.settled else before.get("observedGeneration", 0)
    stages = stages_of(news)
    shown = _shown(stages)
    message = _message(news, shown)
    return {
        **(_numbers(news, stages, shown) if news.found is not None else before),
        "observedGeneration": generation,
        "phase": _phase(training_run, news),
        "message": message or None,
        "imageDigest": news.image_digest,
        "conditions": _conditions(news, message, before.get("conditions") or (), generation, now),
    }


def _numbers(news: News, stages: list[Object], shown: Object) -> Object:
    return {
        "stage": shown.get("name"),
        **{key: shown.get(key) for key in ("step", "steps")},
        **{key: shown.get(key) and round(shown[key], DIGITS) for key in ("loss", "mfu")},
        **{key: sum(one[key] for one in stages) for key in ("attempts", "preemptions", "failures")},
        "costDollars": round(news.decision.spent_dollars, 2) if news.decision is not None else None,
        "forecastDollars": _cents((news.found or {}).get("forecast_dollars")),
        "stages": [{key: one.get(key) for key in ("name", "state", "attempt", "step", "reason")} for one in stages],
    }


def _cents(dollars: float | None) -> float | None:
    return None if dollars is None else round(dollars, 2)


def stages_of(news: News) -> list[Object]:
    """Every stage: numbers from the run directory, state and reason from the decision, which is newer."""
    stages = [dict(one) for one in (news.found or {}).get("stages", ())]
    for one in stages:
        decided = news.decision.stages.get(one["name"]) if news.decision is not None else None
        if decided is not None:
            one["state"], one["reason"] = decided.state.value, decided.reason or None
        for key in ("step", "steps"):  # stages that do not train count megabytes, or rows
            one[key] = one.get(key) and int(one[key])
        one["reason"] = (news.waits or {}).get(one["name"]) or one["reason"]
        one["reason"] = one["reason"] and one["reason"][:LONGEST_MESSAGE]
    return stages


def _shown(stages: list[Object]) -> Object:
    """The stage that a line about the run is about: what is at work, else the last that was."""
    for state in AT_WORK:
        for one in stages:
            if one["state"] == state:
                return one
    begun = [one for one in stages if one["attempts"]]
    return begun[-1] if begun else {}


def _message(news: News, shown: Object) -> str:
    parts = [news.problem]
    if news.decision is not None and not news.fatal:
        decision = news.decision
        held_up = shown.get("state") in ("preempted", "provisioning") and shown.get("reason")
        waits = [f"{stage}: {sentence}" for stage, sentence in (news.waits or {}).items()]
        parts += (
            [decision.reason] if decision.state in RESTS else waits or [f"{shown['name']}: {held_up}"] * bool(held_up)
        )
    return "; ".join(part for part in parts if part)[:LONGEST_MESSAGE]


def _phase(training_run: Object, news: News) -> str:
    if is_going(training_run):
        return "Releasing"
    if news.fatal:
        return "Failed"
    return PHASES[news.decision.state] if news.decision is not None else _without_a_decision(news)


def _without_a_decision(news: News) -> str:
    return "Waiting" if news.reachable == "True" else "Unreachable"


def _conditions(news: News, message: str, before: Any, generation: int, now: float) -> list[Object]:
    state = news.decision.state if news.decision is not None else None
    failed = news.fatal or state in (State.FAILED, State.OVER_BUDGET)
    progressing = not failed and state is not None and state not in RESTS
    reason = "Configuration" if news.fatal else PHASES[state] if state is not None else _without_a_decision(news)
    claims = {"Progressing": progressing, "Succeeded": not news.fatal and state is State.DONE, "Failed": failed}
    values = {**{kind: str(holds) for kind, holds in claims.items()}, "Reachable": news.reachable}
    known = {one["type"]: one for one in before}
    found = []
    for kind, value in values.items():
        old = known.get(kind, {})
        since = old.get("lastTransitionTime") if old.get("status") == value else None
        found.append(
            {
                "type": kind,
                "status": value,
                "reason": reason,
                "message": message,
                "observedGeneration": generation,
                "lastTransitionTime": since or timestamp(now),
            }
        )
    return found


def refused_since(training_run: Object) -> float | None:
    """Unix seconds since when the place where the run lives refuses us; None where it did not when last looked at."""
    for one in (training_run.get("status") or {}).get("conditions") or ():
        if (one["type"], one["status"]) == ("Reachable", "False"):
            return datetime.fromisoformat(one["lastTransitionTime"]).timestamp()
    return None


def timestamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def without_nulls(value: Any) -> Any:
    """What a merge patch leaves where it is stored: there, null means that a field goes."""
    if isinstance(value, dict):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value
