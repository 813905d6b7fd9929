"""Pairs of a model's own attempts: chosen passes and keeps the SOUL, rejected does not, and both had the same task."""

from collections.abc import Sequence
from itertools import cycle

from nanocode.agent.conversation import Conversation, Step, User
from nanocode.agent.soul import read_soul
from nanocode.synth.on_policy import sampled_pairs, training_tasks
from nanocode.tasks.families import CYCLE, TRAINED, scenario
from nanocode.tasks.task import Check, Task

SOUL = read_soul(None)


class Says:
    """For each request, one answer after the other."""

    def __init__(self, **answers: Sequence[str]) -> None:
        self._answers = {request: cycle(texts) for request, texts in answers.items()}

    def __call__(self, conversations: Sequence[Conversation]) -> list[Step | None]:
        found: list[Step | None] = []
        for one in conversations:
            assert isinstance(one[0], User)
            found.append(Step(next(self._answers[one[0].text])))
        return found


def task(request: str) -> Task:
    return Task(id=request, prompt=request, check=Check(answer=("right",)))


def test_a_task_done_and_not_done_gives_one_pair() -> None:
    policy = Says(mixed=["wrong", "right", "wrong", "right"], good=["right"], bad=["wrong"])
    pairs, counts = sampled_pairs(policy, [task("good"), task("mixed"), task("bad")], 4, SOUL)
    assert pairs == [([User("mixed"), Step("right")], [User("mixed"), Step("wrong")])]
    assert counts == {"attempts": 12, "passed": 6, "tasks with a pair": 1}


def test_who_passes_and_breaks_the_soul_is_rejected() -> None:
    policy = Says(both=["Great question! right", "right"])
    pairs, _ = sampled_pairs(policy, [task("both")], 2, SOUL)
    assert pairs == [([User("both"), Step("right")], [User("both"), Step("Great question! right")])]


def test_no_pair_is_made_across_tasks() -> None:
    pairs, counts = sampled_pairs(Says(good=["right"], bad=["wrong"]), [task("good"), task("bad")], 3, SOUL)
    assert pairs == []
    assert counts["tasks with a pair"] == 0


def test_tasks_are_of_the_training_families_and_of_no_rollout_and_of_no_evaluation() -> None:
    tasks = training_tasks(3, 0, 40)
    assert [one.family for one in tasks] == [CYCLE[n % len(CYCLE)] for n in range(40)]
    assert tasks[7:20] == training_tasks(3, 7, 13)
    others = {
        looks(scenario(family, f"{stream}-3", number).task)
        for family in TRAINED
        for stream in ("train", "eval")
        for number in range(50)
    }
    assert not {looks(one) for one in tasks} & others


def looks(task: Task) -> tuple[str, str]:
    """What an agent sees of a task."""
    return task.prompt, str(task.files)
