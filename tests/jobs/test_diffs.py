"""What an edit looks like before it is allowed."""

from jobs.diffs import diff, line_of


def test_lines_that_stay_frame_those_that_change_with_their_numbers() -> None:
    text = diff("def f(a):\n    return a\n", "def f(a):\n    b = a\n    return b\n", first_line=7)
    assert text.plain.split("\n") == [
        "    7   def f(a):",
        "    8 -     return a",
        "    8 +     b = a",
        "    9 +     return b",
    ]
    assert {str(span.style) for span in text.spans} == {"dim", "red", "green"}


def test_without_a_place_there_are_no_numbers() -> None:
    assert diff("a", "b").plain == "- a\n+ b"


def test_a_new_file_is_all_added() -> None:
    assert diff("", "x = 1\ny = 2\n", 1).plain == "    1 + x = 1\n    2 + y = 2"


def test_control_characters_and_strange_line_ends_are_shown_and_not_obeyed() -> None:
    assert diff("a", "b\x1b[1A\x0bc").plain == "- a\n+ b\\x1b[1A\\x0bc"


def test_the_place_of_a_text_is_known_if_it_is_there_once() -> None:
    assert [line_of("a\nb\nb\nc", old) for old in ("a", "c", "b", "z", "")] == [1, 4, None, None, None]
