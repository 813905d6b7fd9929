"""What the four tools answer, and what no path, file or pattern can make them do."""

import os
import random
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from nanocode.agent import workspace as tools
from nanocode.agent.sandbox import Grade, Limits, best_grade
from nanocode.agent.workspace import ToolError, Workspace


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace with a few files, beside a file that must stay as it is."""
    (tmp_path / "outside.txt").write_text("outside\n")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.txt").write_text("outside\n")
    folder = tmp_path / "workspace"
    (folder / "lib").mkdir(parents=True)
    (folder / "a.txt").write_text("one\ntwo\nthree\n")
    (folder / "lib" / "b.py").write_text("def f():\n    return 1\n")
    return folder


@pytest.fixture
def workspace(root: Path) -> Workspace:
    return Workspace(root)


def refused(action: Callable[[], str]) -> str:
    """The error's text, which is short and one line."""
    with pytest.raises(ToolError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 200
    return text


# -- read ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "content", "span", "shown"),
    [
        ("a whole file", b"one\ntwo\n", (), "    1→one\n    2→two"),
        ("no newline at the end", b"one\ntwo", (), "    1→one\n    2→two"),
        ("an empty file", b"", (), ""),
        ("an empty line at the end", b"one\n\n", (), "    1→one\n    2→"),
        ("CRLF is a line end", b"one\r\ntwo\r\n", (), "    1→one\n    2→two"),
        ("a carriage return inside a line stays", b"a\rb\n", (), "    1→a\rb"),
        ("a byte order mark is not shown", b"\xef\xbb\xbfone\n", (), "    1→one"),
        ("only the line feed ends a line", "a\u2028b\x0cc\n".encode(), (), "    1→a\u2028b\x0cc"),
        ("some lines", b"1\n2\n3\n4\n", (2, 3), "    2→2\n    3→3"),
        ("from a line on", b"1\n2\n3\n", (2,), "    2→2\n    3→3"),
        ("an end beyond the last line", b"1\n2\n", (2, 99), "    2→2"),
        ("a number of five digits", b"x\n" * 12345, (12345,), "12345→x"),
    ],
    ids=lambda value: value if isinstance(value, str) and value[0:1] != " " else "",
)
def test_read_shows(root: Path, what: str, content: bytes, span: tuple[int, ...], shown: str) -> None:
    (root / "file").write_bytes(content)
    assert Workspace(root).read("file", *span) == shown


@pytest.mark.parametrize(
    ("path", "span", "text"),
    [
        ("lib/x.py", (), "no such file: lib/x.py"),
        ("nowhere/x.py", (), "no such file: nowhere/x.py"),
        ("lib", (), "is a folder: lib"),
        (".", (), "not a file: ."),
        ("", (), "not a file: "),
        ("a.txt/b", (), "not a directory: a.txt/b"),
        ("a.txt", (0, 1), "bad line range 0-1"),
        ("a.txt", (3, 2), "bad line range 3-2"),
        ("a.txt", (9, 9), "a.txt has 3 lines"),
        ("x" * 300, (), "file name too long: " + "x" * 60 + "..." + "x" * 37),
        ("a\0b", (), "bad path: not plain text"),
        ("a\ud800b", (), "bad path: not plain text"),
        ("a\nb", (), "no such file: a b"),
    ],
)
def test_read_refuses(workspace: Workspace, path: str, span: tuple[int, ...], text: str) -> None:
    assert refused(lambda: workspace.read(path, *span)) == text


@pytest.mark.parametrize(
    ("what", "content", "text"),
    [
        ("binary", b"\x7fELF\0\0", "binary file: file"),
        ("Latin-1", "Käse".encode("latin-1"), "not UTF-8 text: file"),
        ("UTF-16", "Käse".encode("utf-16"), "binary file: file"),
        ("half a character", "ä".encode()[:1], "not UTF-8 text: file"),
        ("an encoded surrogate", b"\xed\xa0\x80", "not UTF-8 text: file"),
        ("a line of 10 MB", b"x" * 10_000_000, "file too large: file (10000000 bytes)"),
        ("one byte too much", b"x" * 1_000_001, "file too large: file (1000001 bytes)"),
    ],
)
def test_a_file_is_refused_that_is(root: Path, what: str, content: bytes, text: str) -> None:
    (root / "file").write_bytes(content)
    workspace = Workspace(root)
    assert refused(lambda: workspace.read("file")) == text
    assert refused(lambda: workspace.edit("file", "x", "y")) == text
    assert (root / "file").read_bytes() == content
    assert "file" not in workspace.files()
    assert workspace.grep("K|x") == "no matches"
    assert refused(lambda: workspace.grep("x", "file")) == text


def test_a_long_answer_is_cut_and_says_by_how_much(root: Path) -> None:
    (root / "long").write_text("line\n" * 1000)
    text = Workspace(root, Limits(output_bytes=100)).read("long")
    assert text.splitlines()[:-1] == [f"{n:5d}→line" for n in range(1, 8)]
    assert text.splitlines()[-1] == f"[{1000 * 13 - 1 - (7 * 13 - 1)} more bytes not shown]"


def test_a_single_long_line_is_cut_at_a_character(root: Path) -> None:
    (root / "long").write_text("ä" * 1000)
    text = Workspace(root, Limits(output_bytes=100)).read("long")
    assert text.startswith("    1→" + "ä" * 46) and "\ufffd" not in text
    assert text.endswith("more bytes not shown]")


# -- edit ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "before", "old", "new", "after", "shown"),
    [
        ("a word", b"one two\n", "two", "2", b"one 2\n", "    1→one 2"),
        ("several lines", b"a\nb\nc\nd\n", "b\nc", "x\ny\nz", b"a\nx\ny\nz\nd\n", "    2→x\n    3→y\n    4→z"),
        ("a missing final newline stays missing", b"a\nb", "b", "c", b"a\nc", "    2→c"),
        ("lines can go", b"a\nb\nc\n", "b\n", "", b"a\nc\n", "    2→c"),
        ("everything can go", b"a\n", "a\n", "", b"", ""),
        ("CRLF stays, given LF", b"a\r\nb\r\nc\r\n", "a\nb", "x\ny", b"x\r\ny\r\nc\r\n", "    1→x\n    2→y"),
        ("CRLF stays, on one line", b"a\r\nb\r\n", "b", "x\ny", b"a\r\nx\r\ny\r\n", "    2→x\n    3→y"),
        ("CRLF that is meant is meant", b"a\r\nb\r\n", "a\r\nb", "c\r\nd", b"c\r\nd\r\n", "    1→c\n    2→d"),
        ("one CRLF among many LF is matched", b"a\r\nb\nc\nd\n", "a\nb", "x", b"x\nc\nd\n", "    1→x"),
        ("a byte order mark stays", b"\xef\xbb\xbfa\nb\n", "a", "c", b"\xef\xbb\xbfc\nb\n", "    1→c"),
        ("old text is no pattern", b"a.c abc\n", "a.c", "x", b"x abc\n", "    1→x abc"),
        ("new text is no template", b"a\n", "a", r"\1\g<0>\n", rb"\1\g<0>\n" + b"\n", r"    1→\1\g<0>\n"),
        ("more than ASCII", "Käse\n".encode(), "äs", "→", "K→e\n".encode(), "    1→K→e"),
    ],
)  # fmt: skip
def test_edit_changes(root: Path, what: str, before: bytes, old: str, new: str, after: bytes, shown: str) -> None:
    (root / "file").write_bytes(before)
    assert Workspace(root).edit("file", old, new) == shown
    assert (root / "file").read_bytes() == after


@pytest.mark.parametrize(
    ("what", "path", "old", "new", "text"),
    [
        ("text that is not there", "a.txt", "four", "4", "old text found 0 times in a.txt, must be exactly 1"),
        ("text that is there twice", "a.txt", "t", "T", "old text found 2 times in a.txt, must be exactly 1"),
        ("text that overlaps itself", "aaa", "aa", "b", "old text found 2 times in aaa, must be exactly 1"),
        ("a file that is not there", "x.txt", "a", "b", "no such file: x.txt"),
        ("making a file that is there", "a.txt", "", "new", "file exists: a.txt"),
        ("making a file where a folder is", "lib", "", "new", "file exists: lib"),
        ("making a file in a file", "a.txt/b", "", "new", "not a directory: a.txt/b"),
        ("a change that is none", "a.txt", "one", "one", "old and new text are the same"),
        ("a file of nothing", "new", "", "", "old and new text are the same"),
        ("zero bytes", "a.txt", "one", "\0", "new text must be UTF-8 without NUL"),
        ("half a character", "a.txt", "one", "\udc80", "new text must be UTF-8 without NUL"),
        ("too much", "big", "", "x" * 1_000_001, "file would be too large: big (1000001 bytes)"),
    ],
)
def test_edit_refuses(root: Path, what: str, path: str, old: str, new: str, text: str) -> None:
    (root / "aaa").write_text("aaa\n")
    before = Workspace(root).files()
    assert refused(lambda: Workspace(root).edit(path, old, new)) == text
    assert Workspace(root).files() == before
    assert sorted(os.listdir(root)) == ["a.txt", "aaa", "lib"]


def test_an_empty_old_text_makes_a_file_and_its_folders(workspace: Workspace, root: Path) -> None:
    assert workspace.edit("new/deep/file.py", "", "a\nb\n") == "    1→a\n    2→b"
    assert (root / "new/deep/file.py").read_text() == "a\nb\n"
    assert os.listdir(root / "new/deep") == ["file.py"]


def test_an_edit_keeps_the_files_mode_and_replaces_it_whole(workspace: Workspace, root: Path) -> None:
    (root / "a.txt").chmod(0o750)
    os.link(root / "a.txt", root.parent / "hard")
    with (root / "a.txt").open() as reader:
        workspace.edit("a.txt", "one", "1")
        assert reader.read() == "one\ntwo\nthree\n", "who reads meanwhile sees the old file whole"
    assert stat.S_IMODE((root / "a.txt").stat().st_mode) == 0o750
    assert (root.parent / "hard").read_text() == "one\ntwo\nthree\n", "another name of the file outside is left alone"


# -- paths --------------------------------------------------------------------------------------------------------------

OUTSIDE = [
    "../outside.txt",
    "lib/../../outside.txt",
    "/etc/passwd",
    "{root}/a.txt",
    "lib/..",
    "..",
    "/",
    "//a.txt",
    "./../outside.txt",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_tool_takes_the_path(workspace: Workspace, root: Path, path: str) -> None:
    path = path.format(root=root)
    for action in (
        lambda: workspace.read(path),
        lambda: workspace.edit(path, "outside", "changed"),
        lambda: workspace.edit(path, "", "new"),
        lambda: workspace.grep("", path),
    ):
        assert refused(action).startswith("outside the workspace: ")
    assert (root.parent / "outside.txt").read_text() == "outside\n"


@pytest.mark.parametrize(
    ("what", "link", "target", "path"),
    [
        ("to a file outside", "link", "../outside.txt", "link"),
        ("to a file by its absolute path", "link", "/etc/passwd", "link"),
        ("to a folder outside", "link", "../outside", "link/a.txt"),
        ("to a file inside", "link", "a.txt", "link"),
        ("to itself", "link", "link", "link"),
        ("to nothing", "link", "../new.txt", "link"),
        ("to a folder outside, deeper", "lib/link", "../../outside", "lib/link/a.txt"),
        ("to the open files of a process", "link", "/proc/self/fd", "link/0"),
    ],
)
def test_no_tool_follows_a_link(workspace: Workspace, root: Path, what: str, link: str, target: str, path: str) -> None:
    (root / link).symlink_to(target)
    for action in (
        lambda: workspace.read(path),
        lambda: workspace.edit(path, "outside", "changed"),
        lambda: workspace.edit(path, "", "new"),
        lambda: workspace.grep("", path),
    ):
        text = refused(action)
        assert text.startswith(("symbolic link refused", "not a directory", "file exists"))
    assert workspace.grep("outside|root") == "no matches"
    assert list(workspace.files()) == ["a.txt", "lib/b.py"]
    assert (root.parent / "outside.txt").read_text() == "outside\n"
    assert (root.parent / "outside" / "a.txt").read_text() == "outside\n"
    assert not (root.parent / "new.txt").exists()


@pytest.mark.parametrize("what", ["the file", "its folder"])
def test_a_link_swapped_in_during_a_thousand_edits_changes_nothing_outside(
    workspace: Workspace, root: Path, what: str
) -> None:
    name = "sub" if what == "its folder" else "sub/a.txt"
    target = "../outside" if what == "its folder" else "../../outside/a.txt"
    (root / "sub").mkdir()
    (root / "sub" / "a.txt").write_text("inside\n")
    (root / "aside").symlink_to(target) if what == "its folder" else (root / "sub" / "aside").symlink_to(target)
    aside = root / "aside" if what == "its folder" else root / "sub" / "aside"
    done = threading.Event()
    flips = 0

    def flip() -> None:
        nonlocal flips
        while not done.is_set():
            # The real thing and the link change places, by way of a third name.
            try:
                os.rename(root / name, root / "third")
                os.rename(aside, root / name)
                os.rename(root / "third", aside)
                flips += 1
            except OSError:
                continue

    thread = threading.Thread(target=flip)
    thread.start()
    done_well = 0
    try:
        for n in range(1000):
            for old in ("inside", "outside", "changed"):
                try:
                    workspace.edit("sub/a.txt", old, f"changed {n}" if old != "changed" else "inside")
                    done_well += 1
                except ToolError:
                    pass
            try:
                assert "outside" not in workspace.read("sub/a.txt")
                assert "outside" not in workspace.grep("", "sub")
            except ToolError:
                pass
    finally:
        done.set()
        thread.join()
    assert flips > 10 and done_well > 0, "the race took place"
    assert (root.parent / "outside" / "a.txt").read_text() == "outside\n"
    assert os.listdir(root.parent / "outside") == ["a.txt"]


def test_what_is_no_regular_file_is_refused_at_once(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(root / "fifo")
    monkeypatch.chdir(root)  # a socket's path may have 107 bytes
    names = ["fifo", "socket"]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        if os.geteuid() == 0:
            os.mknod(root / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
            names.append("zero")
        started = time.monotonic()
        for name in names:
            for action in (
                lambda name=name: workspace.read(name),
                lambda name=name: workspace.edit(name, "a", "b"),
                lambda name=name: workspace.grep("a", name),
            ):
                assert refused(action) == f"not a regular file: {name}"
            assert refused(lambda name=name: workspace.edit(name, "", "b")) == f"file exists: {name}"
        assert workspace.grep("one") == "a.txt:1:one"
        assert list(workspace.files()) == ["a.txt", "lib/b.py"]
        assert time.monotonic() - started < 1


def test_the_root_may_itself_be_reached_through_a_link(root: Path) -> None:
    (root.parent / "link").symlink_to(root)
    assert Workspace(root.parent / "link").read("a.txt", 1, 1) == "    1→one"


# -- grep ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("t", ".", "a.txt:2:two\na.txt:3:three\nlib/b.py:2:    return 1"),
        ("^t", ".", "a.txt:2:two\na.txt:3:three"),
        ("t", "lib", "lib/b.py:2:    return 1"),
        ("t", "./lib//b.py", "lib/b.py:2:    return 1"),
        (r"f\(\)", "", "lib/b.py:1:def f():"),
        (r"e$", "a.txt", "a.txt:1:one\na.txt:3:three"),
        ("(?i)ONE", ".", "a.txt:1:one"),
        ("nothing", ".", "no matches"),
    ],
)
def test_grep_finds(workspace: Workspace, pattern: str, path: str, found: str) -> None:
    assert workspace.grep(pattern, path) == found


@pytest.mark.parametrize(
    ("pattern", "path", "beginning"),
    [
        ("(", ".", "bad pattern: missing ), unterminated"),
        ("*", ".", "bad pattern: nothing to repeat"),
        ("(?<=a+", ".", "bad pattern: "),
        ("x" * 1001, ".", "bad pattern: longer than 1000 characters"),
        ("(" * 999, ".", "bad pattern: "),
        ("x", "nowhere", "no such file: nowhere"),
        ("x", "lib/x", "no such file: lib/x"),
    ],
)  # fmt: skip
def test_grep_refuses(workspace: Workspace, pattern: str, path: str, beginning: str) -> None:
    assert refused(lambda: workspace.grep(pattern, path)).startswith(beginning)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|aa)+$", "(a*)*b", "(.*a){25}$", "^(([a-z])+.)+[A-Z]([a-z])+$", r"(\w+\s?)*!"]
)
def test_a_catastrophic_pattern_ends(root: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "GREP_SECONDS", 0.3)
    (root / "a").write_text("a" * 40 + "!b\n" + "a" * 5000 + "c\n")
    started = time.monotonic()
    with suppress(ToolError):
        Workspace(root).grep(pattern)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "pattern",
    [
        "((a{1,1000}){1,1000}){1,1000}",
        "(?:(?:(?:a{99}){99}){99}){99}",
        "a{4000000000}",
        "(?:" * 300 + "a" + ")+" * 300,
        "[a-z&&[^b]]",
        "(?R)",
        r"\p{L}{9999}",
    ],
)
def test_a_pattern_that_is_large_to_compile_ends(workspace: Workspace, pattern: str) -> None:
    started = time.monotonic()
    with suppress(ToolError):
        workspace.grep(pattern)
    assert time.monotonic() - started < 3


def test_a_pattern_that_takes_too_long_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "GREP_SECONDS", 0.3)
    (root / "a").write_text("a" * 40 + "!\n")
    assert refused(lambda: Workspace(root).grep("(a|aa)+$")).startswith("search takes more than 0.3 s")


def test_grep_skips_git_and_files_come_sorted(workspace: Workspace, root: Path) -> None:
    for name in (".git/config", "b/x", "b.txt", "b-c/x", ".hidden", "lib/.git/x"):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text("one\n")
    names = [line.split(":")[0] for line in workspace.grep("one").splitlines()]
    assert names == [".hidden", "a.txt", "b-c/x", "b.txt", "b/x"] == sorted(names)
    assert list(workspace.files()) == sorted(workspace.files()) == sorted([*names, "lib/b.py"])


def test_grep_looks_into_what_programs_made_only_when_told_to(workspace: Workspace, root: Path) -> None:
    made = (".venv", "venv", "node_modules", "__pycache__", "runs/demo", "runs/d24", "app/node_modules", ".mypy_cache")
    for folder in made:
        (root / folder).mkdir(parents=True)
        (root / folder / "x.py").write_text("one\n")
    for sign in (".venv/pyvenv.cfg", "venv/pyvenv.cfg", "runs/demo/config/0.yaml", "runs/d24/config/12.yaml"):
        (root / sign).parent.mkdir(exist_ok=True)
        (root / sign).write_text("")
    (root / "app" / "runs").write_text("one\n")  # a file
    assert [line.split(":")[0] for line in workspace.grep("one").splitlines()] == ["a.txt", "app/runs"]
    assert workspace.grep("one", "app/node_modules") == "app/node_modules/x.py:1:one"
    assert workspace.grep("one", "venv") == "venv/x.py:1:one"
    assert workspace.grep("one", "runs") == "runs/d24/x.py:1:one\nruns/demo/x.py:1:one"
    assert workspace.grep("one", "runs/demo") == "runs/demo/x.py:1:one"


def test_grep_looks_into_a_user_s_own_folders_whatever_they_are_called(workspace: Workspace, root: Path) -> None:
    own = ["app/config/0.yaml", "app/runs/config/base.yaml", "app/runs/store/config/base.yaml", "app/runs/x.py"]
    own += ["runs/__init__.py", "runs/kept/config", "venv/make.py"]
    for name in own:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("one\n")
    assert [line.split(":")[0] for line in workspace.grep("one").splitlines()] == ["a.txt", *own]


def test_a_folder_without_end_is_searched_to_a_depth(workspace: Workspace, root: Path) -> None:
    here = os.open(root, os.O_RDONLY)
    for _ in range(500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert workspace.grep("one") == "a.txt:1:one"
    assert refused(lambda: workspace.read("d/" * 501 + "x")).startswith("no such file: d/d/")


def test_grep_cuts_a_long_answer(root: Path) -> None:
    (root / "long").write_text("x\n" * 100_000)
    text = Workspace(root, Limits(output_bytes=1000)).grep("x", "long")
    assert len(text) < 1100 and text.endswith("more bytes not shown]")


def test_names_that_cannot_be_shown_are_left_out(workspace: Workspace, root: Path) -> None:
    for name in (b"new\nline", b"\xff\xfe", b"bell\x07"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_text("one\n")
    assert workspace.grep("one") == "a.txt:1:one"
    assert list(workspace.files()) == ["a.txt", "lib/b.py"]


# -- bash ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(root: Path) -> Workspace:
    if best_grade() is Grade.NONE:
        pytest.skip("this machine has no sandbox")
    return Workspace(root, Limits(wall_seconds=1, output_bytes=50))


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("cat a.txt", "one\ntwo\nthree\n"),
        ("true", ""),
        ("exit 3", "error: exit status 3\n"),
        ("echo so far; exit 3", "error: exit status 3\nso far\n"),
        ("echo so far; sleep 9", "error: timed out after 1 s\nso far\n"),
        ("yes | head -c 60; exit 1", "error: exit status 1\n" + "y\n" * 25 + "\n[output cut]"),
    ],
)
def test_bash_answers(shell: Workspace, command: str, answer: str) -> None:
    assert shell.bash(command) == answer


def test_what_bash_makes_the_other_tools_see(shell: Workspace, root: Path) -> None:
    shell.bash("mkdir made && echo hello > made/file")
    assert shell.edit("made/file", "hello", "bye") == "    1→bye"
    assert shell.bash("cat made/file") == "bye\n"
    assert shell.bash("echo 2 >> made/file && chmod 700 made") == ""
    assert shell.grep("2") == "made/file:2:2"


def test_bash_is_refused_where_nothing_holds_it(root: Path) -> None:
    assert "--unsafe-bash" in refused(lambda: Workspace(root, grade=Grade.NONE).bash("true"))
    assert Workspace(root, grade=Grade.NONE, unsafe_bash=True).bash("echo ok") == "ok\n"


# -- whatever comes -----------------------------------------------------------------------------------------------------


def test_nothing_but_tool_errors_comes_of_random_calls(root: Path) -> None:
    workspace = Workspace(root)
    (root / "link").symlink_to("..")
    os.mkfifo(root / "fifo")
    random_ = random.Random(0)
    pieces = [
        "a.txt",
        "lib",
        "..",
        ".",
        "/",
        "",
        "link",
        "fifo",
        "\0",
        "\ud800",
        "ä",
        "b.py",
        "x" * 256,
        "\n",
        "outside.txt",
    ]
    texts = ["", "one", "t", "\r\n", "\n", "\0", "(", "\ud800", "(?P<a>b)", "\\", "return", "ä"]
    for _ in range(3000):
        path = "/".join(random_.choices(pieces, k=random_.randint(1, 3)))
        old, new = random_.choices(texts, k=2)
        action = random_.choice(
            [
                lambda p=path: workspace.read(
                    p, random_.choice([None, 0, 1, 5, -3]), random_.choice([None, 0, 1, 10**9])
                ),
                lambda p=path, o=old, n=new: workspace.edit(p, o, n),
                lambda p=path, o=old: workspace.grep(o, p),
            ]
        )
        try:
            assert isinstance(action(), str)
        except ToolError as error:
            str(error).encode()
    assert sorted(os.listdir(root.parent)) == ["outside", "outside.txt", "workspace"]
    assert (root.parent / "outside.txt").read_text() == "outside\n"
