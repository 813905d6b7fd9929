"""Policies for tests of tasks: an expert, and agents that make a planted mistake."""

from collections.abc import Callable, Sequence

from nanocode.agent.conversation import Conversation, Step, User
from nanocode.agent.soul import Soul, read_soul
from nanocode.agent.tools import Call
from nanocode.synth.expert import Expert
from nanocode.tasks.families import scenario
from nanocode.tasks.playing import Attempt, attempts
from nanocode.tasks.task import Scenario, Task

OURS = read_soul(None)


def call(name: str, **arguments: str) -> Step:
    return Step("", Call(name, arguments))


class Plays:
    """Takes these steps in every conversation, one after the other."""

    def __init__(self, *steps: Step) -> None:
        self._steps = steps

    def __call__(self, conversations: Sequence[Conversation]) -> list[Step | None]:
        return [self._steps[sum(isinstance(message, Step) for message in one)] for one in conversations]


class Experts:
    """Plays scenarios by their scripts, side by side."""

    def __init__(self, scenarios: Sequence[Scenario], soul: Soul = OURS) -> None:
        self._experts = {one.task.prompt: Expert(one.script, soul) for one in scenarios}
        assert len(self._experts) == len(scenarios), "two requests are equal: these experts would mix them up"

    def __call__(self, conversations: Sequence[Conversation]) -> list[Step | None]:
        found: list[Step | None] = []
        for one in conversations:
            assert isinstance(one[0], User)
            found += self._experts[one[0].text]([one])
        return found


def solved(one: Scenario, soul: Soul = OURS) -> Conversation:
    """How the expert does it, having really done it, and passed."""
    (attempt,) = attempts(Expert(one.script, soul), [one.task])
    assert attempt.verdict.passed, (one.task.id, attempt.verdict.reason)
    return attempt.messages


def solution(one: Scenario) -> list[Step]:
    """The expert's steps."""
    return [message for message in solved(one) if isinstance(message, Step)]


def attempted(task: Task, *steps: Step) -> Attempt:
    """The task as somebody plays it who takes these steps."""
    return attempts(Plays(*steps), [task])[0]


def instance(family: str, fits: Callable[[Scenario], bool] = lambda one: True) -> Scenario:
    """The first instance of a family that is as wanted."""
    return next(one for number in range(1000) if fits(one := scenario(family, "mistakes", number)))
