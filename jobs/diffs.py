"""An edit as a coloured diff."""

import difflib

from rich.text import Text

from jobs.printable import visible

REMOVED, ADDED, SAME, NUMBER = "red", "green", "dim", "dim"


def diff(old: str, new: str, first_line: int | None = None) -> Text:
    """The lines of `old` that go and those of `new` that come, numbered from `first_line` where it is known.

    A line that stays keeps the number it will have.
    """
    before, after = _lines(old), _lines(new)
    text = Text()
    for kind, a1, a2, b1, b2 in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            _add(text, " ", SAME, after[b1:b2], first_line, b1)
            continue
        _add(text, "-", REMOVED, before[a1:a2], first_line, a1)
        _add(text, "+", ADDED, after[b1:b2], first_line, b1)
    text.rstrip()
    return text


def line_of(text: str, old: str) -> int | None:
    """The line on which `old` begins, from 1; None where it does not stand exactly once."""
    return text[: text.index(old)].count("\n") + 1 if old and text.count(old) == 1 else None


def _add(text: Text, mark: str, style: str, lines: list[str], first_line: int | None, offset: int) -> None:
    for place, line in enumerate(lines, start=offset):
        if first_line is not None:
            text.append(f"{first_line + place:5d} ", NUMBER)
        # A tab would be expanded from where the line begins on the screen.
        text.append(f"{mark} {visible(line).expandtabs(4)}\n", style)


def _lines(text: str) -> list[str]:
    """Split at line feeds only: other characters that end lines for Python are shown, not obeyed."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]
