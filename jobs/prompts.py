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
    from prompt_toolkit.key_binding import KeyPressEvent

PROMPT = "› "


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
    """Allow it? One key; Ctrl-C is for whoever runs the turn, Ctrl-D is a no."""
    import termios

    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app_session
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.input.typeahead import clear_typeahead
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.keys import Keys
    from prompt_toolkit.output.defaults import create_output

    keys = KeyBindings()

    def bind(key: str, answer: Answer) -> None:
        @keys.add(key)
        def _(event: "KeyPressEvent") -> None:
            event.app.exit(result=answer)

    for key, answer in (("y", "yes"), ("n", "no"), ("a", "always"), ("c-d", "no")):
        bind(key, answer)  # type: ignore[arg-type]

    @keys.add(Keys.Any)
    @keys.add("enter")
    def _(event: "KeyPressEvent") -> None:
        """Nothing: a key that was meant for something else must not allow anything."""

    # What was typed before the question was asked is no answer to it.
    termios.tcflush(sys.stdin, termios.TCIFLUSH)
    clear_typeahead(get_app_session().input)
    question = [("bold", f"  allow this {call.tool}?"), ("", f" [y]es, [n]o, [a]lways {call.tool} ")]
    session: PromptSession[Answer] = PromptSession(
        FormattedText(question), key_bindings=keys, output=create_output(stdout=stream), erase_when_done=True
    )
    return session.prompt()


def allow(call: Call) -> Answer:
    """Where the user has said yes to everything."""
    return "yes"


def refuse(call: Call) -> Answer:
    """Where nobody can be asked."""
    return "no"
