"""`nanocode chat`: talk to an agent in a workspace, and decide what it may do."""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs import prompts, sample_project
from jobs.printable import visible
from jobs.speaker import Speaker
from jobs.transcript import Transcript
from jobs.turn import Desk, open_workspace
from jobs.undo import Change, undo
from nanocode.agent.conversation import Conversation, Message, to_json
from nanocode.agent.workspace import Workspace
from nanocode.config.refusals import cause
from nanocode.run.exits import Exit

HELP = (
    ("/help", "this list"),
    ("/clear", "forget the conversation; files stay as they are"),
    ("/undo", "take back the last turn, and what its edits did to files"),
    ("/tokens", "how full the context is"),
    ("/save PATH", "write the conversation to a file, as JSON"),
    ("Ctrl-C", "stop the agent; twice, or Ctrl-D, to leave"),
)


@dataclass(frozen=True)
class _Turn:
    """What it takes to take a turn back."""

    history: tuple[Message, ...]
    changes: tuple[Change, ...]
    ran_bash: bool


class Chat:
    """A session: `run` it."""

    def __init__(self, desk: Desk, read: Callable[[], str], suggestions: Sequence[str] = ()) -> None:
        self._desk, self._read, self._suggestions = desk, read, suggestions
        self._messages: Conversation = ()
        self._turns: list[_Turn] = []
        self._transcript = desk.transcript

    def run(self) -> None:
        """Until the user leaves."""
        self._greet()
        warning = ""  # after a Ctrl-C, which another one would make leave
        while True:
            # Ctrl-C is a key while a line is read, a signal at any other moment.
            try:
                if warning:
                    self._transcript.note(warning)
                self._transcript.console.print()
                line = self._read().strip()
                warning = "(stopped; Ctrl-C again leaves)" if line and self._obey(line) == "interrupted" else ""
            except EOFError:
                return
            except KeyboardInterrupt:
                if warning:
                    return
                warning = "(Ctrl-C again, or Ctrl-D, leaves)"

    def _obey(self, line: str) -> str:
        """Do what a line says; how the turn ended, if it was one."""
        command, _, argument = line.partition(" ")
        match command:
            case "/help":
                self._help()
            case "/clear":
                self._messages, self._turns = (), []
                self._transcript.note("(the conversation is forgotten)")
            case "/undo":
                self._undo()
            case "/tokens":
                self._tokens()
            case "/save":
                self._save(argument.strip())
            case _ if command.startswith("/") and "/" not in command[1:]:
                self._transcript.complain(f"no command is called {command}: /help lists them")
            case _:
                suggested = self._suggested(line)
                return self._turn(suggested or line, () if suggested else self._messages)
        return ""

    def _turn(self, request: str, history: Conversation) -> str:
        before = tuple(self._messages)
        said = self._desk.turn(history, request)
        self._messages = tuple(said.messages)
        self._turns.append(_Turn(before, tuple(self._desk.changes), self._desk.ran_bash))
        if said.ended == "out of steps":
            self._transcript.note("(it did not come to an end, and was stopped)")
        elif said.ended == "out of context":
            self._transcript.note("(there is no room left in the context: /clear begins anew)")
        return said.ended

    def _suggested(self, line: str) -> str | None:
        """The suggestion that a number picks; what was said before has nothing to do with it."""
        if not (line.isascii() and line.isdecimal() and 1 <= int(line) <= len(self._suggestions)):
            return None
        self._transcript.note(self._suggestions[int(line) - 1])
        return self._suggestions[int(line) - 1]

    def _undo(self) -> None:
        if not self._turns:
            self._transcript.note("(there is nothing to take back)")
            return
        turn = self._turns.pop()
        self._messages = turn.history
        for line in undo(self._desk.workspace, turn.changes):
            self._transcript.note(f"({line})")
        if turn.ran_bash:
            self._transcript.note("(what its commands did was not taken back)")
        self._transcript.note("(the last turn is forgotten)")

    def _tokens(self) -> None:
        speaker = self._desk.speaker
        used = speaker.count(self._messages)
        self._transcript.note(f"({used:,} of {speaker.context:,} tokens, {used / speaker.context:.0%} of the context)")

    def _save(self, path: str) -> None:
        if not path:
            self._transcript.complain("say where: /save PATH")
            return
        try:
            target = Path(path).expanduser()
            target.write_text(json.dumps(to_json(self._messages), indent=1, ensure_ascii=False) + "\n", "utf-8")
        except (OSError, ValueError) as error:
            self._transcript.complain(f"cannot write {path} ({cause(error)}): give a file in a folder that is there")
            return
        self._transcript.note(f"(saved to {target})")

    def _greet(self) -> None:
        desk, grid = self._desk, Table.grid(padding=(0, 2))
        workspace = str(desk.workspace.root) + (" (a sample project)" if self._suggestions else "")
        grid.add_row("[bold cyan]nanocode[/]", Text(visible(f"{desk.speaker.label}, context {desk.speaker.context:,}")))
        grid.add_row("[dim]workspace[/]", Text(visible(workspace)))
        grid.add_row("[dim]sandbox[/]", Text(desk.workspace.sandbox.describe()))
        grid.add_row("[dim]commands[/]", "/help lists them; Ctrl-D leaves")
        console = self._transcript.console
        console.print(grid)
        if self._suggestions:
            console.print()
            console.print("Try one of these, by its number. Each begins a conversation of its own:", style="dim")
            for number, prompt in enumerate(self._suggestions, start=1):
                console.print(Text.assemble((f"  {number}  ", "bold cyan"), prompt))

    def _help(self) -> None:
        grid = Table.grid(padding=(0, 2))
        for name, meaning in HELP:
            grid.add_row(Text(f"  {name}", "bold cyan"), Text(meaning))
        self._transcript.console.print(grid)


def chat(speaker: Speaker, workspace: Path | None, unsafe_bash: bool) -> int:
    """Talk until the user leaves, without a workspace in a sample project, which stays if anything in it changed."""
    console = Console(highlight=False)
    if workspace is not None:
        _talk(speaker, open_workspace(workspace, speaker.context, unsafe_bash), console)
        return Exit.DONE
    folder, stays = Path(tempfile.mkdtemp(prefix="nanocode-chat-")), False
    try:
        there = open_workspace(folder, speaker.context, unsafe_bash)
        for path, text in sample_project.FILES.items():
            there.put(path, text)
        stays = True  # from here on it may hold work: unless it is seen to hold none, it is not deleted
        try:
            _talk(speaker, there, console, sample_project.PROMPTS)
        finally:
            stays = there.files() != sample_project.FILES
    finally:
        if stays:
            console.print(Text(f"(the sample project stays in {folder})", "dim"))
        else:
            shutil.rmtree(folder)
    return Exit.DONE


def _talk(speaker: Speaker, workspace: Workspace, console: Console, suggestions: Sequence[str] = ()) -> None:
    ask = partial(prompts.ask_on_terminal, stream=sys.stdout) if sys.stdin.isatty() else prompts.refuse
    Chat(Desk(speaker, workspace, Transcript(console), ask), prompts.make_prompt(), suggestions).run()
