"""Teacher-driven synthesis over a real endpoint: play, verify, hold against the SOUL, revise or drop."""

import json
import random
from typing import Any

import pytest

from nanocode.agent.conversation import Result, Step, User
from nanocode.agent.endpoint import EndpointMisconfigured, EndpointPolicy, EndpointUnavailable
from nanocode.agent.soul import parse_soul
from nanocode.agent.spending import SpendingCapReached
from nanocode.agent.tools import REJECTED, Call
from nanocode.config.settings import Endpoint
from nanocode.synth.teacher import Attempted, Critic, attempt
from nanocode.tasks.task import Check, Task
from tests.synth.server import KEY, Answer, Server, calling, completion, failing, serving

SOUL = parse_soul(
    "Be brief.\n1. Look first. [check: look-first]\n2. No praise. [check: no-flattery]\n3. Be kind to cats.", "SOUL.md"
)
TASK = Task(
    id="t/1",
    prompt="Change one to two in a.txt.",
    files={"a.txt": "one\n"},
    check=Check(files={"a.txt": "two\n"}, answer=(r"secret-answer|a\.txt",)),
)


READ = calling("Read", '{"path": "a.txt"}')
EDIT = calling("Edit", '{"path": "a.txt", "old": "one", "new": "two"}')
GOOD = [READ, EDIT, completion("Changed a.txt.")]
KEPT = completion('{"violations": []}')
ACCEPTED = [
    User(TASK.prompt),
    Step("", Call("Read", {"path": "a.txt"})),
    Result("    1→one"),
    Step("", Call("Edit", {"path": "a.txt", "old": "one", "new": "two"})),
    Result("    1→two"),
    Step("Changed a.txt."),
]


class Played:
    def __init__(self, attempted: Attempted, server: Server) -> None:
        self.accepted, self.rejected, self.reason = attempted.accepted, attempted.rejected, attempted.reason
        self.of_critic = [one for one in server.requests if "tools" not in one]
        self.of_teacher = [one for one in server.requests if "tools" in one]
        requests = [one["messages"][1]["content"] for one in self.of_teacher]
        self.remarks = [text.removeprefix(TASK.prompt).strip() for text in dict.fromkeys(requests)]


def play(answers: list[Answer], critiques: list[Answer] | None = None, task: Task = TASK, **settings: Any) -> Played:
    """Teacher and critic ask the same server; they get the next answer of their own list."""
    teaching, judging = list(answers), list(critiques or [])

    def script(request: dict[str, Any]) -> Answer:
        mine = teaching if "tools" in request else judging
        return mine.pop(0) if len(mine) > 1 else mine[0]

    with serving(script) as server:
        endpoint = Endpoint(url=server.url, model="teacher", **{"tries": 2, **settings})
        with EndpointPolicy(endpoint, SOUL, None, lambda _: None, random.Random(1), KEY) as policy:
            critic = Critic(policy, SOUL) if critiques else None
            return Played(attempt(task, policy, SOUL, critic), server)


def test_a_good_first_attempt_is_accepted() -> None:
    one = play(GOOD, [KEPT])
    assert (one.accepted, one.rejected, one.reason) == (ACCEPTED, None, "")
    (asked,) = one.of_critic
    assert "3. Be kind to cats." in asked["messages"][0]["content"]
    assert "Look first" not in asked["messages"][0]["content"]


FALLEN: dict[str, tuple[list[Answer], list[Answer], str]] = {
    "an attempt that breaks a checked principle": ([EDIT, completion("Changed a.txt.")], [KEPT], 'principle 1, "Look first."'),
    "an attempt that flatters": ([*GOOD[:2], completion("Great question! Changed a.txt.")], [KEPT], 'principle 2, "No praise."'),
    "an attempt that does not do it": ([READ, completion("Done in a.txt.")], [KEPT], "did not do what was asked"),
    "an attempt without end": ([READ] * 16, [KEPT], "out of steps"),
    "an attempt that the critic rejects": (
        [*GOOD[:2], completion("a.txt is done.")],
        [completion('```json\n{"violations": [{"principle": 3, "why": "The cat\\n was\\u0007 ignored."}]}\n```'), KEPT],
        'principle 3, "Be kind to cats.": The cat was',
    ),
}  # fmt: skip


@pytest.mark.parametrize(("answers", "critiques", "remark"), FALLEN.values(), ids=FALLEN)
def test_makes_a_pair_with_the_one_that_is_accepted(
    answers: list[Answer], critiques: list[Answer], remark: str
) -> None:
    one = play([*answers, *GOOD], critiques)
    assert one.accepted == ACCEPTED
    assert one.rejected is not None
    assert one.rejected[0] == ACCEPTED[0]
    assert one.rejected != ACCEPTED
    assert one.remarks[0] == ""
    assert remark in one.remarks[1]


def test_the_remark_does_not_give_the_check_away() -> None:
    one = play([READ, completion("Done."), *GOOD])
    assert one.accepted == ACCEPTED
    assert "secret-answer" not in json.dumps(one.of_teacher)


def test_what_speaks_of_the_remark_is_not_accepted() -> None:
    one = play(
        [READ, completion("Done."), *GOOD[:2], completion("Unlike the earlier attempt, a.txt is changed."), *GOOD]
    )
    assert one.accepted == ACCEPTED
    assert len(one.remarks) == 3


def test_is_dropped_after_the_last_revision() -> None:
    one = play([completion("I did it in a.txt.")])
    assert one.accepted is None
    assert one.rejected == [User(TASK.prompt), Step("I did it in a.txt.")]
    assert one.reason == "check failed: a.txt is not as it should be"
    assert len(one.of_teacher) == 3


def test_an_answer_that_is_no_step_costs_an_attempt_and_is_no_example() -> None:
    one = play([completion(""), completion(""), completion(""), *GOOD])
    assert (one.accepted, one.rejected) == (ACCEPTED, None)
    assert "neither a text nor a valid tool call" in one.remarks[1]
    refused = play([completion(None, refusal="No.")])
    assert (refused.accepted, refused.rejected) == (None, None)
    assert "the model refuses: No." in refused.reason


def test_a_user_who_rejects_is_played() -> None:
    task = TASK.model_copy(update={"rejects": ("Edit",), "check": Check(unchanged=True, called="Edit")})
    one = play(GOOD, task=task)
    assert one.accepted is not None
    assert one.accepted[4] == Result(REJECTED)


CRITIQUES: dict[str, str] = {
    "words": "All is well.",
    "cut-off JSON": '{"violations": [',
    "another shape": '["fine"]',
    "a field of its own": '{"violations": [], "verdict": "good"}',
    "a principle that it was not asked about": '{"violations": [{"principle": 1, "why": "x"}]}',
    "a principle that is no number": '{"violations": [{"principle": "cats", "why": "x"}]}',
    "a violation without a reason": '{"violations": [{"principle": 3}]}',
    "nothing": "",
}


@pytest.mark.parametrize("text", CRITIQUES.values(), ids=CRITIQUES)
def test_a_critique_that_does_not_fit_is_asked_for_again(text: str) -> None:
    assert play(GOOD, [completion(text), KEPT]).accepted == ACCEPTED
    never = play(GOOD, [completion(text)])
    assert (never.accepted, never.rejected) == (None, None)
    assert never.reason.startswith("no critique: teacher at http")
    assert len(never.of_critic) == 3


def test_a_critic_is_not_asked_when_a_program_checks_every_principle() -> None:
    soul = parse_soul("1. Look first. [check: look-first]", "SOUL.md")
    with serving([KEPT]) as server:
        with EndpointPolicy(Endpoint(url=server.url, model="m"), soul, key=KEY) as policy:
            assert Critic(policy, soul)(ACCEPTED) == []
        assert server.requests == []


RAISING: dict[str, tuple[Answer, type[Exception], dict[str, Any]]] = {
    "an endpoint out of reach": (failing(503), EndpointUnavailable, {}),
    "a wrong key": (failing(401), EndpointMisconfigured, {}),
    "a cap that is reached": (READ, SpendingCapReached, {"prompt_dollars": 1.0, "cap_dollars": 0.001}),
}


@pytest.mark.parametrize(("answer", "kind", "settings"), RAISING.values(), ids=RAISING)
def test_raises(answer: Answer, kind: type[Exception], settings: dict[str, Any]) -> None:
    with pytest.raises(kind):
        play([answer], **settings)
