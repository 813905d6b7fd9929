"""Text from a model or a tool, made safe for a terminal.

A control sequence could move the cursor over what was shown for approval, or set the title; a bidirectional mark could
turn a command around. Nothing is hidden: what is not printable is shown as its escape.
"""

import re

# What programs colour their output with: it means nothing here, and its escapes would be noise.
COLOURS = re.compile(r"\x1b\[[0-9;]*m|\r(?=\n)")


def visible(text: str) -> str:
    """The text with every control, format and surrogate character written as `\\x1b`; new lines and tabs stay."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def output(text: str) -> str:
    """What a program printed, without its colours, and visible."""
    return visible(COLOURS.sub("", text))
