"""A chat with a scripted speaker: some of it through a pseudo-terminal, as a user has it, the rest in this process."""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from pexpect import fdpexpect
from rich.console import Console

from jobs.chat import Chat, chat
from jobs.sample_project import FILES, PROMPTS
from nanocode.agent.conversation import Step, User, from_json
from nanocode.agent.sandbox import Grade, best_grade
from nanocode.tasks.draw import phrasings
from nanocode.tasks.words import NOUNS, VERBS, is_held_out
from tests.jobs.scripted_chat import Scripted, open_desk

FIX = "4"
ASKED = r"allow this (\w+)\?"
needs_sandbox = pytest.mark.skipif(best_grade() is Grade.NONE, reason="commands run only where something holds them")


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        self.workspace, self.state = folder / "workspace", folder / "state"
        self.workspace.mkdir(exist_ok=True)
        environment = {**os.environ, "XDG_STATE_HOME": str(self.state), "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"}
        self.log = io.StringIO()
        ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (50, 120))
        # No fork in Python: jax's threads, if other tests have started them, would not survive it.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.scripted_chat", str(self.workspace)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self.child = fdpexpect.fdspawn(ours, encoding="utf-8", timeout=20)
        self.child.logfile_read = self.log
        self.sees("Ctrl-D leaves")
        self.sees("› ")

    def sees(self, pattern: str) -> str:
        try:
            self.child.expect(pattern)
        except pexpect.TIMEOUT:
            raise AssertionError(f"no {pattern!r} in {self.log.getvalue()[-2000:]!r}") from None
        match = self.child.match
        assert not isinstance(match, type) and match is not None
        return match[match.lastindex or 0]  # type: ignore[index]

    def types(self, text: str) -> None:
        self.child.send(text)

    def leaves(self) -> None:
        self.child.expect(pexpect.EOF)
        assert self.process.wait(10) == 0

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.child.close()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    one = Terminal(tmp_path)
    yield one
    one.close()


@needs_sandbox
def test_a_user_allows_denies_and_allows_for_good(terminal: Terminal) -> None:
    assert any(grade in terminal.log.getvalue() for grade in ("bubblewrap", "Landlock"))
    terminal.types(f"{FIX}\ry")  # typed ahead: what comes before a question is no answer to it
    assert terminal.sees(ASKED) == "Bash"
    time.sleep(0.2)
    terminal.types("/clear\ra\r\r")  # nothing of that is an answer
    time.sleep(0.2)
    assert not (terminal.workspace / "__pycache__").exists()
    terminal.types("n\r")
    terminal.sees("rejected by user")
    assert terminal.sees(ASKED) == "Edit"
    assert (terminal.workspace / "planet.py").read_text() == FILES["planet.py"]
    terminal.types("y\r")
    assert terminal.sees(ASKED) == "Bash"
    assert "number + 1" in (terminal.workspace / "planet.py").read_text()
    terminal.types("always\r")
    terminal.sees("allowed from now on")
    terminal.sees("Fixed")
    terminal.sees("› ")
    terminal.types("5\r")
    terminal.sees("signal 84")  # without a question
    terminal.sees("› ")  # before that, Ctrl-D is lost
    terminal.types("\x04")
    terminal.leaves()


@needs_sandbox
def test_ctrl_c_stops_speech_commands_and_questions_but_not_the_session(terminal: Terminal) -> None:
    terminal.types("slow\r")
    terminal.sees("word3 ")
    terminal.types("\x03")
    terminal.sees("stopped")
    terminal.types("sleep\r")
    terminal.sees(ASKED)
    terminal.types("y\r")
    time.sleep(0.5)
    began = time.monotonic()
    terminal.types("\x03")
    terminal.sees("stopped")
    assert time.monotonic() - began < 10
    terminal.types("sleep\r")
    terminal.sees(ASKED)
    terminal.types("\x03")
    terminal.sees("stopped")
    terminal.types("seen\r")
    terminal.sees("I see 11 messages")  # every turn was closed
    terminal.sees("› ")
    terminal.types("\x03")
    terminal.sees("again")
    terminal.types("\x03")
    terminal.leaves()


def test_control_sequences_never_reach_the_terminal(terminal: Terminal) -> None:
    terminal.types("hostile\r")
    terminal.sees(ASKED)
    terminal.types("n\r")
    terminal.sees("red")
    terminal.sees("› ")  # before that, Ctrl-D is lost
    terminal.types("\x04")
    terminal.leaves()
    seen = terminal.log.getvalue()
    assert "safe \\x1b[2K\\x1b[1A\\u202e hidden" in seen
    assert "\x1b]0;title" not in seen and "\u202e" not in seen and "\x9b" not in seen


def test_what_was_typed_is_there_in_the_next_session(terminal: Terminal, tmp_path: Path) -> None:
    terminal.types("remember me\r")
    terminal.sees("do not know")
    terminal.sees("› ")  # before that, Ctrl-D is lost
    terminal.types("\x04")
    terminal.leaves()
    assert (terminal.state / "nanocode" / "history").stat().st_mode & 0o777 == 0o600
    again = Terminal(tmp_path)
    again.types("\x1b[A\r")
    again.sees("do not know")
    again.close()


Session = Callable[..., str]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Runs a chat over some lines, in which everything is allowed, and gives what was shown."""

    def run(*lines: str, context: int = 4000, between: Callable[[str], None] = lambda line: None) -> str:
        shown, left = io.StringIO(), list(lines)
        desk = open_desk(tmp_path, context, Console(file=shown, width=120), lambda call: "yes")

        def read() -> str:
            if not left:
                raise EOFError
            between(left[0])
            return left.pop(0)

        Chat(desk, read, PROMPTS).run()
        return shown.getvalue()

    return run


@needs_sandbox
def test_undo_puts_files_back_and_forgets_the_turn(session: Session, tmp_path: Path) -> None:
    shown = session("twice", "/undo", "create", "/undo", "/undo", "/tokens")
    assert (tmp_path / "rocket.py").read_text() == FILES["rocket.py"]
    assert not (tmp_path / "new.py").exists() and (tmp_path / "made").exists()
    assert "rocket.py is as it was" in shown and "new.py is gone again" in shown
    assert "what its commands did was not taken back" in shown
    assert "nothing to take back" in shown
    assert "(0 of 4,000 tokens, 0% of the context)" in shown


def test_undo_leaves_alone_what_the_user_has_changed_since(session: Session, tmp_path: Path) -> None:
    def change(line: str) -> None:
        if line == "/undo":
            (tmp_path / "new.py").write_text("mine\n")

    shown = session("create", "/undo", between=change)
    assert "new.py has changed since: left as it is" in shown
    assert (tmp_path / "new.py").read_text() == "mine\n"


def test_undo_keeps_permissions(session: Session, tmp_path: Path) -> None:
    def change(line: str) -> None:
        (tmp_path / "planet.py").chmod(0o755)

    session(FIX, "/undo", between=change)
    assert (tmp_path / "planet.py").read_text() == FILES["planet.py"]
    assert (tmp_path / "planet.py").stat().st_mode & 0o777 == 0o755


def test_a_saved_conversation_can_be_read_back(session: Session, tmp_path: Path) -> None:
    target = tmp_path / "said.json"
    shown = session("1", f"/save {target}", "/clear", "/save", f"/save {tmp_path}/no/such", "/nonsense")
    messages = from_json(json.loads(target.read_text()))
    assert messages[0] == User(PROMPTS[0])
    assert messages[-1] == Step("`combine_ticket` is defined in market.py, line 3.")
    assert "say where" in shown and "cannot write" in shown and "no command is called /nonsense" in shown


def test_clear_forgets_the_conversation(session: Session) -> None:
    assert "I see 1 messages" in session("1", "/clear", "seen")


def test_a_suggestion_begins_a_conversation_of_its_own(session: Session, tmp_path: Path) -> None:
    target, again = tmp_path / "said.json", tmp_path / "again.json"
    shown = session("look", "1", f"/save {target}", "/undo", f"/save {again}")
    assert "Each begins a conversation of its own" in shown
    assert from_json(json.loads(target.read_text()))[0] == User(PROMPTS[0])
    assert from_json(json.loads(again.read_text()))[0] == User("look")


def test_a_full_context_drops_the_oldest_results_with_a_note(session: Session) -> None:
    shown = session("look", "seen", context=400)
    assert "context is full" in shown
    assert "2 notes" in shown


def test_a_model_that_goes_in_circles_is_stopped(session: Session) -> None:
    assert "did not come to an end" in session("forever")


def test_results_are_shortened(session: Session, tmp_path: Path) -> None:
    shown = session("look")
    assert "8 lines" in shown and "def collect_parcel" not in shown


def test_the_sample_prompts_are_of_the_kind_that_is_trained_on() -> None:
    names = {"combine_ticket", "collect_parcel", "gather_silver", "test_planet.py", "rocket.py"}
    families = ("find", "explain", "rename", "fix", "command")
    for prompt, family in zip(PROMPTS, families, strict=True):
        values = [{"name": x, "old": x, "new": y, "test": x, "file": x} for x in names for y in names]
        assert any(one.format(**v) == prompt for one in phrasings()[family]["train"] for v in values), prompt


def test_the_sample_project_has_names_that_tasks_draw_for_training() -> None:
    text = " ".join([*FILES, *FILES.values(), *PROMPTS])
    for name in set(re.findall(r"\b[a-z]+_[a-z]+\b(?!\.py)", text)):
        verb, noun = name.split("_")
        assert verb in VERBS and noun in NOUNS and min(len(verb), len(noun)) > 5, name
        assert not is_held_out(verb) and not is_held_out(noun), name
    for name in FILES:
        noun = name.removesuffix(".py").removeprefix("test_")
        assert noun in NOUNS and not is_held_out(noun), name


def test_without_a_terminal_lines_are_read_and_nothing_is_allowed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from jobs import chat; from tests.jobs.scripted_chat import Scripted;"
        "sys.exit(chat.chat(Scripted(), Path(sys.argv[1]), False))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        input="create\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rejected by user" in done.stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", ["jobs.chat.open_workspace", "nanocode.agent.workspace.Workspace.put"])
def test_a_sample_project_that_cannot_be_set_up_leaves_no_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(broken, full)
    with pytest.raises(OSError, match="no space left"):
        chat(Scripted(), None, False)
    assert not list(tmp_path.iterdir())
