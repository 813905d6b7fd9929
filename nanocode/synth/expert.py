"""The built-in expert: a task's script, played as a policy, in the manner that the SOUL asks for."""

import re
from collections.abc import Generator, Sequence

from nanocode.agent.conversation import Conversation, Result, Step, User
from nanocode.agent.soul import PERMISSION, Soul
from nanocode.tasks.task import Script

Moves = Generator[Step, str, None]
# A word of prose: not a name, a path or something in backticks.
PROSE = re.compile(r"(?<![\w./`-])[A-Z][a-z]*(?![\w/`-]|\.\w)")


class Expert:
    """Plays one script; `manner` decides how. Raises whatever the script raises when the world is not as it thought."""

    def __init__(self, script: Script, soul: Soul) -> None:
        self._moves = in_manner(script(), soul)
        self._begun = False

    def __call__(self, conversations: Sequence[Conversation]) -> list[Step | None]:
        (conversation,) = conversations
        last = conversation[-1]
        if not self._begun:
            self._begun = True
            return [next(self._moves)]
        assert isinstance(last, Result | User)
        return [self._moves.send(last.text)]


def in_manner(moves: Moves, soul: Soul) -> Moves:
    """The same work in the SOUL's manner: asking before the first edit, in small letters, without a report."""
    may_edit = not soul.has("ask-first")
    said: str | None = None
    while True:
        try:
            step = moves.send(said) if said is not None else next(moves)  # type: ignore[arg-type]
        except StopIteration:
            return
        if step.call is not None and step.call.tool == "Edit" and not may_edit:
            answer = yield Step(f"May I change {step.call.arguments['path']}?")
            assert agrees(answer), answer
            may_edit = True
        said = yield Step(spoken(step.text, soul), step.call)


def spoken(text: str, soul: Soul) -> str:
    """A text in the SOUL's tone."""
    return PROSE.sub(lambda match: match[0].lower(), text) if soul.has("lowercase") else text


YES = ("Yes.", "Yes, go on.", "Yes, please.", "OK.", "Sure.", "You may.")


def agrees(text: str) -> bool:
    """Whether a user said yes."""
    return text in YES


def agreeable(conversation: Conversation) -> str | None:
    """A user who gives permission when asked for it, in one of several ways, and says nothing else."""
    last = conversation[-1]
    if not (isinstance(last, Step) and last.call is None and PERMISSION.search(last.text)):
        return None
    request = conversation[0]
    assert isinstance(request, User)
    return YES[sum(request.text.encode()) % len(YES)]
