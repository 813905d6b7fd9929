"""A finite automaton over tokens that constrains decoding: from each state, which tokens may come, and where they lead.

`distance` is what makes generation end in time: with n tokens left, a token may be taken only if a stop state can be
reached from where it leads with n - 1 more. NumPy only: whoever builds tables needs no jax.

Axes: S states, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

NEVER = np.iinfo(np.int16).max
"""Distance of a state that reaches no stop; it is then unreachable itself."""


@dataclass(frozen=True)
class Automaton:
    next: np.ndarray  # int16 [S, V]: the state after a token, -1 where it is not allowed
    distance: np.ndarray  # int16 [S]: the fewest tokens from the state to a stop, 0 for a stop
    start: int
    stops: frozenset[int]

    @classmethod
    def build(cls, table: np.ndarray, start: int, stops: Iterable[int]) -> Self:
        """The automaton of a table [S, V], with its distances. What leads on from a stop is ignored.

        `ValueError` if the table, `start` or a stop is out of range, or a state that `start` reaches reaches no stop.
        """
        table, stops = np.asarray(table), frozenset(int(stop) for stop in stops)
        states = table.shape[0]
        if not 0 < states < NEVER:
            raise ValueError(f"{states} states: an automaton has 1 to {NEVER - 1}, states are int16")
        outside = [int(s) for s in (start, *stops, table.min(), table.max()) if not -1 <= s < states]
        if outside or start < 0 or -1 in stops:
            raise ValueError(f"state {(outside or [-1])[0]} is not one of the table's {states}: number them from 0")
        after = [
            np.flatnonzero(np.bincount(row[row >= 0], minlength=states)).tolist() if state not in stops else []
            for state, row in enumerate(table)
        ]
        before: list[list[int]] = [[] for _ in after]
        for state, successors in enumerate(after):
            for successor in successors:
                before[successor].append(state)
        distance = np.full(states, NEVER, np.int16)
        for state, count in _breadth_first(before, stops).items():
            distance[state] = min(count, NEVER)
        for state in _breadth_first(after, [start]):
            if distance[state] == NEVER:
                raise ValueError(f"state {state} is reached from the start but reaches no stop: give it a way out")
        return cls(np.ascontiguousarray(table, np.int16), distance, int(start), stops)

    def walk(self, tokens: Iterable[int], state: int | None = None) -> int:
        """The state after `tokens` (from `start`, if no state is given); -1 once one of them is not allowed."""
        state = self.start if state is None else state
        for token in tokens:
            if state < 0:
                break
            state = int(self.next[state, token])
        return state


def _breadth_first(edges: list[list[int]], sources: Iterable[int]) -> dict[int, int]:
    """The fewest edges from any source to each state that can be reached."""
    found = dict.fromkeys(sources, 0)
    level = list(found)
    while level:
        reached = dict.fromkeys(state for source in level for state in edges[source] if state not in found)
        count = found[level[0]] + 1
        found |= dict.fromkeys(reached, count)
        level = list(reached)
    return found
