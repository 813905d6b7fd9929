"""Names: of their split only, of use to Python, and never one inside another."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanocode.tasks.operations import OPERATIONS, Operation
from nanocode.tasks.words import NOUNS, RESERVED, VERBS, Namer, is_held_out

SEEDS = st.integers(0, 2**32)
KNOWN = {*NOUNS, *VERBS}


def drawn(seed: int, split: str) -> list[str]:
    namer = Namer(random.Random(seed), split)  # type: ignore[arg-type]
    return [name for _ in range(6) for name in (namer.word(), namer.function())]


@given(SEEDS)
@settings(max_examples=50)
def test_no_name_of_a_task_contains_another_or_means_something_to_python(seed: int) -> None:
    for split in ("train", "held-out"):
        names = drawn(seed, split)
        assert all(name.isidentifier() and name not in RESERVED for name in names)
        assert not [(a, b) for a in names for b in names if a is not b and a in b]


@given(SEEDS)
@settings(max_examples=50)
def test_training_names_hold_no_held_out_word_and_the_others_nothing_else(seed: int) -> None:
    for name in drawn(seed, "held-out"):
        assert all(part in KNOWN and is_held_out(part) for part in name.split("_"))
    for name in drawn(seed, "train"):
        assert not any(part in KNOWN and is_held_out(part) for part in name.split("_"))


@given(SEEDS)
@settings(max_examples=20)
def test_training_names_are_not_only_known_words(seed: int) -> None:
    """What a model cannot know it has to copy: with all names known it would never learn to."""
    parts = {part for more in range(10) for name in drawn(seed + more, "train") for part in name.split("_")}
    assert 0.3 < len(parts - KNOWN) / len(parts) < 0.9


def test_equal_dice_give_equal_names() -> None:
    assert drawn(3, "train") == drawn(3, "train") != drawn(4, "train")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.code)
def test_right_and_wrong_differ_on_every_case(operation: Operation) -> None:
    for seed in range(100):
        values = dict(zip("ab", operation.case(random.Random(seed)), strict=False))
        right, wrong = (eval(code.format(a="a", b="b"), {}, values) for code in (operation.code, operation.wrong))
        assert (right, type(right)) != (wrong, type(wrong))
        assert right != wrong


def test_no_two_operations_are_told_in_the_same_words() -> None:
    assert len({one.words for one in OPERATIONS}) == len({one.code for one in OPERATIONS}) == len(OPERATIONS)
