"""The judge: what passes a check, and that nothing an agent leaves behind talks it into a pass or ends it."""

from pathlib import Path

import pytest

from nanocode.agent.conversation import Message, Result, Step, User
from nanocode.agent.sandbox import Grade, available_grades
from nanocode.agent.tools import REJECTED
from nanocode.agent.workspace import Workspace
from nanocode.tasks.playing import SANDBOX
from nanocode.tasks.task import Check, Task, Verdict, judge
from tests.tasks.players import call

GRADES = pytest.mark.parametrize(
    "grade",
    [
        pytest.param(grade, marks=pytest.mark.skipif(grade not in available_grades(), reason="not on this kernel"))
        for grade in (Grade.NAMESPACES, Grade.LANDLOCK)
    ],
)
DONE: list[Message] = [User("Do it."), Step("Done.")]
WANTS_TWO = "import runpy\nassert runpy.run_path('two.py')['two']() == 2\n"


def judged(tmp_path: Path, check: Check, left: dict[str, str], grade: Grade | None = None, **task: object) -> Verdict:
    """The verdict on a workspace that was left with these files."""
    workspace = Workspace(tmp_path, SANDBOX, grade)
    for path, text in left.items():
        workspace.put(path, text)
    return judge(Task(id="x", prompt="Do it.", check=check, **task), DONE, workspace)  # type: ignore[arg-type]


@GRADES
def test_a_program_passes_when_it_comes_to_its_end(tmp_path: Path, grade: Grade) -> None:
    assert judged(tmp_path, Check(python=WANTS_TWO), {"two.py": "def two():\n    return 2\n"}, grade) == Verdict(True)


LEAVING = {
    "leaves when it is loaded": "import os\nos._exit(0)\n",
    "leaves in peace when it is loaded": "import sys\nsys.exit(0)\n",
    "leaves when it is called": "import os\ndef two():\n    os._exit(0)\n",
    "is killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "becomes another program": "import os\nos.execv('/bin/true', ['true'])\n",
    "leaves from a thread": "import os, threading\nthreading.Thread(target=os._exit, args=(0,)).start()\ninput()\n",
    "leaves in a child": "import os, sys\nos.fork() or os._exit(0)\nsys.exit(0)\n",
    "says that all is well": "import os\nfor out in (1, 2, 3):\n    os.write(out, b'ok\\n')\nos._exit(0)\n",
    "has no such function": "three = 3\n",
    "does not parse": "def two(:\n",
}


@GRADES
@pytest.mark.parametrize("text", LEAVING.values(), ids=LEAVING)
def test_code_that_does_not_let_the_program_end_fails(tmp_path: Path, grade: Grade, text: str) -> None:
    assert not judged(tmp_path, Check(python=WANTS_TWO), {"two.py": text}, grade).passed


SHADOWS = [
    "runpy.py",
    "os.py",
    "sys.py",
    "json.py",
    "site.py",
    "sitecustomize.py",
    "usercustomize.py",
    "encodings/__init__.py",
    "codecs.py",
    "nanocode_check.py",
    "__main__.py",
    "-",
    "python3",
    ".pythonrc",
]


@GRADES
@pytest.mark.parametrize("name", SHADOWS)
def test_no_file_of_the_workspace_stands_in_for_the_program_or_its_modules(
    tmp_path: Path, grade: Grade, name: str
) -> None:
    forged = "import os\nrun_path = lambda path: {'two': lambda: 2}\nos._exit(0)\n"
    verdict = judged(tmp_path, Check(python=WANTS_TWO), {"two.py": "def two():\n    return 3\n", name: forged}, grade)
    assert not verdict.passed
    assert "AssertionError" in verdict.reason


@GRADES
def test_a_program_may_import_what_the_workspace_has(tmp_path: Path, grade: Grade) -> None:
    check = Check(python="from deep.two import two\nassert two() == 2\n")
    assert judged(tmp_path, check, {"deep/two.py": "def two():\n    return 2\n"}, grade).passed


@GRADES
def test_what_the_code_prints_does_not_matter(tmp_path: Path, grade: Grade) -> None:
    loud = "print('FAIL ' * 100_000)\ndef two():\n    print('no')\n    return 2\n"
    assert judged(tmp_path, Check(python=WANTS_TWO), {"two.py": loud}, grade).passed


@GRADES
def test_an_endless_program_fails_in_time(tmp_path: Path, grade: Grade) -> None:
    workspace = Workspace(tmp_path, type(SANDBOX)(wall_seconds=0.5, output_bytes=2_000), grade)
    verdict = judge(Task(id="x", prompt="", check=Check(python="while True:\n    pass\n")), DONE, workspace)
    assert verdict == Verdict(False, "the check says it takes too long")


def test_a_program_may_hold_anything_that_a_shell_would_read_otherwise(tmp_path: Path) -> None:
    check = Check(
        python="text = '''$HOME `id` \\\\ \"é\"\nEOF\n'''\nassert text[0] == '$' and text[-5:] == '\\nEOF\\n'"
    )
    assert judged(tmp_path, check, {}).passed


def test_the_restored_files_are_put_back_before_the_program_runs(tmp_path: Path) -> None:
    check = Check(python="import hidden\nassert hidden.right", restored=("hidden.py",))
    assert judged(tmp_path, check, {"hidden.py": "right = 0"}, files={"hidden.py": "right = 1"}).passed


@pytest.mark.parametrize("path", ["hidden.py", "tests/hidden.py"])
def test_a_folder_or_a_link_in_the_place_of_a_restored_file_fails(tmp_path: Path, path: str) -> None:
    check = Check(python="pass", restored=(path,))
    top = tmp_path / path.split("/")[0]
    if "/" in path:
        top.symlink_to("/tmp")
    else:
        top.mkdir()
    verdict = judged(tmp_path, check, {}, files={path: "right = 1"})
    assert not verdict.passed
    assert verdict.reason.startswith("cannot be checked: ")


@pytest.mark.parametrize(
    ("messages", "passed"),
    [
        (DONE, True),
        ([], False),
        ([User("Do it.")], False),
        ([User("Do it."), call("Bash", command="true")], False),
        ([User("Do it."), call("Bash", command="true"), Result("")], False),
    ],
)
def test_a_task_ends_with_a_message(tmp_path: Path, messages: list[Message], passed: bool) -> None:
    assert judge(Task(id="x", prompt="Do it."), messages, Workspace(tmp_path, SANDBOX)).passed is passed


@pytest.mark.parametrize(("tried", "passed"), [(0, False), (1, True), (2, False)], ids=["never", "once", "twice"])
def test_a_tool_that_has_to_be_called_is_called_exactly_once(tmp_path: Path, tried: int, passed: bool) -> None:
    tries: list[Message] = [call("Edit", path="a", old="b", new="c"), Result(REJECTED)]
    task = Task(id="x", prompt="Do it.", check=Check(called="Edit"), rejects=("Edit",))
    messages = [User("Do it."), *(tries * tried), Step("I left it.")]
    assert judge(task, messages, Workspace(tmp_path, SANDBOX)).passed is passed


@pytest.mark.parametrize(
    ("left", "passed"),
    [
        ({"a.txt": "one\n"}, True),
        ({"a.txt": "one"}, False),
        ({"a.txt": "two\n"}, False),
        ({}, False),
        ({"a.txt": "one\n", "b.txt": ""}, False),
        ({"b.txt": "one\n"}, False),
    ],
)
def test_unchanged_means_the_same_files_with_the_same_text(tmp_path: Path, left: dict[str, str], passed: bool) -> None:
    assert judged(tmp_path, Check(unchanged=True), left, files={"a.txt": "one\n"}).passed is passed


@pytest.mark.parametrize(
    ("text", "passed"), [("one\n", True), ("\n one", True), ("one  two", False), ("", False), ("One", False)]
)
def test_a_file_has_to_hold_its_text_but_for_white_space_at_the_ends(tmp_path: Path, text: str, passed: bool) -> None:
    assert judged(tmp_path, Check(files={"a.txt": "one"}), {"a.txt": text}).passed is passed


def test_every_pattern_has_to_match_the_last_message(tmp_path: Path) -> None:
    check = Check(answer=("Done", "twice"))
    assert judged(tmp_path, check, {}) == Verdict(False, "the answer does not match twice")
