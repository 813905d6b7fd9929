"""A corpus is a function of its sources: no worker, no kill and no order changes a byte of it."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import structlog

from nanocode.data.shards import Rows, read_index
from nanocode.storage.objects import LocalStore
from nanocode.text import corpus, units
from nanocode.text.filters import SHORTEST_CHARACTERS
from nanocode.text.sources import SourceError
from tests.text.corpora import CONTEXT, TEXTS, TOKENIZER, build, content, write_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("text") / "tree")


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanocode.text.sources.UNIT_FILES", 7)
    monkeypatch.setattr(corpus, "POLL_SECONDS", 0.02)


def test_every_training_token_is_there_once_and_none_is_lost(tree: Path, tmp_path: Path) -> None:
    index = build(tmp_path, tree, tokens=10_000_000)
    assert index is not None
    rows = Rows(LocalStore(tmp_path)).rows(0, index.rows)
    assert (rows != TOKENIZER.bos).sum() == index.tokens
    decoded = sum(len(TOKENIZER.decode_bytes(row[row != TOKENIZER.bos])) for row in rows)
    assert decoded == sum(shard.bytes for shard in index.train)
    assert index.waste < 0.01


def test_training_and_validation_share_no_document(tree: Path, tmp_path: Path) -> None:
    index = build(tmp_path, tree, tokens=10_000_000)
    assert index is not None
    held = [text for kind in index.valid for text in corpus.validation_texts(LocalStore(tmp_path), kind)]
    parts = [text[part * 900 : part * 900 + 900] for text in TEXTS.values() for part in range(8)]
    everything = {text for text in [*TEXTS.values(), *parts] if len(text) >= SHORTEST_CHARACTERS}
    assert 0 < len(held) < len(everything)
    assert set(held) <= everything
    trained = sum(shard.documents for shard in index.train)
    assert trained + len(held) == len(everything) - index.sources[0].dropped.get("generated", 0)


def test_a_document_that_comes_twice_is_trained_on_once(tree: Path, tmp_path: Path) -> None:
    again = write_tree(tmp_path / "again")
    for number in range(10):
        (again / f"new{number}.txt").write_text(
            f"text number {number} that is nowhere else, and is long enough for every filter to let it stay\n"
        )
    once = build(tmp_path / "once", tree, tokens=10_000_000)
    twice = build(tmp_path / "twice", tree, again, tokens=20_000_000)
    assert once is not None
    assert twice is not None
    assert twice.sources[0].documents == once.sources[0].documents
    assert 0 < twice.sources[1].documents <= 10
    assert twice.sources[1].duplicates > 80


def test_a_source_of_nothing_but_duplicates_is_named(tree: Path, tmp_path: Path) -> None:
    again = write_tree(tmp_path / "again")
    with pytest.raises(SourceError, match="again has no document to train on"):
        build(tmp_path / "run", tree, again, tokens=20_000_000)


def test_only_a_source_that_ran_dry_is_said_to_have_less_than_its_share(tree: Path, tmp_path: Path) -> None:
    again = write_tree(tmp_path / "again")
    for number in range(5):
        text = f"text number {number} that is nowhere else, and is long enough for every filter to let it stay\n"
        (again / f"{number}.txt").write_text(text)
    with structlog.testing.capture_logs() as logs:
        twice = build(tmp_path / "twice", tree, again, tokens=20_000)
        assert twice is not None
        assert twice.sources[1].tokens < 10_000 and twice.sources[1].duplicates
        assert logs == [], "it had enough, all of it known already"
        build(tmp_path / "dry", tree, tokens=10_000_000)
    assert [(one["event"], one["source"]) for one in logs] == [("source has less than its share", str(tree))]


def test_cores_are_counted_where_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert corpus.cores() == os.cpu_count()


def test_three_workers_make_the_bytes_that_one_makes(tree: Path, tmp_path: Path) -> None:
    build(tmp_path / "one", tree)
    found: dict[int, object] = {}

    def work(worker: int) -> None:
        found[worker] = build(tmp_path / "three", tree, worker=worker, of=3)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0] == read_index(LocalStore(tmp_path / "one"))
    assert found[1] is None
    assert content(tmp_path / "three") == content(tmp_path / "one")


def test_two_processes_make_the_bytes_that_one_makes(tree: Path, tmp_path: Path) -> None:
    build(tmp_path / "one", tree)
    build(tmp_path / "two", tree, workers=2)
    assert content(tmp_path / "two") == content(tmp_path / "one")


CHILD = """
import sys
from pathlib import Path
from tests.text.corpora import build
import nanocode.text.sources
nanocode.text.sources.UNIT_FILES = 7
build(Path(sys.argv[1]), sys.argv[2])
"""


def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    build(tmp_path / "whole", tree)
    dice, kills = random.Random(1), 0
    command = [sys.executable, "-c", CHILD, str(tmp_path / "killed"), str(tree)]
    while kills < 6:
        child = subprocess.Popen(command)
        objects = len(list(tmp_path.glob("killed/**/*")))
        while child.poll() is None and len(list(tmp_path.glob("killed/**/*"))) <= objects:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.03))
        if child.poll() is not None:
            break
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
    assert kills >= 3, "it was done before it could be killed: the test proves nothing"
    subprocess.run(command, check=True)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_the_quota_takes_the_first_units_whoever_made_more(tree: Path) -> None:
    there = {0: ("a", 40), 1: ("b", 40), 2: ("c", 40), 5: ("f", 1)}
    assert units.counted(there, 100, None) == ["a", "b", "c"]
    assert units.counted(there, 80, None) == ["a", "b"]
    assert units.counted(there, 121, None) is None, "unit 3 is missing"
    assert units.counted({0: ("a", 40)}, 100, 1) == ["a"], "the source has no more"


def test_sources_are_mixed_evenly(tmp_path: Path) -> None:
    for name in ("plain", "marked"):
        (tmp_path / name).mkdir()
        for number, text in enumerate(TEXTS.values()):
            for part in range(8):
                mark = f"{number}.{part}" + ("~~ " if name == "marked" else "-- ")
                (tmp_path / name / f"{number}-{part}.txt").write_text(mark + text[part * 700 : part * 700 + 700])
    index = build(tmp_path / "run", tmp_path / "plain", tmp_path / "marked", tokens=20_000)
    assert index is not None
    for source in index.sources:
        assert 10_000 <= source.tokens < 11_000, "its quota, and at most one document more"
    rows = Rows(LocalStore(tmp_path / "run")).rows(0, index.rows)
    marks = [TOKENIZER.decode(row).count("~~") for row in rows]
    middle = len(marks) // 2
    assert sum(marks) > 15
    assert 0.7 < sum(marks[:middle]) / sum(marks[middle:]) < 1.4
    assert rows.shape[1] == CONTEXT + 1
