"""What a task is: a request, a workspace, a user who may say no, and a check that nobody can talk into a pass."""

import re
import secrets
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field

from nanocode.agent.conversation import Conversation, Result, Step
from nanocode.agent.workspace import ToolError, Workspace


class Check(BaseModel):
    """All of these have to hold. They are about the last message, and about the workspace that was left behind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer: tuple[str, ...] = ()
    """Regular expressions that the last message has to match, each somewhere."""
    files: dict[str, str] = {}
    """Files that have to hold this text; white space at the ends does not count."""
    unchanged: bool = False
    """No file may be added, changed or gone."""
    python: str | None = None
    """A program, run in the sandbox in the workspace, whose modules it may import: it passes when it comes to its end.
    The files of `restored` are put back before."""
    restored: tuple[str, ...] = ()
    """Files that the program relies on and that the agent has no business with, such as the failing test."""
    bash: str | None = None
    """A command, run in the sandbox in the workspace: exit 0 passes."""
    called: str | None = None
    """A tool that has to have been called, and rejected, exactly once."""


class Task(BaseModel):
    """One task; a line of a suite's JSONL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    family: str = "tasks"
    prompt: str
    files: dict[str, str] = {}
    check: Check = Field(default_factory=Check)
    rejects: tuple[str, ...] = ()
    """Tools whose calls the user rejects."""


Script = Callable[[], Generator[Step, str, None]]
"""How an expert solves a task: yields steps, is sent their results, and yields a step without a call at last."""


@dataclass(frozen=True)
class Scenario:
    """A generated task and an expert who can do it."""

    task: Task
    script: Script


@dataclass(frozen=True)
class Verdict:
    """Whether a task was done, and if not, what is wrong."""

    passed: bool
    reason: str = ""


def judge(task: Task, conversation: Conversation, workspace: Workspace) -> Verdict:
    """Whether the conversation and the workspace it left pass the task's check."""
    check = task.check
    last = conversation[-1] if conversation else None
    if not isinstance(last, Step) or last.call is not None:
        return Verdict(False, "no final message")
    for pattern in check.answer:
        if not re.search(pattern, last.text):
            return Verdict(False, f"the answer does not match {pattern}")
    if check.called is not None:
        calls = [
            after
            for before, after in pairwise(conversation)
            if isinstance(before, Step) and before.call is not None and before.call.tool == check.called
        ]
        if len(calls) != 1 or not isinstance(calls[0], Result):
            return Verdict(False, f"{check.called} was called {len(calls)} times, not once")
    if check.unchanged or check.files:
        left = workspace.files()
        if check.unchanged and left != task.files:
            return Verdict(False, "the workspace was changed")
        for path, text in check.files.items():
            if left.get(path, "").strip() != text.strip():
                return Verdict(False, f"{path} is not as it should be")
    try:
        for path in check.restored:
            workspace.put(path, task.files[path])
    except ToolError as error:  # a folder or a link stands in its place
        return Verdict(False, f"cannot be checked: {error}")
    # The mark is fresh, so that nothing the agent left can print it by leaving early.
    mark = secrets.token_hex(16)
    commands = [(_isolated(check.python, mark), mark)] if check.python is not None else []
    commands += [(check.bash, "")] if check.bash is not None else []
    for command, wanted in commands:
        done = workspace.sandbox.run(command)
        if done.timed_out or done.exit_code or wanted not in done.output:
            ended = f"exit status {done.exit_code}" if done.exit_code else "it did not come to its end"
            said = "it takes too long" if done.timed_out else (done.output.strip() or ended)
            # The folder's name is chance, and the same attempt should get the same verdict.
            said = said.splitlines()[-1].replace(f"{workspace.root}/", "")
            return Verdict(False, f"the check says {said[:200]}")
    return Verdict(True)


def _isolated(program: str, mark: str) -> str:
    """A command that runs the program and then prints the mark.

    No file of the workspace can stand in for it or for a module of Python's own: it comes by standard input, `-I` keeps
    the folder off the module path, and there the folder is last. It shares its process with the code that it calls, so
    code that searches the interpreter's memory for the mark can still fool it; code that exits or prints cannot.
    """
    return (
        f"python3 -I - 3>&1 >/dev/null <<'{mark}'\n"
        f"import sys\nsys.path.append('')\n{program}\nimport os\nos.write(3, b'{mark}')\n{mark}\n"
    )
