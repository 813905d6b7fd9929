"""Conversations of the evaluation as blocks to read: who speaks, which tool is called, an edit as its difference.

Every text here was written by a model or by a command that it ran: it is untrusted, and cut to what a reader looks at.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

from nanocode.report.agent_facts import MessageFacts, SuiteFacts, TranscriptFacts

# A transcript is there for a look; the run directory keeps every message.
BLOCK_CHARACTERS = 1500
BLOCKS = 40

Mark = Literal["same", "gone", "new"]
SIGNS: dict[Mark, str] = {"same": " ", "gone": "-", "new": "+"}


@dataclass(frozen=True)
class Line:
    mark: Mark
    text: str

    @property
    def sign(self) -> str:
        return SIGNS[self.mark]


@dataclass(frozen=True)
class Block:
    kind: Literal["user", "assistant", "call", "diff", "result", "note"]
    title: str
    text: str = ""
    lines: tuple[Line, ...] = ()
    """Of a `diff`."""

    @property
    def plain(self) -> str:
        """Its text, a difference with its signs."""
        return "\n".join(f"{line.sign} {line.text}" for line in self.lines) if self.lines else self.text


@dataclass(frozen=True)
class Transcript:
    id: str
    passed: bool
    reason: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Family:
    """The transcripts of one family, successes first."""

    name: str
    passed: float | None
    total: float | None
    transcripts: tuple[Transcript, ...]


def families(suite: SuiteFacts, each: int) -> tuple[Family, ...]:
    """At most `each` successes and as many failures of every family of a suite."""
    found = []
    for name in dict.fromkeys([*suite.families, *(one.family for one in suite.transcripts)]):
        mine = [one for one in suite.transcripts if one.family == name]
        kept = [one for one in mine if one.passed][:each] + [one for one in mine if not one.passed][:each]
        rate = suite.families.get(name)
        if kept:
            shown = tuple(map(transcript, kept))
            found.append(Family(name, rate.passed if rate else None, rate.total if rate else None, shown))
    return tuple(found)


def transcript(facts: TranscriptFacts) -> Transcript:
    """One conversation as blocks."""
    every = [block for message in facts.messages for block in blocks(message)]
    kept = every[:BLOCKS]
    if len(every) > BLOCKS:
        kept.append(Block("note", f"{len(every) - BLOCKS} more blocks are left out here"))
    return Transcript(facts.id, facts.passed, facts.reason, tuple(kept))


def blocks(message: MessageFacts) -> list[Block]:
    """What one message shows: a step that says something and calls a tool shows both."""
    if message.user is not None:
        return [Block("user", "user", _cut(message.user))]
    if message.result is not None:
        return [Block("result", "result", _cut(message.result))]
    found = []
    if message.assistant or message.tool is None:
        found.append(Block("assistant", "assistant", _cut(message.assistant or "")))
    if message.tool is not None:
        found.append(_call(message.tool, message.arguments))
    return found


def difference(old: str, new: str) -> tuple[Line, ...]:
    """The lines of `old` that go and those of `new` that come."""
    before, after = _lines(old), _lines(new)
    found: list[Line] = []
    for kind, a1, a2, b1, b2 in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            found += [Line("same", line) for line in before[a1:a2]]
            continue
        found += [Line("gone", line) for line in before[a1:a2]]
        found += [Line("new", line) for line in after[b1:b2]]
    return tuple(found)


def _call(tool: str, arguments: dict[str, str]) -> Block:
    said = {key: _cut(value) for key, value in arguments.items()}
    path = said.get("path", "")
    match tool:
        case "Edit":
            lines = difference(said.get("old", ""), said.get("new", ""))
            return Block("diff", f"Edit {path}", "" if lines else "(nothing replaced by nothing)", lines)
        case "Read":
            first, last = said.get("start", ""), said.get("end", "")
            where = f", lines {first or 1} to {last or 'the end'}" if first or last else ""
            return Block("call", f"Read {path}{where}")
        case "Grep":
            return Block("call", f"Grep{' in ' + path if path else ''}", said.get("pattern", ""))
        case "Bash":
            return Block("call", "Bash", said.get("command", ""))
    return Block("call", tool, "\n".join(f"{key}: {value}" for key, value in said.items()))


def _lines(text: str) -> list[str]:
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def _cut(text: str) -> str:
    return text if len(text) <= BLOCK_CHARACTERS else text[:BLOCK_CHARACTERS] + " …"
