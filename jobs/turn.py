"""One turn of a conversation with a user: the episode loop with a speaker, a transcript, and approvals."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from jobs.diffs import line_of
from jobs.speaker import Speaker, SpeakerError
from jobs.transcript import Transcript
from jobs.undo import Change, mode_of, text_of
from nanocode.agent.context import fit, output_bytes, room_for_conversation
from nanocode.agent.conversation import Conversation, Message, Result, Step, User
from nanocode.agent.episode import Episode, Limits, episode
from nanocode.agent.sandbox import Limits as SandboxLimits
from nanocode.agent.tools import REJECTED, Call
from nanocode.agent.workspace import Workspace
from nanocode.run.exits import UsageError

NEED_APPROVAL = frozenset({"Edit", "Bash"})
STEPS = 32
"""Of one turn: a model that has not come to an end by then goes in circles."""
COMMAND_SECONDS = 60
"""Of one command: a test suite may take that long, and the user can stop it."""
STOPPED = "Stopped."
"""What closes a turn that did not come to its own end: a turn ends with a message of the assistant's."""
Answer = Literal["yes", "no", "always"]


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
    """By the Edits of the last turn."""
    ran_bash: bool = False
    """In the last turn."""
    dropped: int = 0
    """Messages that the speaker did not see at last."""
    _before: Change | None = None

    def turn(self, history: Conversation, request: str) -> Episode:
        """The conversation after the turn, and how it ended; Ctrl-C ends it as `interrupted`."""
        self.changes, self.ran_bash = [], False
        moves = episode(self.workspace, request, self._approve, limits=Limits(STEPS, turns=1), history=history)
        said: Conversation = [*history, User(request)]
        step: Step | None = None  # one that is not yet in what was said
        try:
            said = next(moves)
            while True:
                step = self._speak(said)
                said, step = moves.send(step), None
                self._show_result(said)
        except StopIteration as stop:
            done: Episode = stop.value
            return done if done.ended == "done" else _closed(done.messages, done.ended)
        except SpeakerError as error:
            self.transcript.complain(str(error))
            return _closed(said, "failed")
        except KeyboardInterrupt:
            self.transcript.interrupted()
            broken: list[Message] = []
            if step is not None and step.call is not None:
                broken = [step, Result("error: interrupted by user")]
            return _closed([*said, *broken], "interrupted")

    def _speak(self, said: Conversation) -> Step | None:
        limit = room_for_conversation(self.speaker.context)
        fitted, dropped = fit(said, limit, self.speaker.count)
        if dropped > self.dropped:
            self.transcript.note(f"(context is full: the model no longer sees {dropped} older messages and results)")
        self.dropped = dropped
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
        self._before, first_line = None, None
        if call.tool == "Edit":
            path = call.arguments["path"]
            before = text_of(self.workspace, path)
            self._before = Change(path, before, None, mode_of(self.workspace, path))
            first_line = line_of(before or "", call.arguments["old"])
        self.transcript.call(call, first_line)
        if call.tool in NEED_APPROVAL and call.tool not in self.allowed:
            match self.ask(call):
                case "no":
                    return False
                case "always":
                    self.allowed.add(call.tool)
                    self.transcript.note(f"  ({call.tool} is allowed from now on, in this session)")
        self.ran_bash = self.ran_bash or call.tool == "Bash"
        return True

    def _show_result(self, said: Conversation) -> None:
        step, result = said[-2:]
        assert isinstance(step, Step)
        assert isinstance(result, Result)
        assert step.call is not None
        self.transcript.result(step.call, result.text)
        if self._before is not None and result.text != REJECTED and not result.text.startswith("error:"):
            self.changes.append(replace(self._before, after=text_of(self.workspace, self._before.path)))


def open_workspace(folder: Path, context: int, unsafe_bash: bool) -> Workspace:
    """The folder as a workspace whose tools answer no more than fits a context; `UsageError` if there is none."""
    if not folder.is_dir():
        raise UsageError(f"--workspace {folder} is not a folder: give one that exists")
    limits = SandboxLimits(
        wall_seconds=COMMAND_SECONDS, cpu_seconds=COMMAND_SECONDS, output_bytes=output_bytes(context)
    )
    return Workspace(folder, limits, unsafe_bash=unsafe_bash)


def _closed(messages: Conversation, ended: str) -> Episode:
    return Episode([*messages, Step(STOPPED)], ended)
