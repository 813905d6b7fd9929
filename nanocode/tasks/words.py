"""Names for generated code: words, invented words and random letters, split so that no held-out name was trained on.

A model that has met a word in training can know it; one that has not has to copy it. So a third of the training names
are words that nobody has met, and the held-out names are words that no training name contains.
"""

import builtins
import hashlib
import keyword
import random
import sys
from collections.abc import Callable
from importlib import resources
from typing import Literal

import yaml

Split = Literal["train", "held-out"]

HELD_OUT_SHARE = 0.25
# Of the training names: the rest are words of the list below.
INVENTED_SHARE = 0.58
RANDOM_SHARE = 0.12

_LISTS: dict[str, str] = yaml.safe_load(resources.files("nanocode.tasks").joinpath("words.yaml").read_text())
NOUNS, VERBS = tuple(_LISTS["nouns"].split()), tuple(_LISTS["verbs"].split())
RESERVED = {*keyword.kwlist, *dir(builtins), *sys.stdlib_module_names}
_CONSONANTS, _VOWELS, _LETTERS = "bdfgklmnprstvz", "aeiou", "abcdefghijklmnopqrstuvwxyz"


def is_held_out(word: str) -> bool:
    """Whether a word belongs to the held-out split, by its hash."""
    return hashlib.blake2b(word.encode(), digest_size=1).digest()[0] < 256 * HELD_OUT_SHARE


_BY_SPLIT = {
    split: (
        tuple(word for word in NOUNS if is_held_out(word) == held),
        tuple(word for word in VERBS if is_held_out(word) == held),
    )
    for split, held in (("train", False), ("held-out", True))
}


class Namer:
    """Draws names that do not repeat within one task."""

    def __init__(self, dice: random.Random, split: Split) -> None:
        self._dice, self._split = dice, split
        self._used: set[str] = set()

    def word(self) -> str:
        """One noun, an invented word or random letters."""
        return self._fresh(self._word)

    def short(self) -> str:
        """The shortest of a few words."""
        return min((self.word() for _ in range(4)), key=len)

    def function(self) -> str:
        """`verb_noun`, or sometimes one word or three."""
        return self._fresh(self._function)

    def file(self, extension: str = ".py") -> str:
        """A file name, one in three in a folder."""
        name = self.word() + extension
        return f"{self.word()}/{name}" if self._dice.random() < 1 / 3 else name

    def _fresh(self, draw: Callable[[], str]) -> str:
        """A name that contains no other name of the task, and that Python has no other use for."""
        while (name := draw()) in RESERVED or any(name in other or other in name for other in self._used):
            pass
        self._used.add(name)
        return name

    def _word(self) -> str:
        nouns, _ = _BY_SPLIT[self._split]
        kind = self._dice.random()
        if self._split == "held-out" or kind > INVENTED_SHARE + RANDOM_SHARE:
            return self._dice.choice(nouns)
        if kind < RANDOM_SHARE:
            return "".join(self._dice.choices(_LETTERS, k=self._dice.randint(3, 6)))
        word = self._invented(nouns)
        return self._word() if word in NOUNS or word in VERBS else word

    def _invented(self, nouns: tuple[str, ...]) -> str:
        """The head of one word and the tail of another, or syllables."""
        if self._dice.random() < 0.7:
            head, tail = self._dice.choice(nouns), self._dice.choice(nouns)
            return head[: self._dice.randint(2, 4)] + tail[-self._dice.randint(2, 4) :]
        syllables = self._dice.randint(2, 3)
        return "".join(self._dice.choice(_CONSONANTS) + self._dice.choice(_VOWELS) for _ in range(syllables))

    def _verb(self) -> str:
        _, verbs = _BY_SPLIT[self._split]
        if self._split == "held-out" or self._dice.random() > INVENTED_SHARE:
            return self._dice.choice(verbs)
        word = self._invented(verbs)
        return self._verb() if word in NOUNS or word in VERBS else word

    def _function(self) -> str:
        kind = self._dice.random()
        if kind < 0.15:
            return self._word()
        if kind < 0.9:
            return f"{self._verb()}_{self._word()}"
        return f"{self._verb()}_{self._word()}_{self._word()}"
