"""Packing: nothing lost, nothing twice, hardly anything wasted."""

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode.data.packing import pack, waste

BOS = 0
DOCUMENTS = st.lists(st.lists(st.integers(1, 99), max_size=60), max_size=40)


def packed(documents: list[npt.NDArray[np.uint32]], context: int, buffer: int = 256) -> npt.NDArray[np.uint32]:
    return np.array(list(pack(documents, context, BOS, buffer)), np.uint32).reshape(-1, context + 1)


@given(documents=DOCUMENTS, context=st.integers(1, 24), buffer=st.integers(1, 9))
def test_every_token_is_a_target_exactly_once(documents: list[list[int]], context: int, buffer: int) -> None:
    rows = packed([np.array(document, np.uint32) for document in documents], context, buffer)
    targets = rows[:, 1:]
    assert Counter(targets[targets != BOS].tolist()) == Counter(token for document in documents for token in document)
    assert (rows[:, 0] == BOS).all()


@given(lengths=st.lists(st.integers(0, 70), max_size=40), context=st.integers(1, 24), buffer=st.integers(1, 9))
def test_segments_are_consecutive_runs_of_one_document(lengths: list[int], context: int, buffer: int) -> None:
    # Each token is unique, and a document's tokens are consecutive numbers.
    starts = np.cumsum([0, *lengths])
    documents = [np.arange(start, start + n, dtype=np.uint32) + 1 for start, n in zip(starts, lengths, strict=False)]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for row in packed(documents, context, buffer):
        segments = np.cumsum(row == BOS)
        for segment in range(1, segments[-1] + 1):
            tokens = row[segments == segment][1:].astype(int)
            assert (np.diff(tokens) == 1).all()
            assert len(set(owner[tokens - 1])) <= 1


@given(documents=DOCUMENTS, context=st.integers(1, 24), buffer=st.integers(1, 9))
def test_only_the_last_row_has_more_than_one_idle_slot(documents: list[list[int]], context: int, buffer: int) -> None:
    rows = packed([np.array(document, np.uint32) for document in documents], context, buffer)
    for row in rows[:-1]:
        assert waste(row[None], BOS) * row.size <= 1


@pytest.mark.parametrize("context", [256, 384, 1024, 2048])
def test_realistic_lengths_waste_under_one_percent(context: int) -> None:
    rng = np.random.default_rng(context)
    lengths = np.exp(rng.normal(6.2, 1.3, 3000)).astype(int)  # median 490 tokens, mean 1100
    rows = packed([np.ones(n, np.uint32) for n in lengths], context)
    assert waste(rows, BOS) < 0.01
    # Even with every BOS counted, which a piece needs, little is lost.
    assert (rows == BOS).mean() < 0.015


def test_waste_counts_padding_and_not_the_bos_of_a_piece() -> None:
    assert waste(np.array([[BOS, 1, BOS, 2]], np.uint32), BOS) == 0
    assert waste(np.array([[BOS, 1, BOS, BOS]], np.uint32), BOS) == 0.5
    assert waste(np.zeros((0, 4), np.uint32), BOS) == 0


def test_no_documents_make_no_rows() -> None:
    assert list(pack([], 8, BOS)) == []
    assert list(pack([[]], 8, BOS)) == []


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="contains the BOS token 0"):
        list(pack([[1, 0, 2]], 8, BOS))
    with pytest.raises(ValueError, match="context 0"):
        list(pack([[1]], 0, BOS))


@given(lengths=st.lists(st.integers(0, 24), max_size=40), context=st.integers(24, 60), buffer=st.integers(1, 9))
def test_whole_documents_are_never_cut_and_each_is_there_once(lengths: list[int], context: int, buffer: int) -> None:
    documents = [tuple(range(1 + 100 * n, 1 + 100 * n + length)) for n, length in enumerate(lengths)]
    found = []
    for row in pack(documents, context, BOS, buffer, whole=True):
        assert len(row) == context + 1 and row[0] == BOS
        starts = np.flatnonzero(row == BOS)
        found += [tuple(row[a + 1 : b].tolist()) for a, b in zip(starts, [*starts[1:], len(row)], strict=True)]
    assert sorted(one for one in found if one) == sorted(one for one in documents if one)


@pytest.mark.parametrize("seed", range(3))
def test_conversations_as_long_as_the_demos_fill_95_percent(seed: int) -> None:
    dice = np.random.default_rng(seed)
    lengths = np.clip(dice.gamma(4.0, 150 / 4.0, 8000).astype(int), 40, 383)
    assert lengths.mean() == pytest.approx(150, abs=5)
    rows = np.stack(list(pack([np.ones(n, np.uint32) for n in lengths], 384, BOS, 2000, whole=True)))
    assert waste(rows, BOS) < 0.05
