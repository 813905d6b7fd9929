"""What a task is: a request, a workspace, a user who may say no, and a check that nobody can talk into a pass."""

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field

from nanocode.agent.conversation import Conversation, Result, Step
from nanocode.agent.workspace import Workspace

CHECKER = "nanocode_check.py"


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
    """A program, run in the sandbox in the workspace: exit 0 passes. The files of `restored` are put back before."""
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
    for command in _commands(task, workspace):
        done = workspace.sandbox.run(command)
        if done.timed_out or done.exit_code:
            said = "it takes too long" if done.timed_out else (done.output.strip() or f"exit status {done.exit_code}")
            # The folder's name is chance, and the same attempt should get the same verdict.
            said = said.splitlines()[-1].replace(f"{workspace.root}/", "")
            return Verdict(False, f"the check says {said[:200]}")
    return Verdict(True)


def _commands(task: Task, workspace: Workspace) -> Sequence[str]:
    """What is still to be run, with everything it needs put in place."""
    check = task.check
    for path in check.restored:
        workspace.put(path, task.files[path])
    if check.python is not None:
        workspace.put(CHECKER, check.python)
    return [
        *([f"python3 {CHECKER}"] if check.python is not None else []),
        *([check.bash] if check.bash is not None else []),
    ]
