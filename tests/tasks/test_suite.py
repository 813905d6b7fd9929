"""A user's own tasks: what is read, and how what is wrong is named."""

from pathlib import Path

import pytest

from nanocode.run.exits import ConfigurationError
from nanocode.tasks.suite import read_suite
from nanocode.tasks.task import Check, Task

GOOD = '{"id": "a", "prompt": "Do it.", "check": {"bash": "true"}}'


def write(folder: Path, *lines: str) -> Path:
    path = folder / "suite.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_tasks_are_read_with_their_defaults(tmp_path: Path) -> None:
    full = (
        '{"id": "b", "family": "who", "prompt": "Who?", "files": {"x/y.txt": "me"},'
        ' "check": {"answer": "m[ey]", "bash": "test -e x"}}'
    )
    assert read_suite(write(tmp_path, GOOD, "", full)) == [
        Task(id="a", prompt="Do it.", check=Check(bash="true")),
        Task(
            id="b",
            family="who",
            prompt="Who?",
            files={"x/y.txt": "me"},
            check=Check(answer=("m[ey]",), bash="test -e x"),
        ),
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: holds list"),
        (GOOD, "line 2: id 'a' is used twice"),
        ('{"prompt": "x", "check": {"bash": "true"}}', "line 2: key 'id' is missing"),
        ('{"id": "b", "prompt": 3, "check": {"bash": "true"}}', "line 2: key 'prompt': has to be text in quotes"),
        ('{"id": "b", "prompt": "x", "chekc": {}, "check": {"bash": "true"}}', "line 2: key 'chekc' is unknown"),
        ('{"id": "b", "prompt": "x", "check": {}}', "line 2: key 'check': needs"),
        (
            '{"id": "b", "prompt": "x", "check": {"answer": "("}}',
            "line 2: key 'check.answer': is no regular expression",
        ),
        ('{"id": "b", "prompt": "x", "check": {"shell": "x"}}', "line 2: key 'check.shell' is unknown"),
        ('{"id": "b", "prompt": "x", "files": {"a": 1}, "check": {"bash": "x"}}', "line 2: key 'files.a'"),
        (
            '{"id": "b", "prompt": "x", "files": {"../a": ""}, "check": {"bash": "x"}}',
            "line 2: key 'files': path '../a'",
        ),
    ],
)
def test_what_is_wrong_is_named_by_file_line_and_key(tmp_path: Path, line: str, complaint: str) -> None:
    path = write(tmp_path, GOOD, line)
    with pytest.raises(ConfigurationError) as caught:
        read_suite(path)
    assert f"{path}, {complaint}" in str(caught.value)


def test_a_file_without_tasks_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no tasks"):
        read_suite(write(tmp_path, ""))
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_suite(tmp_path / "absent.jsonl")
