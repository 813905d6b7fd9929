"""Controllers of one run on one host see each other, whatever the moment at which they come and go."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy.local.peers import Peers

RUN = "gs://bucket/run"
Begin = Callable[[], Peers]


@pytest.fixture
def ending() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: ExitStack) -> Begin:
    """Each has a descriptor of its own, so to the kernel's locks it is as if it were a process."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return lambda: ending.enter_context(Peers(RUN))


def test_one_that_begins_while_another_leaves_is_seen_by_a_third(begin: Begin) -> None:
    with Peers(RUN) as first:
        assert not first.leave(), "it is alone, and stops what runs"
        second = begin()
        assert second.there
        second.stay()
        assert begin().there, "the first is still at it"
    second.stay()
    third = begin()
    assert third.there
    assert third.leave(), "the second goes on"


def test_of_several_that_are_told_at_once_exactly_one_stops_what_runs(begin: Begin) -> None:
    first, second = begin(), begin()
    assert first.leave(), "the second has not left yet"
    assert not second.leave()
    late = begin()
    late.stay()
    assert late.leave(), "whoever stops what runs is still at it"
    second.stay()
    assert begin().there, "one that leaves keeps the whole lock until it has ended"
