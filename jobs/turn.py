"""One turn of a conversation with a user: the episode loop with a speaker, a transcript, and approvals."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.diffs import line_of
from jobs.speaker import Speaker
from jobs.transcript import Transcript
from nanocode.agent.context import fit, room_for_conversation
from nanocode.agent.conversation import Conversation, Message, Result, Step, User
from nanocode.agent.episode import Episode, Limits, episode
from nanocode.agent.tools import Call
from nanocode.agent.workspace import ToolError, Workspace

NEED_APPROVAL = frozenset({"Edit", "Bash"})
STEPS = 32
"""Of one turn: a model that has not come to an end by then goes in circles."""
STOPPED = "Stopped."
"""What closes a turn that did not come to its own end: a turn ends with a message of the assistant's."""
Answer = Literal["yes", "no", "always"]


@dataclass(frozen=True)
class Change:
    """What an Edit did to a file; None: there was none."""

    path: str
    before: str | None
    after: str


@dataclass
class Desk:
    """Everything a turn needs."""

    speaker: Speaker
    workspace: Workspace
    transcript: Transcript
    ask: Callable[[Call], Answer]
    """The user's word on a call of Edit or Bash."""
    allowed: set[str] = field(default_factory=set)
    """Tools that the user always allows."""
    changes: list[Change] = field(default_factory=list)
    """By the Edits of this turn."""
    ran_bash: bool = False

    def turn(self, history: Conversation, request: str) -> Episode:
        """The conversation after the turn, and how it ended; Ctrl-C ends it as `interrupted`."""
        self.changes, self.ran_bash = [], False
        moves = episode(self.workspace, request, self._approve, limits=Limits(STEPS, turns=1), history=history)
        said: Conversation = [*history, User(request)]
        step: Step | None = None
        try:
            said = next(moves)
            while True:
                step = None
                step = self._speak(said)
                said = moves.send(step)
                self._show_result(said)
        except StopIteration as stop:
            done: Episode = stop.value
            return done if done.ended == "done" else _closed(done.messages, done.ended)
        except KeyboardInterrupt:
            self.transcript.end_of_speech()
            broken = [step, Result("error: interrupted by user")] if step is not None and step.call else []
            return _closed([*said, *broken], "interrupted")

    def _speak(self, said: Conversation) -> Step | None:
        limit = room_for_conversation(self.speaker.context)
        fitted, dropped = fit(said, limit, self.speaker.count)
        if dropped:
            self.transcript.note(f"(to save room, the model no longer sees the {dropped} oldest messages and results)")
        step = None
        with self.transcript.console.status("[dim]…[/dim]", spinner="dots") as waiting:
            pieces = self.speaker.stream(fitted)
            with closing(pieces):  # type: ignore[type-var]
                for piece in pieces:
                    waiting.stop()
                    if isinstance(piece, Step):
                        step = piece
                    else:
                        self.transcript.say(piece)
        self.transcript.end_of_speech()
        return step

    def _approve(self, call: Call) -> bool:
        before = self._text(call.arguments["path"]) if call.tool == "Edit" else None
        self.transcript.call(call, line_of(before or "", call.arguments.get("old", "")))
        if call.tool in NEED_APPROVAL and call.tool not in self.allowed:
            match self.ask(call):
                case "no":
                    return False
                case "always":
                    self.allowed.add(call.tool)
        if call.tool == "Edit":
            self.changes.append(Change(call.arguments["path"], before, ""))
        self.ran_bash = self.ran_bash or call.tool == "Bash"
        return True

    def _show_result(self, said: Conversation) -> None:
        step, result = said[-2:]
        assert isinstance(step, Step) and step.call is not None and isinstance(result, Result)
        self.transcript.result(step.call, result.text)
