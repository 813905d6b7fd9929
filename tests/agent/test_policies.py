"""The engine as a policy: who has room is decoded as one batch, and what it writes is a step."""

from collections.abc import Sequence
from typing import Any

import pytest

from nanocode.agent.conversation import Result, Step, User, render, step_tokens
from nanocode.agent.policies import LEAST_ROOM, EnginePolicy
from nanocode.agent.tools import Call
from nanocode.generate.engine import Generated, Request, Sampling
from nanocode.text.tokenizer import Tokenizer

LOOK = Step("Looking.", Call("Read", {"path": "a.py"}))


class Writes:
    """An engine that writes these tokens for whoever asks."""

    def __init__(self, tokens: Sequence[int], context: int, stopped: bool = True) -> None:
        self.context, self.asked = context, list[Request]()
        self._tokens, self._stopped = tokens, stopped

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Any]:
        self.asked += requests
        return [Generated(list(self._tokens), self._stopped, prefilled=0) for _ in requests]


@pytest.fixture
def tokens(tokenizer: Tokenizer) -> list[int]:
    return step_tokens(LOOK, tokenizer)


def test_each_conversation_is_asked_for_as_it_is_rendered(tokenizer: Tokenizer, tokens: list[int]) -> None:
    engine = Writes(tokens, context=500)
    said = [[User("a")], [User("b"), LOOK, Result("x = 1")]]
    policy = EnginePolicy(engine, tokenizer, seed=7, max_new=20)  # type: ignore[arg-type]
    assert policy(said) == [LOOK, LOOK]
    assert [list(one.tokens) for one in engine.asked] == [render(one, tokenizer).tokens for one in said]
    assert [one.max_new for one in engine.asked] == [20, 20]
    assert len({one.seed for one in engine.asked}) == 2
    assert policy.generated_tokens == 2 * len(tokens)


def test_who_has_no_room_left_is_not_asked_for_and_the_others_are(tokenizer: Tokenizer, tokens: list[int]) -> None:
    said = [[User("a")], [User("long " * 50)], [User("b")]]
    lengths = [len(render(one, tokenizer).tokens) for one in said]
    engine = Writes(tokens, context=lengths[1] + LEAST_ROOM - 1)
    policy = EnginePolicy(engine, tokenizer)  # type: ignore[arg-type]
    assert policy(said) == [LOOK, None, LOOK]
    assert all(len(one.tokens) + one.max_new <= engine.context for one in engine.asked)
    engine.context += 1
    assert policy(said[1:2]) == [LOOK]


def test_who_did_not_come_to_an_end_has_no_step(tokenizer: Tokenizer, tokens: list[int]) -> None:
    engine = Writes(tokens[:-1], context=500, stopped=False)
    assert EnginePolicy(engine, tokenizer)([[User("a")]]) == [None]  # type: ignore[arg-type]
