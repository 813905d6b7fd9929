"""The one episode loop: chat, synthesis, evaluation and, later, RL run it.

A policy is asked for the next step of some conversations at once (an engine decodes them as a batch; an endpoint or a
scripted expert takes them one by one). `episode` is the loop for one conversation, written as a generator, so that
whoever drives it decides how many run side by side.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nanocode.agent.conversation import Conversation, Message, Result, Step, User
from nanocode.agent.tools import REJECTED, Call, execute
from nanocode.agent.workspace import Workspace


class Policy(Protocol):
    """Whoever plays the assistant."""

    def __call__(self, conversations: Sequence[Conversation]) -> Sequence[Step | None]:
        """The next step of each; None when there is no room left for one."""
        ...


Approve = Callable[[Call], bool]
Reply = Callable[[Conversation], str | None]
"""What the user says after a turn; None: nothing more."""


@dataclass(frozen=True)
class Limits:
    """Where an episode ends, whatever the policy does."""

    steps: int = 16
    turns: int = 3


@dataclass
class Episode:
    """A conversation and how it ended."""

    messages: list[Message] = field(default_factory=list)
    ended: str = ""
    """`done`, or why not: `out of steps`, `out of context`."""


def always(call: Call) -> bool:
    """Approves every call."""
    return True


def silent(conversation: Conversation) -> str | None:
    """A user who says nothing more."""
    return None


def episode(
    workspace: Workspace,
    request: str,
    approve: Approve = always,
    reply: Reply = silent,
    limits: Limits = Limits(),
    history: Conversation = (),
) -> Generator[Conversation, Step | None, Episode]:
    """Yields the conversation whenever the assistant is to move, is sent its step, and returns the whole.

    `history` came before the request; it is part of what is yielded and returned.
    """
    said = Episode([*history, User(request)])
    turns = 1
    for _ in range(limits.steps):
        step = yield tuple(said.messages)
        if step is None:
            said.ended = "out of context"
            return said
        said.messages.append(step)
        if step.call is not None:
            said.messages.append(Result(execute(workspace, step.call) if approve(step.call) else REJECTED))
            continue
        answer = reply(said.messages) if turns < limits.turns else None
        if answer is None:
            said.ended = "done"
            return said
        turns += 1
        said.messages.append(User(answer))
    said.ended = "out of steps"
    return said


def play(policy: Policy, episodes: Sequence[Generator[Conversation, Step | None, Episode]]) -> list[Episode]:
    """All episodes to their ends, side by side: one call of the policy moves each that is still going."""
    finished: dict[int, Episode] = {}
    waiting = {place: next(one) for place, one in enumerate(episodes)}
    while waiting:
        places = list(waiting)
        for place, step in zip(places, policy([waiting[place] for place in places]), strict=True):
            try:
                waiting[place] = episodes[place].send(step)
            except StopIteration as stop:
                finished[place] = stop.value
                del waiting[place]
    return [finished[place] for place in range(len(episodes))]
