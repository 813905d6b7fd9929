"""Conversations of the built-in tasks' shape, drawn at random, and a tokenizer for them."""

import random

from nanocode.agent.conversation import Message, Result, Step, User
from nanocode.agent.tools import Call
from nanocode.text.tokenizer import Tokenizer, train

WORDS = (
    "def",
    "total",
    "return",
    "price",
    "the file",
    "<|assistant_start|>",
    "<|bos|>",
    "_",
    "é",
    "42",
    "\n    ",
    "x += 1",
)
TOKENIZER: Tokenizer = train([f"def {word}(x):\n    return {word} + 42\n" for word in WORDS] * 3, 320, 1, True)


def conversation(dice: random.Random) -> list[Message]:
    """One to two turns; each looks and changes up to twice before it ends."""

    def text(most: int = 5) -> str:
        return " ".join(dice.choices(WORDS, k=dice.randint(0, most)))

    found: list[Message] = []
    for _ in range(dice.randint(1, 2)):
        found.append(User("Fix " + text()))
        for _ in range(dice.randint(0, 2)):
            found.append(Step(text(2), Call("Edit", {"path": "a.py", "old": text(), "new": text()})))
            found.append(Result(text()))
        found.append(Step("Done " + text(3)))
    return found


def conversations(count: int, seed: int = 0) -> list[list[Message]]:
    dice = random.Random(seed)
    return [conversation(dice) for _ in range(count)]
