"""Best-fit packing of tokenized documents into rows of exactly T+1 tokens. Pure.

A document is cut into pieces of at most T tokens, each with a BOS in front. The row array is the whole format:
segment ids are cumsum(row == BOS), a target counts when it is not BOS, and padding is BOS. So every token of a
document is a target exactly once, and attention never crosses from one piece into another.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer] | Sequence[int]
Rows = npt.NDArray[np.unsignedinteger]


class Pool:
    """Pieces by length; among equals the one that came first leaves first."""

    def __init__(self) -> None:
        # The keys are (length, -order): ascending, so the last key of a length is its oldest piece.
        self._keys: list[tuple[int, int]] = []
        self._pieces: list[npt.NDArray[np.integer]] = []
        self._order = 0

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, piece: npt.NDArray[np.integer]) -> None:
        """Put a piece in."""
        self._order += 1
        key = (len(piece), -self._order)
        place = bisect_left(self._keys, key)
        self._keys.insert(place, key)
        self._pieces.insert(place, piece)

    def take(self, longest: int) -> npt.NDArray[np.integer] | None:
        """Take out the longest piece of at most `longest` tokens, if there is one."""
        place = bisect_left(self._keys, (longest + 1,)) - 1
        if place < 0:
            return None
        del self._keys[place]
        return self._pieces.pop(place)


def pieces(documents: Iterable[Ids], context: int, bos: int) -> Iterator[npt.NDArray[np.integer]]:
    """The documents' tokens in pieces of 1 to `context`; `ValueError` if a document contains BOS."""
    for document in documents:
        tokens = np.asarray(document)
        if len(tokens) == 0:
            continue
        if (tokens == bos).any():
            raise ValueError(f"a document contains the BOS token {bos}: encode it as text, without special tokens")
        for start in range(0, len(tokens), context):
            yield tokens[start : start + context]


def pack(
    documents: Iterable[Ids], context: int, bos: int, buffer: int = 256, whole: bool = False
) -> Iterator[npt.NDArray[np.uint32]]:
    """Rows of `context` + 1 tokens, in one pass, holding at most about `buffer` pieces.

    A row takes the longest piece that still fits. When none does, the longest is cut to fill the row and its rest
    goes back. A single slot that is left cannot hold BOS and a token: it gets a BOS. Only the last row is padded more.
    `whole`: nothing is cut, for conversations, and what no piece fits is padded.
    """
    if context < 1 or buffer < 1:
        raise ValueError(f"cannot pack into context {context} with a buffer of {buffer}: both start at 1")
    coming = pieces(documents, context, bos)
    pool = Pool()
    while True:
        row = np.full(context + 1, bos, np.uint32)
        start = 0
        while start < context:
            while len(pool) < buffer and (piece := next(coming, None)) is not None:
                pool.add(piece)
            space = context - start
            fitting = pool.take(space)
            if fitting is None:
                fitting = None if whole else pool.take(context)
                if fitting is None:
                    break
                pool.add(fitting[space:])
                fitting = fitting[:space]
            row[start + 1 : start + 1 + len(fitting)] = fitting
            start += 1 + len(fitting)
        if start == 0:
            return
        yield row


def waste(rows: Rows, bos: int) -> float:
    """Share of slots that are padding: each BOS that no token of its own row follows directly."""
    if rows.size == 0:
        return 0.0
    is_bos = rows == bos
    idle = is_bos[:, -1].sum() + (is_bos[:, :-1] & is_bos[:, 1:]).sum()
    return float(idle / rows.size)
