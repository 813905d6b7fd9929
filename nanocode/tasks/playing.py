"""Playing tasks: a workspace of its own for each, the episodes side by side, and a verdict at the end."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nanocode.agent.conversation import Conversation, Message, Step, User
from nanocode.agent.episode import Limits, Policy, episode, play
from nanocode.agent.sandbox import Limits as SandboxLimits
from nanocode.agent.soul import PERMISSION
from nanocode.agent.tools import Call
from nanocode.agent.workspace import Workspace
from nanocode.tasks.task import Task, Verdict, judge

# What a task may take of the machine: small ones, whose output has to fit a small context too.
SANDBOX = SandboxLimits(wall_seconds=5, cpu_seconds=5, output_bytes=2_000)
SHOWN_AS = "/workspace"
"""A temporary folder's name would be chance in what a model reads, and so in what it says."""
YES = ("Yes.", "Yes, go on.", "Yes, please.", "OK.", "Sure.", "You may.")


@dataclass(frozen=True)
class Attempt:
    """A task as somebody did it."""

    task: Task
    messages: list[Message]
    verdict: Verdict


def attempts(
    policy: Policy,
    tasks: Sequence[Task],
    limits: Limits = Limits(),  # noqa: B008  (immutable)
    unsafe_bash: bool = False,
) -> list[Attempt]:
    """Every task played to its end by the policy, with really executed tools, and judged."""
    with ExitStack() as open_folders:
        workspaces = []
        for task in tasks:
            folder = open_folders.enter_context(tempfile.TemporaryDirectory(prefix="nanocode-"))
            workspace = Workspace(Path(folder), SANDBOX, unsafe_bash=unsafe_bash, shown_as=SHOWN_AS)
            for path, text in task.files.items():
                workspace.put(path, text)
            workspaces.append(workspace)
        acting = [
            episode(workspace, task.prompt, partial(_approves, task), agreeable, limits)
            for task, workspace in zip(tasks, workspaces, strict=True)
        ]
        found = []
        for task, workspace, played in zip(tasks, workspaces, play(policy, acting), strict=True):
            done = played.ended == "done"
            verdict = judge(task, played.messages, workspace) if done else Verdict(False, played.ended)
            found.append(Attempt(task, played.messages, verdict))
        return found


def _approves(task: Task, call: Call) -> bool:
    return call.tool not in task.rejects


def agrees(text: str) -> bool:
    """Whether a user said yes."""
    return text in YES


def agreeable(conversation: Conversation) -> str | None:
    """A user who gives permission when asked for it, in one of several ways, and says nothing else."""
    last, request = conversation[-1], conversation[0]
    if not (isinstance(last, Step) and last.call is None and PERMISSION.search(last.text)):
        return None
    assert isinstance(request, User)
    return YES[sum(request.text.encode()) % len(YES)]
