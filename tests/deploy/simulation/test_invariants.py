"""Each invariant of the simulator can break: for each, a bug that a controller might have, and what it is caught by."""

import re
from collections.abc import Callable
from dataclasses import replace
from types import UnionType
from typing import Any

import pytest

from deploy.controller import decide, policies, reconcile, slices, stages
from deploy.controller.actions import Action, Close, Kill, Leave, Release
from deploy.controller.decision import RESTS, Decision, StageState, State
from deploy.controller.observed import Process, Stage
from nanocode.run.attempts import Ending
from tests.deploy.simulation import store
from tests.deploy.simulation.machines import Machines
from tests.deploy.simulation.runner import run

Plant = Callable[[pytest.MonkeyPatch], None]
SCHEDULES = 1500
"""Within so many, a bug has to be caught; most are in the first ten."""


def instead(owner: Any, name: str, new: Any) -> Plant:
    """`new` in place of a function or property."""
    return lambda monkeypatch: monkeypatch.setattr(owner, name, new)


def around(owner: Any, name: str, wrap: Callable[..., Any]) -> Plant:
    """`wrap(real, *arguments)` in place of `real(*arguments)`."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *arguments: wrap(real, *arguments))

    return plant


def decided(change: Callable[[Decision], Decision]) -> Plant:
    return around(reconcile, "decide", lambda real, *arguments: change(real(*arguments)))


def without(kind: type[Action] | UnionType, when: Callable[[Decision, Action], bool] = lambda *_: True) -> Plant:
    """Some actions are forgotten."""
    return decided(
        lambda one: replace(one, actions=tuple(a for a in one.actions if not (isinstance(a, kind) and when(one, a))))
    )


def stopped(decision: Decision, action: Action) -> bool:
    return decision.state in (State.SUSPENDED, State.CANCELLED)


def all_of(*plants: Plant) -> Plant:
    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        for one in plants:
            one(monkeypatch)

    return plant


def counts_as(process: Process, ending: Ending) -> Plant:
    """What ended like this is taken for something else."""

    def wrap(real: Any, stage: Any, attempt: Any, *rest: Any) -> Any:
        found = real(stage, attempt, *rest)
        return (ending, "so it is said") if found and attempt.seen.process is process and not stage.done else found

    return around(stages, "ending", wrap)


def with_policy(owner: Any, name: str, place: int, change: Callable[[Any], dict[str, Any]]) -> Plant:
    """A function is given another policy than the user's."""

    def wrap(real: Any, *arguments: Any) -> Any:
        policy = arguments[place]
        changed = policy.model_copy(update=change(policy))
        return real(*arguments[:place], changed, *arguments[place + 1 :])

    return around(owner, name, wrap)


def claimed_by_all(real: Any, *arguments: Any) -> bool:
    real(*arguments)
    return True


def started_again(real: Any, self: Any, caller: Any, stage: str, attempt: int, slice: str | None) -> None:
    if (there := self.shown(stage, attempt)) is not None:
        there.forgotten = True
    real(self, caller, stage, attempt, slice)


def published_again(self: Any, stage: str, digest: str) -> bool:
    self.stages[stage].markers.append((self.clock.now, digest))
    return True


def settings_read_once(real: Any, self: Any, at: float) -> Any:
    words = self.words
    self.words = [replace(word, digests=words[0].digests) for word in words]
    try:
        return real(self, at)
    finally:
        self.words = words


def any_marker_counts(real: Any, stage: Stage, *rest: Any) -> StageState:
    return StageState(State.DONE) if stage.marked is not None else real(stage, *rest)


def half_a_budget(real: Any, seen: Any, policy: Any, budget: Any) -> str:
    half = None if budget.dollars is None else budget.dollars / 4
    return real(seen, policy, budget.model_copy(update={"dollars": half}))


def suspending_cancels(real: Any, *arguments: Any) -> Any:
    found = real(*arguments)
    return StageState(State.CANCELLED, found.reason) if found and found.state is State.SUSPENDED else found


def waiting_is_failure(real: Any, *arguments: Any) -> Any:
    state, reason = real(*arguments)
    return (State.FAILED, reason) if state is State.PREEMPTED else (state, reason)


def one_done_is_enough(real: Any, seen: Any, states: dict[str, StageState], stopped: Any) -> Any:
    done = any(one.state is State.DONE for one in states.values())
    return (State.DONE, "") if done else real(seen, states, stopped)


def rests_too_early(one: Decision) -> Decision:
    return replace(one, resting=one.state in RESTS)


PLANTS: dict[str, tuple[Plant, str]] = {
    # every stage done exactly once for each digest
    "an attempt begins beside another one": (
        all_of(instead(Stage, "lives", property(lambda self: False)), instead(decide, "state_of_live", lambda _: None)),
        "begins while an attempt before it lives",
    ),
    "a stage that is done begins again": (
        instead(Stage, "done", property(lambda self: False)),
        "begins though the stage is done",
    ),
    "a marker is made by whoever comes last": (
        all_of(instead(store.Store, "publish", published_again), instead(store.Store, "overtaken", lambda *_: False)),
        "is done twice with one digest",
    ),
    "an attempt with old settings goes on": (
        without(Leave, lambda _, action: action.reason == "settings or inputs have changed"),
        "overwrites the marker that counts",
    ),
    "settings are read once": (around(store.Store, "read", settings_read_once), "with settings that do not count"),
    "a stage does not wait for what it reads": (instead(stages, "missing", lambda *_: ""), "begins before"),
    "exit code 0 is taken for done": (counts_as(Process.EXITED, Ending.DONE), "counts as done without a marker"),
    # two attempts never write the same object
    "a claim is won by all": (around(store.LateJournal, "claim", claimed_by_all), "is started by one who did not"),
    "a start that is asked for twice starts two": (around(Machines, "start", started_again), "by two processes"),
    # attempts end as they ended
    "a live process counts as gone": (instead(policies, "GONE", tuple(Process)), "ended while its process lives"),
    "the progress is made up": (
        instead(stages, "Close", lambda *arguments: Close(*arguments[:-1], progress=arguments[-1] + 1000)),
        "no more than",
    ),
    "what never started is a failure": (counts_as(Process.ABSENT, Ending.FAILED), "never had a process"),
    "every exit is a failure": (counts_as(Process.EXITED, Ending.FAILED), "ended with .* and counts as"),
    "a lost host is a failure": (counts_as(Process.LOST, Ending.FAILED), "vanished with its host and counts as"),
    "the heartbeat is shorter than a checkpoint": (
        with_policy(stages, "overdue", 1, lambda policy: {"heartbeat_minutes": 0.2}),
        "was healthy and was stopped",
    ),
    # what is allowed, and what was given up
    "failures are tried for ever": (instead(stages, "exhausted", lambda *_: ""), "begins though the stage has failed"),
    "preemptions use up the tries": (
        instead(stages, "exhausted", lambda ends, policy: "too many" if len(ends) >= 2 else ""),
        "is given up without a cause",
    ),
    "a run that waits counts as failed": (
        all_of(around(decide, "_of_the_run", waiting_is_failure), decided(rests_too_early)),
        "the run has failed without a cause|is left",
    ),
    "the machines allowed are not counted": (instead(stages, "machines_free", lambda *_: 99), "begins beside"),
    "a slice is used twice": (instead(stages, "user_of", lambda *_: None), "where another attempt lives"),
    "a slice too many": (
        with_policy(slices, "_requests", 1, lambda policy: {"slices_at_once": policy.slices_at_once + 1}),
        "is asked for beside",
    ),
    # never a slice that nobody uses
    "an idle slice is kept": (instead(slices, "idle_seconds", lambda *_: 0.0), "nobody has used"),
    "a slice that does not come is waited for": (instead(slices, "hopeless", lambda *_: ""), "is still asked for"),
    "what another controller has just begun counts as a stray": (
        instead(reconcile, "STRANGER_SECONDS", -1.0),
        "is killed, and nobody had told it to leave",
    ),
    "strays are left alone": (without(Kill), "lives though its attempt has ended"),
    # the budget
    "stopping costs nothing": (instead(policies, "cost_of_stopping", lambda *_: 0.0), r"spent, .* allowed"),
    "the budget is not looked at": (instead(decide, "over_budget", lambda *_: ""), r"spent, .* allowed"),
    "the run stops at a quarter of the budget": (around(decide, "over_budget", half_a_budget), "stopped by the budget"),
    # what the user wants
    "the user is not heard": (instead(decide, "_stopped", lambda *_: None), "begins though the user wants to"),
    "what runs is not stopped": (
        without(Leave | Kill, stopped),
        "live though the run is stopped",
    ),
    "slices are kept while the run is stopped": (
        without(Release, stopped),
        "are held though the run is stopped",
    ),
    "suspended is told as cancelled": (around(decide, "_stopped", suspending_cancels), "the user wants suspend"),
    # it comes to an end, and says the truth
    "a hanging process is waited for": (instead(stages, "overdue", lambda *_: None), "does not come to rest"),
    "a run rests while something lives": (decided(rests_too_early), "is left"),
    "a run rests with an attempt left open": (
        all_of(decided(rests_too_early), without(Close)),
        "left open",
    ),
    "a stale marker counts": (around(decide, "state_at_rest", any_marker_counts), "and it says"),
    "one stage done is enough": (around(decide, "_of_the_run", one_done_is_enough), "the run is done|is left"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, said = PLANTS[name]
    plant(monkeypatch)
    first = 0
    while first < SCHEDULES:
        ((seed, text),) = run(first, SCHEDULES - first, stop_at_first=True).broken or [(SCHEDULES, "nothing is broken")]
        first = seed + 1
        if re.search(said, text):
            return
    raise AssertionError(f"not caught as {said!r}")
