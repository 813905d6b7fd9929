"""A chat with a scripted speaker, as a program: tests and people drive it through a terminal.

python -m tests.jobs.scripted_chat WORKSPACE [CONTEXT]
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from jobs import prompts
from jobs.chat import Chat
from jobs.prompts import ask_on_terminal
from jobs.sample_project import FILES, PROMPTS
from jobs.transcript import Transcript
from jobs.turn import Desk, open_workspace
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
        Step("", Call("Grep", {"pattern": "def add_margin"})),
        Step("`add_margin` is defined in price.py, line 3."),
    ],
    PROMPTS[3]: [
        bash("python3 test_level.py"),
        read("level.py"),
        edit("level.py", "    return list(range(1, level))", "    return list(range(1, level + 1))"),
        bash("python3 test_level.py"),
        Step("Fixed `count_level` in level.py. test_level.py passes."),
    ],
    PROMPTS[4]: [bash("python3 rocket.py"), Step("It prints `rocket 84`.")],
    "create": [edit("new.py", "", "x = 1\n", "I'll make it."), Step("Created new.py.")],
    "hostile": [
        Step("", Call("Bash", {"command": "echo safe \x1b[2K\x1b[1A\u202e hidden"})),
        Step("\x1b]0;title\x07\x1b[31mred\x9b5m"),
    ],
    "forever": [Step(f"{n} " * 3, Call("Read", {"path": "price.py"})) for n in range(100)],
    "sleep": [bash("sleep 30"), Step("Slept.")],
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
            yield from ("I see ", step := Step(f"I see {len(conversation)} messages, {notes} notes."))
            return
        done = sum(isinstance(message, Step) for message in conversation[place:])
        steps = SCRIPT.get(request, [Step("I do not know.")])
        step = steps[done]
        for word in step.text.split(" "):
            yield word + " "
        yield step


def main(folder: str, context: int = Scripted.context) -> None:
    speaker = Scripted()
    speaker.context = context
    workspace = open_workspace(Path(folder), 4096, unsafe_bash=False)
    for path, text in FILES.items():
        workspace.put(path, text)
    desk = Desk(
        speaker, workspace, Transcript(Console(highlight=False)), lambda call: ask_on_terminal(call, sys.stdout)
    )
    Chat(desk, prompts.make_prompt(), PROMPTS).run()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
