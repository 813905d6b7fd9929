"""What the user types, and their word on a call; with line editing and a history on a terminal, plainly elsewhere."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from jobs.turn import Answer
from nanocode.agent.tools import Call

if TYPE_CHECKING:
    from prompt_toolkit.history import History

PROMPT = "› "
ANSWERS: dict[str, Answer] = {"y": "yes", "yes": "yes", "n": "no", "no": "no", "always": "always"}


def state_folder() -> Path:
    """Where this user's history is kept (XDG base directories)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "nanocode"


def make_prompt() -> Callable[[], str]:
    """Asks for a line: raises `EOFError` at the end of the input, `KeyboardInterrupt` on Ctrl-C."""
    if not sys.stdin.isatty():
        return _plain
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.formatted_text import FormattedText

    session: PromptSession[str] = PromptSession(
        FormattedText([("bold ansicyan", PROMPT)]),
        history=_history(),
        auto_suggest=AutoSuggestFromHistory(),
    )
    return session.prompt


def _plain() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _history() -> "History":
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        state_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        path = state_folder() / "history"
        path.touch(mode=0o600)
    except OSError:  # a read-only home: the history lasts as long as the session
        return InMemoryHistory()
    return FileHistory(str(path))


def ask_on_terminal(call: Call, stream: TextIO) -> Answer:
    """Allow it? A word and Enter, and for good only a whole word; Ctrl-C is for whoever runs the turn, Ctrl-D is a no.

    No single key answers: one that was meant for something else must not allow anything.
    """
    import termios

    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app_session
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.input.typeahead import clear_typeahead
    from prompt_toolkit.output.defaults import create_output

    # What was typed before the question was asked is no answer to it.
    termios.tcflush(sys.stdin, termios.TCIFLUSH)
    clear_typeahead(get_app_session().input)
    question = [("bold", f"  allow this {call.tool}?"), ("", f" y, n, or always (every {call.tool} from now on): ")]
    session: PromptSession[str] = PromptSession(
        FormattedText(question), output=create_output(stdout=stream), erase_when_done=True
    )
    while True:
        try:
            answer = ANSWERS.get(session.prompt().strip().lower())
        except EOFError:
            return "no"
        if answer is not None:
            return answer


def allow(call: Call) -> Answer:
    """Where the user has said yes to everything."""
    return "yes"


def refuse(call: Call) -> Answer:
    """Where nobody can be asked."""
    return "no"
