"""Chance, with names: what a family draws its instances from."""

import random
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

from nanocode.tasks.operations import OPERATIONS, Operation
from nanocode.tasks.words import Namer, Split

TRAIN_LAYOUTS = ("bare", "constant", "import", "comment")
HELD_OUT_LAYOUTS = ("docstring", "class")
# What people say around a request; none of it changes what is asked.
OPENERS = ("", "", "", "", "Please help: ", "Hi! ", "Hey, ", "Next: ", "Now ", "One thing: ")
CLOSERS = ("", "", "", "", " Thanks!", " Thank you.", " That is all.")


@dataclass(frozen=True)
class Novelty:
    """What an instance has that training never had. Instances themselves are always new: their seeds differ."""

    words: bool = False
    """Identifiers, file names and the layout of files come from the held-out split."""
    phrasings: bool = False


class Draw:
    """One instance's source of chance; equal seeds give equal instances."""

    def __init__(self, seed: str, novelty: Novelty) -> None:
        self.dice = random.Random(seed)
        self._novelty = novelty
        split: Split = "held-out" if novelty.words else "train"
        self.names = Namer(self.dice, split)

    def phrase(self, family: str, **values: object) -> str:
        """A request of this family."""
        known = phrasings()[family]["held_out" if self._novelty.phrasings else "train"]
        text = self.dice.choice(known).format(**values)
        if self._novelty.phrasings:
            return text
        opener = self.dice.choice(OPENERS)
        # `Now Fix it` is not how one writes; but a request may begin with code, whose case matters.
        if opener and not opener.endswith((": ", "! ")) and text[0].isupper() and text[:2] != "I ":
            text = text[0].lower() + text[1:]
        return opener + text + self.dice.choice(CLOSERS)

    def operation(self, unary: bool | None = None) -> Operation:
        """What a function computes."""
        return self.dice.choice([one for one in OPERATIONS if unary in (None, one.unary)])

    def parameters(self, operation: Operation) -> dict[str, str]:
        """Names for its parameters."""
        names = {"a": self.names.word()}
        return names if operation.unary else {**names, "b": self.names.word()}

    def module(self, *functions: str) -> str:
        """A file with these functions, in one of the layouts of the split."""
        layout = self.dice.choice(HELD_OUT_LAYOUTS if self._novelty.words else TRAIN_LAYOUTS)
        body = "\n\n".join(function.rstrip("\n") + "\n" for function in functions)
        word = self.names.word
        match layout:
            case "constant":
                return f"{word().upper()} = {self.dice.randint(2, 99)}\n\n{body}"
            case "import":
                return f"import {self.dice.choice(('os', 're', 'sys', 'json', 'math', 'time'))}\n\n{body}"
            case "comment":
                return f"# {word()} {word()}\n{body}"
            case "docstring":
                return f'"""The {word()} of a {word()}."""\n\n{body}'
            case "class":
                return f"class {word().capitalize()}:\n    {word()} = {self.dice.randint(2, 99)}\n\n\n{body}"
        return body

    def brief(self, *functions: str) -> str:
        """The same with as little around them as the split has."""
        body = "\n\n".join(functions)
        return f'"""The {self.names.short()}."""\n\n{body}' if self._novelty.words else body

    def function(self, name: str | None = None) -> str:
        """A small function that works, to stand beside the one that matters."""
        operation = self.operation()
        return function(name or self.names.function(), operation, self.parameters(operation))


def function(name: str, operation: Operation, parameters: dict[str, str], documented: bool = False) -> str:
    """The source of a function that computes the operation."""
    head = f"def {name}({', '.join(parameters.values())}):\n"
    says = f'    """Return {operation.words.format(**parameters)}."""\n' if documented else ""
    return f"{head}{says}    return {operation.code.format(**parameters)}\n"


@cache
def phrasings() -> dict[str, dict[str, list[str]]]:
    """How users ask, by family and split."""
    text = resources.files("nanocode.tasks").joinpath("phrasings.yaml").read_text()
    found: dict[str, dict[str, list[str]]] = yaml.safe_load(text)
    return found
