"""Rows to learn copying from."""

import numpy as np
import pytest

from nanocode.data.copying import LONGEST, SHORTEST, with_copies

BOS, ORDINARY = 0, range(11, 300)


def text_rows(count: int, length: int = 257) -> np.ndarray:
    """Documents whose tokens never repeat with any period, with a BOS here and there."""
    dice = np.random.default_rng(5)
    rows = dice.integers(ORDINARY.start, ORDINARY.stop, (count, length)).astype(np.int32)
    rows[:, 0] = BOS
    rows[::3, 100] = BOS
    return rows


def period(row: np.ndarray) -> int | None:
    """The shortest span that the row, but for its BOS, repeats to its end."""
    body = row[1:]
    return next((n for n in range(1, len(body) // 2 + 1) if (body[n:] == body[:-n]).all()), None)


@pytest.mark.parametrize("hosts", [2, 4])
def test_batches_do_not_depend_on_the_number_of_hosts(hosts: int) -> None:
    rows = text_rows(64)
    whole = with_copies(rows, 640, 7, 0.5, BOS, ORDINARY)
    share = len(rows) // hosts
    parts = [
        with_copies(rows[host * share : (host + 1) * share], 640 + host * share, 7, 0.5, BOS, ORDINARY)
        for host in range(hosts)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_about_the_share_of_rows_is_replaced_and_the_others_are_as_they_were() -> None:
    rows = text_rows(3000)
    before = rows.copy()
    found = with_copies(rows, 0, 0, 0.2, BOS, ORDINARY)
    np.testing.assert_array_equal(rows, before)
    changed = (found != rows).any(axis=1)
    assert changed.mean() == pytest.approx(0.2, abs=0.03)  # four deviations
    np.testing.assert_array_equal(found[~changed], rows[~changed])


def test_a_copied_row_is_one_span_of_ordinary_tokens_repeated_to_the_end() -> None:
    rows = text_rows(400)
    found = with_copies(rows, 0, 1, 0.999999, BOS, ORDINARY)
    periods = [period(row) for row in found]
    assert None not in periods
    lengths = np.asarray(periods)
    assert lengths.min() >= SHORTEST and lengths.max() <= LONGEST and len(set(periods)) > 50
    assert (found[:, 0] == BOS).all()
    assert np.isin(found[:, 1:], np.arange(ORDINARY.start, ORDINARY.stop)).all()


def test_half_of_the_spans_come_from_the_row_they_replace() -> None:
    rows = text_rows(400)
    found = with_copies(rows, 0, 1, 0.999999, BOS, ORDINARY)
    borrowed = 0
    for before, after in zip(rows, found, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(before, SHORTEST)
        borrowed += (windows == after[1 : SHORTEST + 1]).all(axis=1).any()
    assert 140 < borrowed < 240


def test_a_row_that_is_all_bos_is_replaced_by_ordinary_tokens() -> None:
    """Half of the spans are pieces of the row, and padding is no word."""
    found = with_copies(np.zeros((50, 65), np.int32), 0, 2, 0.999999, BOS, ORDINARY)
    assert (found[:, 1:] >= ORDINARY.start).all()


def test_another_seed_and_another_place_give_other_rows() -> None:
    rows = text_rows(50)
    several = [with_copies(rows, first, seed, 0.5, BOS, ORDINARY) for first, seed in ((0, 0), (0, 1), (50, 0))]
    assert all((several[0] != other).any() for other in several[1:])
