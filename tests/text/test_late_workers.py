"""Workers of a corpus that come late, or lose their share for a while: they find work, and nothing is left undone."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanocode.config.settings import Source
from nanocode.data.shards import Index
from nanocode.run import leases
from nanocode.run.leases import Leases
from nanocode.storage.objects import LocalStore
from nanocode.text import corpus, units
from nanocode.text.mixture import Weighted, open_sources
from nanocode.text.sources import Unit
from tests.text.corpora import CONTEXT, SHARE, TEXTS, TOKENIZER, build, content, write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree")


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanocode.text.sources.UNIT_FILES", 7)
    monkeypatch.setattr(corpus, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(leases, "SECONDS_BETWEEN_SIGNS", 0.01)


def opened(*folders: Path) -> list[Weighted]:
    return open_sources([Source(location=str(folder)) for folder in folders])


def built(store: Path, mine: Leases, sources: list[Weighted], *not_shown: str) -> Index | None:
    def show(phase: str, done: float, total: float, unit: str) -> None:
        assert phase not in not_shown

    return corpus.build(
        LocalStore(store), TOKENIZER.to_bytes(), sources, tokens=60_000, context=CONTEXT, seed=0,
        validation_share=SHARE, workers=1, leases=mine, show=show,
    )  # fmt: skip


@pytest.mark.parametrize("what", ["encode_unit", "pack_shard"])
def test_a_worker_that_comes_late_still_gets_work(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its node was made later than the first one's, or its pod was taken away and replaced."""
    build(tmp_path / "one", tree)
    monkeypatch.setattr(leases, "PATIENCE_SECONDS", 0.0)
    store, module = LocalStore(tmp_path / "two"), units if what == "encode_unit" else corpus
    first, late = Leases(store, 0, 2), Leases(store, 1, 2)
    has_all, helped, done_by, do = threading.Event(), threading.Event(), list[str](), getattr(module, what)

    def noted(*arguments: Any) -> str:
        name = threading.current_thread().name
        done_by.append(name)
        if name == "late":
            helped.set()
        elif first.held == (0, 1) and not has_all.is_set():
            monkeypatch.setattr(leases, "PATIENCE_SECONDS", 60.0)
            has_all.set()
            helped.wait(20)
        return str(do(*arguments))

    monkeypatch.setattr(module, what, noted)

    def work(mine: Leases) -> None:
        with mine:
            built(tmp_path / "two", mine, opened(tree))

    threads = [
        threading.Thread(target=work, args=(one,), name=name) for one, name in ((first, "first"), (late, "late"))
    ]
    threads[0].start()
    assert has_all.wait(20), "what nobody works at is taken over"
    threads[1].start()
    for thread in threads:
        thread.join(60)
    assert "late" in done_by
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_a_worker_without_a_share_does_not_look_for_the_end_of_a_source(tree: Path, tmp_path: Path) -> None:
    (one,) = opened(tree)
    walked: list[Unit] = []

    class Walked:
        def units(self) -> Iterator[Unit]:
            for unit in one.source.units():
                walked.append(unit)
                yield unit

    store = LocalStore(tmp_path / "store")
    with Leases(store, 1, 2) as mine, Leases(store, 1, 2), units.processes(1) as run:  # the other came in its place
        mine.sign()
        assert mine.held == ()
        end = units.encode_source(
            store, 0, replace(one, source=Walked()), 10_000_000, b"", SHARE, run, 1, mine, lambda done: None
        )
    assert (end, walked) == (None, [])


def test_a_share_that_was_lost_for_a_while_is_made_whole_in_every_source(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is lost before the first source is gone through, and is back before the second one is."""
    (tmp_path / "more").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "more" / f"{name}.py").write_text(text.swapcase())
    monkeypatch.setattr(Leases, "_sign_until_over", lambda self: None)
    store, passes, encode_source = LocalStore(tmp_path / "store"), list[tuple[int, ...]](), corpus.encode_source
    mine, late = Leases(store, 0, 2), Leases(store, 1, 2)

    def take_over() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(leases, "PATIENCE_SECONDS", -1.0)
            patch.setattr(leases, "SECONDS_BETWEEN_SIGNS", 0.0)
            assert mine.take_over([1]) == 1

    def lose_and_regain(*arguments: Any) -> int | None:
        if not passes:
            with late:
                late.take_back()
            mine.sign()
        elif len(passes) == 1:
            take_over()
        passes.append(mine.held)
        return encode_source(*arguments)

    monkeypatch.setattr(corpus, "encode_source", lose_and_regain)
    with mine:
        take_over()
        assert built(tmp_path / "store", mine, opened(tree, tmp_path / "more"), "waiting for other workers") is not None
    assert passes[:2] == [(0,), (0, 1)]
