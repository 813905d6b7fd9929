"""Nothing a model says moves the cursor or hides."""

import pytest

from jobs.printable import output, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("größer → 漢字", "größer → 漢字"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\rb", "a\\rb"),
        ("\x9b31m", "\\x9b31m"),
        ("rm \u202efdp", "rm \\u202efdp"),
        ("\udc80", "\\udc80"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
    ],
)
def test_what_is_not_printable_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_colours_of_programs_are_left_out() -> None:
    assert output("\x1b[1;31mFAILED\x1b[0m\r\nnext\x1b[A") == "FAILED\nnext\\x1b[A"
