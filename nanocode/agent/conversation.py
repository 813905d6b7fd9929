"""A conversation, its tokens, and back.

    <|bos|> ( <|user_start|>TEXT<|user_end|><|assistant_start|> STEP+ )+
    STEP = TEXT <|assistant_end|>
         | TEXT <|tool_call_start|>NAME ( <|tool_arg|>KEY<|tool_val|>VALUE )* <|tool_call_end|>
                <|tool_result_start|>TEXT<|tool_result_end|>

One declaration gives the tokens, the loss mask (what the assistant wrote counts, all else does not) and, read
backwards, the parser: `parse(render(c)) == c` for every conversation. Text cannot forge structure: special tokens
are never the encoding of a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nanocode.agent.tools import Call, checked
from nanocode.text import special
from nanocode.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class User:
    """What the user wrote."""

    text: str


@dataclass(frozen=True)
class Step:
    """What the assistant does in one go: it may say something, and calls one tool or, without a call, ends its turn."""

    text: str = ""
    call: Call | None = None
    tokens: tuple[int, ...] | None = field(default=None, compare=False)
    """The tokens a model wrote, which need not be the ones `encode` gives: with them a cached prefix stays valid."""


@dataclass(frozen=True)
class Result:
    """What a tool returned."""

    text: str


Message = User | Step | Result
Conversation = Sequence[Message]


class Rendered(NamedTuple):
    """Token ids, and for each whether the assistant wrote it."""

    tokens: list[int]
    assistant: list[bool]


def render(conversation: Conversation, tokenizer: Tokenizer) -> Rendered:
    """The tokens of a conversation and its loss mask; after a user's message the assistant's turn is opened."""
    ids = tokenizer.special
    tokens, assistant = [tokenizer.bos], [False]

    def add(new: Sequence[int], mine: bool) -> None:
        tokens.extend(new)
        assistant.extend([mine] * len(new))

    for message in conversation:
        match message:
            case User(text):
                opened = [*tokenizer.encode(text), ids[special.USER_END], ids[special.ASSISTANT_START]]
                add([ids[special.USER_START], *opened], False)
            case Step():
                add(message.tokens or step_tokens(message, tokenizer), True)
            case Result(text):
                end = ids[special.TOOL_RESULT_END]
                add([ids[special.TOOL_RESULT_START], *tokenizer.encode(text), end], False)
    return Rendered(tokens, assistant)


def step_tokens(step: Step, tokenizer: Tokenizer) -> list[int]:
    """What a model has to write for this step."""
    ids = tokenizer.special
    tokens = tokenizer.encode(step.text)
    if step.call is None:
        return [*tokens, ids[special.ASSISTANT_END]]
    tokens += [ids[special.TOOL_CALL_START], *tokenizer.encode(step.call.tool)]
    for key, value in step.call.arguments.items():
        tokens += [ids[special.TOOL_ARG], *tokenizer.encode(key), ids[special.TOOL_VAL], *tokenizer.encode(value)]
    return [*tokens, ids[special.TOOL_CALL_END]]


def parse_step(tokens: Sequence[int], tokenizer: Tokenizer) -> Step:
    """The step that these tokens say; `ValueError` when they are none, which constrained decoding rules out."""
    reader = _Reader(tokens, tokenizer)
    step = reader.step()
    if reader.rest():
        raise ValueError(f"{len(reader.rest())} tokens follow the end of the step")
    return step


def parse(tokens: Sequence[int], tokenizer: Tokenizer) -> list[Message]:
    """The conversation these tokens say; `ValueError` when they are none."""
    reader = _Reader(tokens, tokenizer)
    reader.expect(special.BOS)
    messages: list[Message] = []
    while reader.rest():
        reader.expect(special.USER_START)
        messages.append(User(reader.text()))
        reader.expect(special.USER_END)
        reader.expect(special.ASSISTANT_START)
        while reader.rest():
            step = reader.step()
            messages.append(step)
            if step.call is None:
                break
            if reader.rest():
                reader.expect(special.TOOL_RESULT_START)
                messages.append(Result(reader.text()))
                reader.expect(special.TOOL_RESULT_END)
    return messages


class _Reader:
    """Takes tokens off the front of a list."""

    def __init__(self, tokens: Sequence[int], tokenizer: Tokenizer) -> None:
        self._tokens, self._place, self._tokenizer = list(tokens), 0, tokenizer
        self._names = {index: name for name, index in tokenizer.special.items()}

    def rest(self) -> list[int]:
        return self._tokens[self._place :]

    def next_special(self) -> str:
        """The special token that comes next."""
        if self._place == len(self._tokens):
            raise ValueError("the tokens end in the middle")
        name = self._names.get(self._tokens[self._place])
        if name is None:
            raise ValueError(f"token {self._place} is text where a special token should be")
        self._place += 1
        return name

    def expect(self, name: str) -> None:
        found = self.next_special()
        if found != name:
            raise ValueError(f"token {self._place - 1} is {found} where {name} should be")

    def text(self) -> str:
        start = self._place
        while self._place < len(self._tokens) and self._tokens[self._place] not in self._names:
            self._place += 1
        return self._tokenizer.decode(self._tokens[start : self._place], errors="surrogateescape")

    def step(self) -> Step:
        start = self._place
        text = self.text()
        call = None
        match self.next_special():
            case special.ASSISTANT_END:
                pass
            case special.TOOL_CALL_START:
                call = self._call()
            case other:
                raise ValueError(f"token {self._place - 1} is {other} where a step should end or call a tool")
        return Step(text, call, tuple(self._tokens[start : self._place]))

    def _call(self) -> Call:
        name, arguments = self.text(), dict[str, str]()
        while (found := self.next_special()) == special.TOOL_ARG:
            key = self.text()
            self.expect(special.TOOL_VAL)
            if key in arguments:
                raise ValueError(f"{name} is given the argument {key!r} twice")
            arguments[key] = self.text()
        if found != special.TOOL_CALL_END:
            raise ValueError(f"token {self._place - 1} is {found} where the call should end")
        return checked(name, arguments)


def to_json(conversation: Conversation) -> list[dict[str, Any]]:
    """Messages as JSON values: what rollouts and transcripts are kept as."""
    found: list[dict[str, Any]] = []
    for message in conversation:
        match message:
            case User(text):
                found.append({"user": text})
            case Step(text, None):
                found.append({"assistant": text})
            case Step(text, Call(tool, arguments)):
                found.append({"assistant": text, "tool": tool, "arguments": dict(arguments)})
            case Result(text):
                found.append({"result": text})
    return found


def from_json(values: Sequence[dict[str, Any]]) -> list[Message]:
    """What `to_json` gave; `ValueError` or `KeyError` for anything else."""
    found: list[Message] = []
    for value in values:
        if "user" in value:
            found.append(User(value["user"]))
        elif "result" in value:
            found.append(Result(value["result"]))
        else:
            call = checked(value["tool"], value["arguments"]) if "tool" in value else None
            found.append(Step(value["assistant"], call))
    return found
