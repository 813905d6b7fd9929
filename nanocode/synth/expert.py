"""The built-in expert: a task's script, played as a policy, in the manner that the SOUL asks for."""

import re
from collections.abc import Generator, Sequence

from nanocode.agent.conversation import Conversation, Result, Step, User
from nanocode.agent.soul import Soul
from nanocode.tasks.playing import agrees
from nanocode.tasks.task import Script

Moves = Generator[Step, str, None]
# A word of prose: not a name, a path or something in backticks.
PROSE = re.compile(r"(?<![\w./`-])[A-Z][a-z]*(?![\w/`-]|\.\w)")


class Expert:
    """Plays one script in the SOUL's manner, or with a flaw: the name of a check that it breaks, one of `FLAWS`.

    Raises whatever the script raises when the world is not as it thought.
    """

    def __init__(self, script: Script, soul: Soul, flaw: str | None = None) -> None:
        self._moves = in_manner(script(), soul, flaw)
        self._begun = False

    def __call__(self, conversations: Sequence[Conversation]) -> list[Step | None]:
        (conversation,) = conversations
        last = conversation[-1]
        if not self._begun:
            self._begun = True
            return [next(self._moves)]
        assert isinstance(last, Result | User)
        return [self._moves.send(last.text)]


FLATTERY = ("Great question! ", "Certainly! ", "Good idea! ", "Sorry for the trouble. ")
SOLICITING = (" Let me know if you need anything else.", " Feel free to ask for more.", " Shall I do more?")
FLAWS = ("no-flattery", "no-soliciting", "act-at-once", "ask-first")


def in_manner(moves: Moves, soul: Soul, flaw: str | None = None) -> Moves:
    """The same work as the SOUL would have it done: asking before the first edit or not, in small letters or not."""
    asks = flaw == "act-at-once" or (soul.has("ask-first") and flaw != "ask-first")
    step = next(moves)
    while True:
        if step.call is not None and step.call.tool == "Edit" and asks:
            answer = yield Step(spoken(f"May I change {step.call.arguments['path']}?", soul))
            assert agrees(answer), answer
            asks = False
        text = spoken(step.text, soul)
        if step.call is None and flaw == "no-flattery":
            text = FLATTERY[len(text) % len(FLATTERY)] + text
        if step.call is None and flaw == "no-soliciting":
            text += SOLICITING[len(text) % len(SOLICITING)]
        said = yield Step(text, step.call)
        try:
            step = moves.send(said)
        except StopIteration:
            return


def spoken(text: str, soul: Soul) -> str:
    """A text in the SOUL's tone."""
    return PROSE.sub(lambda match: match[0].lower(), text) if soul.has("lowercase") else text
