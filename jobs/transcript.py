"""How a conversation looks on a terminal: what is said, the calls of tools and what came back."""

import re

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from jobs.diffs import diff
from jobs.printable import output, visible
from nanocode.agent.tools import REJECTED, Call

BEFORE_WORD = re.compile(r"(?<=\s)(?=\S)")
MARK, BRANCH = "●", "└"
# Of a result: enough to follow, and the whole is in the conversation.
SHOWN_LINES, SHOWN_COLUMNS = 8, 160
COMMAND, NAME, PATH, ERROR, QUIET = "yellow", "bold cyan", "bold", "red", "dim"


class Transcript:
    """Writes to a console. Whatever comes from a model or a tool is made visible first."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._is_open = False
        self._held = ""
        """The beginning of a word whose end is to come: only then it is known on which line it fits."""
        self._column = 0

    def say(self, piece: str) -> None:
        """The next piece of what the assistant says."""
        self._held += visible(piece)
        if not self._is_open:
            self._held = self._held.lstrip()
            if not self._held:
                return
            self.console.print()
            self._is_open, self._column = True, 0
        *words, self._held = BEFORE_WORD.split(self._held)
        for word in words:
            self._put(word)

    def _put(self, word: str) -> None:
        """Print a word and the white space after it, on the next line if it does not fit on this one."""
        if (
            self.console.is_terminal
            and self._column > 0
            and self._column + cell_len(word.rstrip()) >= self.console.width
        ):
            self.console.print()
            self._column = 0
        self.console.print(Text(word), end="", soft_wrap=True)
        _, line_end, last = word.rpartition("\n")
        self._column = cell_len(last) + (0 if line_end else self._column)

    def end_of_speech(self) -> None:
        """The assistant is done speaking; whatever comes begins on a new line."""
        if self._is_open:
            self._put(self._held.rstrip())
            self.console.print()
        self._is_open, self._held = False, ""

    def interrupted(self) -> None:
        """After the `^C` that the terminal shows."""
        self._is_open, self._held = False, ""
        self.console.print()

    def call(self, call: Call, first_line: int | None = None) -> None:
        """A call, all of it that matters for whoever has to allow it."""
        self.end_of_speech()
        arguments = call.arguments
        text = Text.assemble((f"{MARK} ", "cyan"), (call.tool, NAME), " ")
        match call.tool:
            case "Edit":
                text.append(visible(arguments["path"]), PATH)
                text.append("  new file" if not arguments["old"] else "", QUIET)
            case "Bash":
                text.append(visible(arguments["command"]), COMMAND)
            case "Read":
                text.append(visible(arguments["path"]), PATH)
                if {"start", "end"} & set(arguments):
                    text.append(f"  lines {arguments.get('start', '1')}-{arguments.get('end', '')}", QUIET)
            case "Grep":
                text.append(visible(arguments["pattern"]), COMMAND)
                text.append(f"  in {visible(arguments['path'])}" if "path" in arguments else "", QUIET)
        self.console.print()
        self.console.print(text, soft_wrap=True)
        if call.tool == "Edit":
            first_line = 1 if not arguments["old"] else first_line
            self.console.print(Padding(diff(arguments["old"], arguments["new"], first_line), (0, 0, 0, 2)))

    def result(self, call: Call, result: str) -> None:
        """What a tool returned, shortened; of a file that was read only how much."""
        lines = output(result).rstrip("\n").split("\n")
        if result == REJECTED or result.startswith("error:"):
            self._lines(lines, ERROR)
        elif call.tool == "Read":
            self._lines([_counted(len(lines), "line")], QUIET)
        elif call.tool == "Edit":
            self._lines(["done"], QUIET)
        else:
            self._lines(lines if lines != [""] else ["no output"], QUIET)

    def note(self, text: str) -> None:
        """Something the program itself has to say."""
        self.end_of_speech()
        self.console.print(Text(visible(text), QUIET), soft_wrap=True)

    def complain(self, text: str) -> None:
        """Something went wrong."""
        self.end_of_speech()
        self.console.print(Text(visible(text), ERROR), soft_wrap=True)

    def _lines(self, lines: list[str], style: str) -> None:
        shown = [line if len(line) <= SHOWN_COLUMNS else line[: SHOWN_COLUMNS - 1] + "…" for line in lines]
        if len(shown) > SHOWN_LINES:
            shown = [*shown[: SHOWN_LINES - 1], f"… {_counted(len(lines) - SHOWN_LINES + 1, 'more line')}"]
        for place, line in enumerate(shown):
            head = f"  {BRANCH} " if place == 0 else "    "
            self.console.print(Text.assemble((head, QUIET), (line, style)), soft_wrap=True)


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
