"""Distances and refusals of automata, on tables small enough to see."""

import subprocess
import sys

import numpy as np
import pytest

from nanocode.generate.automaton import Automaton


def table(*rows: dict[int, int], vocab_size: int = 4) -> np.ndarray:
    """One row per state, token -> next state."""
    found = np.full((len(rows), vocab_size), -1)
    for state, row in enumerate(rows):
        for token, after in row.items():
            found[state, token] = after
    return found


def test_distance_is_the_fewest_tokens_to_a_stop() -> None:
    #  0 -> 1 -> 2 -> 3 (stop), and 0 -> 2 directly; 4 is reached by nobody and goes nowhere.
    automaton = Automaton.build(table({0: 1, 1: 2}, {0: 2, 1: 1}, {0: 3}, {0: 0}, {}), 0, [3])
    assert automaton.distance.tolist()[:4] == [2, 2, 1, 0]
    assert (automaton.next.dtype, automaton.distance.dtype) == (np.int16, np.int16)


def test_walking_follows_the_table_and_ends_at_a_forbidden_token() -> None:
    automaton = Automaton.build(table({0: 1, 1: 2}, {0: 2}, {}), 0, [2])
    assert automaton.walk([]) == 0
    assert automaton.walk([0]) == 1
    assert automaton.walk([0, 0]) == 2
    assert automaton.walk([0], state=1) == 2
    assert automaton.walk([0, 1, 0]) == -1


@pytest.mark.parametrize(
    ("rows", "start", "stops", "told"),
    [
        ([{0: 1, 1: 2}, {0: 1}, {}], 0, [2], "state 1 is reached from the start but reaches no stop"),
        ([{0: 1}, {}], 0, [], "state 0 is reached from the start but reaches no stop"),
        ([{0: 5}, {}], 0, [1], "state 5 is not one of the table's 2"),
        ([{0: 1}, {}], 2, [1], "state 2 is not one of the table's 2"),
        ([{0: 1}, {}], 0, [7], "state 7 is not one of the table's 2"),
    ],
)
def test_what_cannot_end_or_is_not_there_is_refused(rows: list, start: int, stops: list, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Automaton.build(table(*rows), start, stops)


def test_it_does_not_import_jax() -> None:
    program = "import sys, nanocode.generate.automaton; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
