"""Playing tasks: several side by side end as one by one, and each in a workspace of its own."""

from pathlib import Path

import pytest

from nanocode.agent.conversation import Result, Step, User
from nanocode.agent.episode import Limits
from nanocode.agent.sandbox import Grade, best_grade
from nanocode.agent.tools import REJECTED
from nanocode.tasks.families import FAMILIES, scenario
from nanocode.tasks.playing import YES, agreeable, agrees, attempts
from nanocode.tasks.task import Check, Task
from tests.tasks.players import Experts, Plays, attempted, call

needs_sandbox = pytest.mark.skipif(best_grade() is Grade.NONE, reason="commands run only where something holds them")


@needs_sandbox
def test_side_by_side_ends_as_one_by_one() -> None:
    scenarios = [scenario(family, "side", 0) for family in FAMILIES]
    together = attempts(Experts(scenarios), [one.task for one in scenarios])
    apart = [attempts(Experts([one]), [one.task])[0] for one in scenarios]
    assert together == apart
    assert all(one.verdict.passed for one in together)


def test_each_attempt_has_a_workspace_of_its_own_and_leaves_none_behind() -> None:
    before = {path for path in Path("/tmp").glob("nanocode-*") if path.name.count("-") == 1}
    task = Task(id="x", prompt="Write.", check=Check(files={"a.txt": "one"}))
    found = attempts(Plays(call("Edit", path="a.txt", old="", new="one"), Step("Done.")), [task, task])
    assert [one.verdict.passed for one in found] == [True, True]
    assert {path for path in Path("/tmp").glob("nanocode-*") if path.name.count("-") == 1} <= before


def test_a_rejected_call_is_answered_and_not_executed() -> None:
    task = Task(id="x", prompt="Write.", check=Check(unchanged=True, called="Edit"), rejects=("Edit",))
    attempt = attempted(task, call("Edit", path="a.txt", old="", new="one"), Step("Left."))
    assert attempt.messages[2] == Result(REJECTED)
    assert attempt.verdict.passed


def test_the_user_agrees_when_asked_and_says_nothing_else() -> None:
    assert agreeable([User("Do it."), Step("Done.")]) is None
    answers = {agreeable([User(f"Do {n}."), Step("May I change a.py?")]) for n in range(100)}
    assert answers == set(YES)
    assert all(agrees(str(answer)) for answer in answers)
    assert not agrees("No.")


def test_whoever_asks_for_ever_is_out_of_turns() -> None:
    task = Task(id="x", prompt="Write.", check=Check(answer=("done",)))
    attempt = attempts(Plays(*[Step("May I?")] * 9), [task], Limits(turns=3))[0]
    assert [type(message) for message in attempt.messages] == [User, Step] * 3
    assert not attempt.verdict.passed
