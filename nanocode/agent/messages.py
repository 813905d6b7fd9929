"""Conversations as the messages of a chat completion (OpenAI's form), and back.

`from_messages(to_messages(c)) == c` for every conversation. What comes from outside (an endpoint, a published data
set) is untrusted: it is validated here, and refused with `ValueError` in one line.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError, field_validator

from nanocode.agent.conversation import Conversation, Message, Result, Step, User
from nanocode.agent.tools import TOOLS, Call, checked
from nanocode.config.refusals import requirement

REASON_CHARACTERS = 200
_OBJECT = TypeAdapter(dict[str, Any])
_LINES = frozenset(one.name for tool in TOOLS.values() for one in tool.parameters if one.kind == "line")


class WireFunction(BaseModel):
    """Which tool, with which arguments: JSON in a text, or, in some data sets, an object."""

    name: str
    arguments: str | dict[str, Any]


class WireCall(BaseModel):
    """One entry of `tool_calls`."""

    function: WireFunction
    id: str | None = None


class WireMessage(BaseModel):
    """One message, with what we use of it."""

    role: str = "assistant"
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[WireCall] | None = None
    tool_call_id: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _parts_are_joined(cls, value: Any) -> Any:
        """Text in parts (`[{"type": "text", "text": ...}]`) as one text."""
        if isinstance(value, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
            return "".join(str(part.get("text") or "") for part in value)
        return value


def to_messages(conversation: Conversation, system: str | None = None) -> list[dict[str, Any]]:
    """The conversation after an optional system message. Ids of calls follow from their place: 9 characters, because
    Mistral's endpoints take no other length."""
    found: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    called = "call00000"
    for place, message in enumerate(conversation):
        match message:
            case User(text):
                found.append({"role": "user", "content": text})
            case Step(text, None):
                found.append({"role": "assistant", "content": text})
            case Step(text, Call() as call):
                called = f"call{place:05}"
                function = {"name": call.tool, "arguments": json.dumps(_typed(call), ensure_ascii=False)}
                entry = {"id": called, "type": "function", "function": function}
                found.append({"role": "assistant", "content": text or None, "tool_calls": [entry]})
            case Result(text):
                found.append({"role": "tool", "tool_call_id": called, "content": text})
    return found


def _typed(call: Call) -> dict[str, str | int]:
    """Line numbers as the schema promises them: as integers, where that loses nothing (`007` stays a text)."""
    return {
        name: int(value) if name in _LINES and str(int(value)) == value else value
        for name, value in call.arguments.items()
    }


def step_of(message: WireMessage) -> Step:
    """What an assistant's message says; of several calls the first. `ValueError` in words a model can act on."""
    call = call_of(message.tool_calls[0]) if message.tool_calls else None
    return Step(plain(message.content or ""), call)


def call_of(wire: WireCall) -> Call:
    """The call, its arguments checked; an argument that is null was not given."""
    function = wire.function
    given = function.arguments
    if isinstance(given, str):
        try:
            given = _OBJECT.validate_json(given or "{}")
        except ValidationError as error:
            raise ValueError(
                f"the arguments of {function.name[:40]!r} are not a JSON object ({first(error)})"
            ) from None
    call = checked(function.name[:40], given)
    for value in call.arguments.values():
        plain(value)
    return call


def plain(text: str) -> str:
    """The text, if it can be written: JSON can hold what UTF-8 cannot."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("the text has half a surrogate pair, which is no UTF-8") from None
    return text


def first(error: ValidationError) -> str:
    """The first thing that is wrong, in one line without the input itself."""
    one = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in one["loc"])
    text = f"{place}: {requirement(one)}" if place else requirement(one)
    return " ".join(text.split())[:REASON_CHARACTERS]


def from_messages(messages: Sequence[Any]) -> list[Message]:
    """The conversation that these messages say.

    Calls that were made at once become one after the other, each with its own result. A system message goes before
    the first request, unless tools are called: then it explains what a model trained on our tools knows. `ValueError`
    when the roles do not alternate as a conversation's do.
    """
    wires = [_validated(place, one) for place, one in enumerate(messages)]
    system = "\n\n".join(one.content for one in wires if one.role in ("system", "developer") and one.content)
    has_tools = any(one.tool_calls for one in wires)
    found: list[Message] = []
    rest = iter([one for one in wires if one.role not in ("system", "developer")])
    waiting: list[tuple[str, WireCall]] = []
    for wire in rest:
        if waiting and wire.role != "tool":
            raise ValueError("a tool call has no result")
        match wire.role:
            case "user" | "human":
                text = plain(wire.content or "")
                found.append(User(f"{system}\n\n{text}" if system and not has_tools and not found else text))
            case "assistant" | "gpt":
                if not wire.tool_calls:
                    found.append(step_of(wire))
                    continue
                waiting = [(plain(wire.content or ""), wire.tool_calls[0])]
                waiting += [("", call) for call in wire.tool_calls[1:]]
                ids = [call.id for _, call in waiting if call.id is not None]
                if len(set(ids)) != len(ids):
                    raise ValueError("several calls at once share an id")
            case "tool":
                found += _answered(waiting, wire)
            case other:
                raise ValueError(f"a message has the role {other[:40]!r}")
    # An episode may be looked at right after a call.
    found += [Step(text, call_of(call)) for text, call in waiting[:1]]
    check_order(found)
    return found


def _validated(place: int, value: Any) -> WireMessage:
    if not isinstance(value, Mapping) or "role" not in value:
        raise ValueError(f"message {place} has no role")
    try:
        return WireMessage.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"message {place}: {first(error)}") from None


def _answered(waiting: list[tuple[str, WireCall]], wire: WireMessage) -> Iterator[Message]:
    """The waiting call that this result answers, and the result; what was said stays with the first of several."""
    if not waiting:
        raise ValueError("a tool's result answers no call")
    ids = [call.id for _, call in waiting]
    place = ids.index(wire.tool_call_id) if wire.tool_call_id in ids else 0
    if place == 0 and len(waiting) > 1 and wire.tool_call_id not in (None, ids[0]):
        raise ValueError("a tool's result answers no call")
    text, call = waiting.pop(place)
    if place > 0:  # results came in another order than the calls
        text, waiting[0] = waiting[0][0], (text, waiting[0][1])
    return iter((Step(text, call_of(call)), Result(plain(wire.content or ""))))


def check_order(conversation: Conversation) -> None:
    """`ValueError` unless users, steps and results follow one another as the tokens of a conversation say."""
    may: tuple[type[Message], ...] = (User,)
    for place, message in enumerate(conversation):
        if not isinstance(message, may):
            raise ValueError(f"message {place} is a {type(message).__name__} where a {may[0].__name__} should be")
        match message:
            case Step(_, None):
                may = (User,)
            case Step():
                may = (Result,)
            case _:
                may = (Step,)
