"""Agent tasks played for real: experts pass, idlers fail, and the numbers that come of it."""

from collections.abc import Sequence
from itertools import combinations

import pytest

from nanocode.agent.conversation import Conversation, Step, User
from nanocode.agent.sandbox import Grade, best_grade
from nanocode.agent.soul import read_soul
from nanocode.agent.tools import Call
from nanocode.evals.agent import BASELINES, Rate, TaskResult, by_family, evaluate, pass_at_k, suite
from nanocode.synth.expert import Expert
from nanocode.tasks.families import FAMILIES, scenario
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
    [(0, 10, 0.0, 0.2775), (8, 10, 0.4902, 0.9433), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (0, 0, 0.0, 1.0)],
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
