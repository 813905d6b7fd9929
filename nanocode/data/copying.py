"""Rows to learn copying from: a random span, repeated to the end of the row. Pure.

In text, what has to be copied is rare and mostly can be guessed; here nothing else helps. Half of the spans are random
tokens, half are pieces of the row they replace, so that the model learns to copy words as well as noise.
"""

import numpy as np
import numpy.typing as npt

SHORTEST, LONGEST = 12, 120
"""Tokens of a span: from a name to a file of a tiny workspace."""


def with_copies(
    rows: npt.NDArray[np.int32], first: int, seed: int, share: float, bos: int, ordinary: range
) -> npt.NDArray[np.int32]:
    """The rows [B, T+1] with about `share` of them replaced. Row i is number `first + i` of the endless order of
    training, and that number alone decides its fate: so batches do not depend on the number of hosts."""
    out = rows.copy()
    for place, row in enumerate(out):
        dice = np.random.default_rng((seed, 0xC0B1, first + place))
        if dice.random() >= share:
            continue
        length = int(dice.integers(SHORTEST, min(LONGEST, len(row) // 2) + 1))
        span = dice.integers(ordinary.start, ordinary.stop, length)
        if dice.random() < 0.5:
            start = int(dice.integers(1, len(row) - length + 1))
            span = np.where(row[start : start + length] == bos, span, row[start : start + length])
        row[0], row[1:] = bos, np.resize(span, len(row) - 1)
    return out
