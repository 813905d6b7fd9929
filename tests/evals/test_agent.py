"""Agent tasks played for real: experts pass, idlers fail, and the numbers that come of it."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode.agent.conversation import Conversation, Step, User
from nanocode.agent.sandbox import Grade, best_grade
from nanocode.agent.soul import read_soul
from nanocode.agent.tools import Call
from nanocode.evals.agent import (
    BASELINES,
    SUITES,
    Rate,
    TaskResult,
    adherence,
    by_family,
    evaluate,
    macro_average,
    pass_at_k,
    suite,
)
from nanocode.synth.expert import Expert
from nanocode.tasks.families import FAMILIES, TRAINED, TRANSFER, scenario
from nanocode.tasks.task import Check, Task

SOUL = read_soul(None)
needs_sandbox = pytest.mark.skipif(best_grade() is Grade.NONE, reason="commands run only where something holds them")


class Experts:
    """Plays every task by its own script."""

    def __init__(self, instances: int) -> None:
        scenarios = [scenario(family, "test", n) for family in FAMILIES for n in range(instances)]
        self.tasks = [one.task for one in scenarios]
        self._experts = {one.task.prompt: Expert(one.script, SOUL) for one in scenarios}

    def __call__(self, conversations: Sequence[Conversation]) -> list[Step | None]:
        found: list[Step | None] = []
        for one in conversations:
            assert isinstance(one[0], User)
            found += self._experts[one[0].text]([one])
        return found


class Always:
    """Does the same in every conversation."""

    def __init__(self, step: Step | None) -> None:
        self._step = step

    def __call__(self, conversations: Sequence[Conversation]) -> list[Step | None]:
        return [self._step for _ in conversations]


@needs_sandbox
def test_experts_pass_every_family_and_keep_the_soul() -> None:
    experts = Experts(instances=2)
    results = evaluate(experts, experts.tasks, SOUL)
    assert [one.id for one in results] == [task.id for task in experts.tasks]
    assert [(one.id, one.reason) for one in results if not one.passed] == []
    assert all(all(one.kept.values()) for one in results)
    assert set(by_family(results)) == set(FAMILIES)


@needs_sandbox
def test_baselines_pass_next_to_nothing() -> None:
    tasks = suite("fresh", 3)
    for policy in BASELINES.values():
        assert sum(one.passed for one in evaluate(policy, tasks, SOUL)) <= len(tasks) // 10


@needs_sandbox
@pytest.mark.parametrize(
    ("command", "passes"),
    [
        ("true", True),
        ("false", False),
        ("test $(cat a) = 1", True),
        ("echo error: none found", True),
        pytest.param("sleep 9", False, marks=pytest.mark.slow),
    ],
)
def test_a_command_passes_by_its_exit_status_alone(command: str, passes: bool) -> None:
    task = Task(id="x", prompt="Do it.", files={"a": "1"}, check=Check(bash=command))
    (result,) = evaluate(Always(Step("Done.")), [task], SOUL)
    assert result.passed is passes


@needs_sandbox
def test_two_attempts_that_are_the_same_get_the_same_verdict() -> None:
    """Tracebacks name the folder, whose name is chance."""
    task = Task(id="x", prompt="Do it.", check=Check(python="import os\nopen(os.path.abspath('absent'))\n"))
    first, second = evaluate(Always(Step("Done.")), [task, task], SOUL)
    assert first == second
    assert first.reason.endswith("No such file or directory: 'absent'")


def test_bytes_that_are_no_text_can_be_kept() -> None:
    task = Task(id="x", prompt="Do it.")
    (result,) = evaluate(Always(Step("a\udcff")), [task], SOUL)
    assert TaskResult.model_validate_json(result.model_dump_json()).messages[-1] == {"assistant": "a\ufffd"}


def test_a_task_that_runs_out_fails_whatever_its_check_says() -> None:
    task = Task(id="x", prompt="Do it.", check=Check(unchanged=True))
    circles = Always(Step("", Call("Read", {"path": "a"})))
    full = Always(None)
    assert [evaluate(one, [task], SOUL)[0].reason for one in (circles, full)] == ["out of steps", "out of context"]


@pytest.mark.parametrize(
    ("passed", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (8, 10, 0.4902, 0.9433),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (0, 0, 0.0, 1.0),
    ],
)
def test_intervals_are_wilsons(passed: int, total: int, low: float, high: float) -> None:
    """Values of R's `binom::binom.wilson`."""
    assert Rate(passed=passed, total=total).interval == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_draws_in_which_one_passes(k: int) -> None:
    attempts = [True, True, False, False, False]
    draws = list(combinations(attempts, k))
    assert pass_at_k(5, 2, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_needs_k_attempts() -> None:
    with pytest.raises(ValueError, match="make at least 6"):
        pass_at_k(5, 2, 6)


@given(passed=st.integers(0, 60), more=st.integers(0, 60))
def test_an_interval_holds_its_share_mirrors_and_narrows(passed: int, more: int) -> None:
    rate = Rate(passed=passed, total=passed + more)
    low, high = rate.interval
    assert 0 <= low <= high <= 1
    assert low - 1e-9 <= rate.share <= high + 1e-9  # rounding takes a last digit off 1
    assert Rate(passed=more, total=passed + more).interval == pytest.approx((1 - high, 1 - low))
    if rate.total:
        longer = Rate(passed=2 * passed, total=2 * rate.total).interval
        assert longer[1] - longer[0] < high - low


@pytest.mark.parametrize("k", range(1, 7))
@pytest.mark.parametrize("passed", range(7))
def test_pass_at_k_is_what_counting_all_draws_gives(passed: int, k: int) -> None:
    attempts = [True] * passed + [False] * (6 - passed)
    draws = list(combinations(attempts, k))
    assert pass_at_k(6, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_the_macro_average_weighs_families_alike_whatever_their_size() -> None:
    mean, (low, high) = macro_average({"small": Rate(passed=1, total=1), "large": Rate(passed=0, total=99)})
    assert mean == 0.5
    assert low < mean < high
    assert macro_average({}) == (0.0, (0.0, 1.0))


@pytest.mark.parametrize(
    ("chances", "instances"),
    [([0.9] * 10, 50), (np.linspace(0.7, 1, 10), 50), ([0.98] * 10, 50), ([0.5] * 10, 10), ([0.9] * 2, 50)],
    ids=["alike", "unlike", "nearly perfect", "few instances", "two families"],
)
def test_the_macro_interval_holds_the_truth_as_often_as_it_says(chances: Sequence[float], instances: int) -> None:
    """By simulation: 1,000 evaluations, of which 95% should do; 93% leaves room for chance."""
    drawn = np.random.default_rng(0).binomial(instances, chances, (1000, len(chances)))
    held = 0
    for row in drawn:
        _, (low, high) = macro_average({str(n): Rate(passed=int(k), total=instances) for n, k in enumerate(row)})
        held += low <= np.mean(chances) <= high
    assert held >= 930


def test_a_macro_average_without_a_failure_does_not_claim_to_be_certain() -> None:
    mean, (low, high) = macro_average({name: Rate(passed=50, total=50) for name in TRAINED})
    assert mean == high == 1.0
    assert 0.95 < low < 1.0


def result(family: str, passed: bool, **kept: bool) -> TaskResult:
    return TaskResult(id="x", family=family, passed=passed, steps=1, calls=0, failed_calls=0, kept=kept, messages=[])


def test_rates_are_counted_by_family_and_by_check() -> None:
    results = [result("b", True, reports=True), result("a", False, reports=False), result("b", False, quiet=True)]
    assert by_family(results) == {"b": Rate(passed=1, total=2), "a": Rate(passed=0, total=1)}
    assert list(by_family(results)) == ["b", "a"]
    assert adherence(results) == {"quiet": Rate(passed=1, total=1), "reports": Rate(passed=1, total=2)}


def test_calls_and_their_errors_are_counted() -> None:
    class Reads:
        def __call__(self, conversations: Sequence[Conversation]) -> list[Step | None]:
            taken = [sum(isinstance(message, Step) for message in one) for one in conversations]
            paths = {0: "a", 1: "none", 2: "../a"}
            return [Step("", Call("Read", {"path": paths[n]})) if n in paths else Step("Done.") for n in taken]

    (found,) = evaluate(Reads(), [Task(id="x", prompt="Read.", files={"a": "1"})], SOUL)
    assert (found.steps, found.calls, found.failed_calls, found.passed) == (4, 3, 2, True)


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_has_so_many_instances_of_each_family_and_none_of_training(name: str) -> None:
    tasks = suite(name, 5)
    families = TRANSFER if name == "transfer" else TRAINED
    assert [task.family for task in tasks] == [family for family in families for _ in range(5)]
    assert tasks == suite(name, 5) != suite(name, 5, seed=1)
    assert suite(name, 6)[:5] == tasks[:5]
    trained = {(t.prompt, str(t.files)) for f in families for n in range(50) if (t := scenario(f, "train-0", n).task)}
    assert not trained & {(task.prompt, str(task.files)) for task in tasks}
