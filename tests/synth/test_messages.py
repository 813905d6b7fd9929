"""Conversations as OpenAI's messages and back."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanocode.agent.conversation import Message, Result, Step, User
from nanocode.agent.messages import from_messages, to_messages
from nanocode.agent.tools import TOOLS, Call, checked

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LINE = st.from_regex(r"\A[0-9]{1,6}\Z")


@st.composite
def calls(draw: st.DrawFn) -> Call:
    tool = draw(st.sampled_from(list(TOOLS.values())))
    given = [one for one in tool.parameters if one.required or draw(st.booleans())]
    return checked(tool.name, {one.name: draw(LINE if one.kind == "line" else TEXT) for one in given})


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    found: list[Message] = []
    for _ in range(draw(st.integers(1, 3))):
        found.append(User(draw(TEXT)))
        for call in draw(st.lists(calls(), max_size=3)):
            found += [Step(draw(TEXT), call), Result(draw(TEXT))]
        found.append(Step(draw(TEXT)))
    return found[: draw(st.integers(1, len(found)))]


@settings(deadline=None, max_examples=100)
@given(conversations())
def test_messages_say_exactly_what_the_conversation_said(conversation: list[Message]) -> None:
    assert from_messages(to_messages(conversation)) == conversation


def said(role: str, content: Any = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def called(*ids: str | None) -> dict[str, Any]:
    calls = [
        {"id": id, "function": {"name": "Bash", "arguments": {"command": f"echo {n}"}}} for n, id in enumerate(ids)
    ]
    return said("assistant", "Two.", tool_calls=calls)


def echo(number: int) -> Call:
    return Call("Bash", {"command": f"echo {number}"})


READ: dict[str, tuple[list[dict[str, Any]], list[Message]]] = {
    "a system message goes before the request": (
        [said("system", "Be brief."), said("user"), said("assistant")],
        [User("Be brief.\n\nx"), Step("x")],
    ),
    "but not when it explains tools": (
        [
            said("system", "Tools: ..."),
            said("user"),
            called("a"),
            said("tool", "0", tool_call_id="a"),
            said("assistant"),
        ],
        [User("x"), Step("Two.", echo(0)), Result("0"), Step("x")],
    ),
    "calls at once become one after the other": (
        [said("user"), called("a", "b"), said("tool", "0", tool_call_id="a"), said("tool", "1", tool_call_id="b")],
        [User("x"), Step("Two.", echo(0)), Result("0"), Step("", echo(1)), Result("1")],
    ),
    "in the order of their results": (
        [said("user"), called("a", "b"), said("tool", "1", tool_call_id="b"), said("tool", "0", tool_call_id="a")],
        [User("x"), Step("Two.", echo(1)), Result("1"), Step("", echo(0)), Result("0")],
    ),
    "results without ids answer in order": (
        [said("user"), called(None, None), said("tool", "0"), said("tool", "1")],
        [User("x"), Step("Two.", echo(0)), Result("0"), Step("", echo(1)), Result("1")],
    ),
}


@pytest.mark.parametrize(("messages", "conversation"), READ.values(), ids=READ)
def test_reads(messages: list[dict[str, Any]], conversation: list[Message]) -> None:
    assert from_messages(messages) == conversation


REFUSED: dict[str, tuple[list[Any], str]] = {
    "two requests in a row": ([said("user"), said("user")], "message 1 is a User where a Step should be"),
    "an answer first": ([said("assistant")], "message 0 is a Step where a User should be"),
    "a result without a call": ([said("user"), said("tool")], "answers no call"),
    "a result of another call": ([said("user"), called("a", "b"), said("tool", tool_call_id="z")], "answers no call"),
    "a call without a result": ([said("user"), called("a"), said("user")], "a tool call has no result"),
    "two calls of one id": ([said("user"), called("a", "a")], "share an id"),
    "an unknown role": ([said("narrator")], "the role 'narrator'"),
    "no role": ([{"content": "x"}], "message 0 has no role"),
    "no object": (["x"], "message 0 has no role"),
    "content of another type": ([said("user", 7)], "message 0: content: has to be text in quotes"),
    "half a surrogate pair": ([said("user", "\ud800")], "no UTF-8"),
}


@pytest.mark.parametrize(("messages", "words"), REFUSED.values(), ids=REFUSED)
def test_refuses(messages: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_messages(messages)
