"""A chat with a scripted speaker, as a program: tests and people drive it through a terminal.

python -m tests.jobs.scripted_chat WORKSPACE
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rich.console import Console

from jobs import prompts
from jobs.chat import Chat
from jobs.sample_project import FILES, PROMPTS
from jobs.transcript import Transcript
from jobs.turn import Answer, Desk, open_workspace
from nanocode.agent.conversation import Conversation, Result, Step, User
from nanocode.agent.tools import Call


def read(path: str) -> Step:
    return Step("", Call("Read", {"path": path}))


def edit(path: str, old: str, new: str, text: str = "") -> Step:
    return Step(text, Call("Edit", {"path": path, "old": old, "new": new}))


def bash(command: str) -> Step:
    return Step("", Call("Bash", {"command": command}))


SCRIPT: dict[str, list[Step]] = {
    PROMPTS[0]: [
        Step("", Call("Grep", {"pattern": "def combine_ticket"})),
        Step("`combine_ticket` is defined in market.py, line 3."),
    ],
    PROMPTS[3]: [
        bash("python3 test_planet.py"),
        read("planet.py"),
        edit("planet.py", "    return list(range(1, number))", "    return list(range(1, number + 1))"),
        bash("python3 test_planet.py"),
        Step("Fixed `select_bridge` in planet.py. test_planet.py passes."),
    ],
    PROMPTS[4]: [bash("python3 rocket.py"), Step("It prints `signal 84`.")],
    "create": [edit("new.py", "", "x = 1\n", "I'll make it."), Step("Created new.py.")],
    "hostile": [
        Step("", Call("Bash", {"command": "echo safe \x1b[2K\x1b[1A\u202e hidden"})),
        Step("\x1b]0;title\x07\x1b[31mred\x9b5m"),
    ],
    "forever": [Step(f"{n} " * 3, Call("Read", {"path": "market.py"})) for n in range(100)],
    "sleep": [bash("sleep 30"), Step("Slept.")],
    "twice": [edit("rocket.py", "12", "13"), edit("rocket.py", "13", "14"), bash("touch made"), Step("Done.")],
    "look": [*[read("market.py")] * 3, Step("Looked.")],
}


class Scripted:
    """Says what stands in the script for the last request, slowly for `slow`."""

    label, context = "a script", 4000

    def count(self, conversation: Conversation) -> int:
        return sum(len(message.text) for message in conversation)

    def stream(self, conversation: Conversation) -> Iterator[str | Step]:
        place = max(n for n, message in enumerate(conversation) if isinstance(message, User))
        request = conversation[place].text
        if request == "slow":
            for word in range(1000):
                yield f"word{word} "
                time.sleep(0.05)
        if request == "seen":
            notes = sum(message == Result("[dropped to save room]") for message in conversation)
            seen = f"I see {len(conversation)} messages, {notes} notes."
            yield from (seen, Step(seen))
            return
        done = sum(isinstance(message, Step) for message in conversation[place:])
        steps = SCRIPT.get(request, [Step("I do not know.")])
        step = steps[done]
        for word in step.text.split(" "):
            yield f"{word} "
        yield step


def open_desk(folder: Path, context: int, console: Console, ask: Callable[[Call], Answer]) -> Desk:
    """A desk with the sample project in the folder."""
    speaker = Scripted()
    speaker.context = context
    workspace = open_workspace(folder, 4096, unsafe_bash=False)
    for path, text in FILES.items():
        workspace.put(path, text)
    return Desk(speaker, workspace, Transcript(console), ask)


def main(folder: str) -> None:
    # The leader of a new session gets the terminal, and with it Ctrl-C, by opening it.
    os.close(os.open(os.ttyname(0), os.O_RDWR))
    ask = partial(prompts.ask_on_terminal, stream=sys.stdout)
    desk = open_desk(Path(folder), Scripted.context, Console(highlight=False), ask)
    Chat(desk, prompts.make_prompt(), PROMPTS).run()


if __name__ == "__main__":
    main(sys.argv[1])
