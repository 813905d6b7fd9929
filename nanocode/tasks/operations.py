"""What small functions compute: one table, from which code, its meaning in words, and cases to test it follow."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operation:
    """`{a}` and `{b}` stand for the parameters, in code and in words."""

    code: str
    words: str
    wrong: str
    """Code that somebody might have written by mistake, with another result on `cases`."""
    case: Callable[[random.Random], tuple[Any, ...]]
    """Arguments for a test, on which right and wrong differ."""

    def result(self, case: tuple[Any, ...]) -> Any:
        """What it gives for these arguments. (The code is of the table below, never a model's.)"""
        return eval(self.code.format(a="a", b="b"), {}, dict(zip("ab", case, strict=False)))  # noqa: S307

    @property
    def unary(self) -> bool:
        return "{b}" not in self.code


def _two(dice: random.Random) -> tuple[int, int]:
    small = dice.randint(2, 9)
    return small + dice.randint(1, 9), small


def _one(dice: random.Random) -> tuple[int]:
    return (dice.randint(3, 30),)


def _numbers(dice: random.Random) -> tuple[list[int]]:
    return (dice.sample(range(1, 40), 4),)


def _text(dice: random.Random) -> tuple[str]:
    return ("".join(dice.sample("abcdefghijk", 4)),)


OPERATIONS = (
    Operation("{a} + {b}", "the sum of {a} and {b}", "{a} - {b}", _two),
    Operation("{a} - {b}", "{a} minus {b}", "{b} - {a}", _two),
    Operation("{a} * {b}", "the product of {a} and {b}", "{a} + {b}", _two),
    Operation("{a} // {b}", "{a} divided by {b}, rounded down", "{a} % {b}", lambda d: (d.randint(20, 60), 3)),
    Operation("{a} % {b}", "the rest of {a} divided by {b}", "{a} // {b}", lambda d: (d.randint(20, 60), 3)),
    Operation("max({a}, {b})", "the larger of {a} and {b}", "min({a}, {b})", _two),
    Operation("min({a}, {b})", "the smaller of {a} and {b}", "max({a}, {b})", _two),
    Operation("{a} > {b}", "whether {a} is more than {b}", "{a} < {b}", _two),
    Operation("{a} == {b}", "whether {a} equals {b}", "{a} != {b}", _two),
    Operation("{a} * 2", "{a} doubled", "{a} + 2", _one),
    Operation("{a} * {a}", "the square of {a}", "{a} * 2", _one),
    Operation("-{a}", "{a} with the sign changed", "{a}", _one),
    Operation("{a} + 1", "{a} plus one", "{a} - 1", _one),
    Operation("len({a})", "the length of {a}", "len({a}) - 1", _numbers),
    Operation("sum({a})", "the total of {a}", "max({a})", _numbers),
    Operation("{a}[0]", "the first element of {a}", "{a}[1]", _numbers),
    Operation("{a}[-1]", "the last element of {a}", "{a}[0]", _numbers),
    Operation("sorted({a})", "{a} sorted", "list({a})", lambda d: ([d.randint(20, 30), *d.sample(range(1, 19), 3)],)),
    Operation("{a}[::-1]", "{a} reversed", "{a}[::1]", _text),
    Operation("{a}.upper()", "{a} in capital letters", "{a}.lower()", _text),
)
ON_ONE_NUMBER = tuple(one for one in OPERATIONS if one.case is _one)
