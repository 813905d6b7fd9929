"""Segments: published whole, read in order, on both kinds of store."""

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import structlog

from nanocode.run.segments import SegmentWriter, read_segments
from nanocode.storage.objects import LocalStore, StorageError, Store


def test_records_come_back_by_attempt_host_and_sequence(store: Store) -> None:
    for attempt, host in ((2, 0), (10, 0), (2, 10), (2, 9)):
        with SegmentWriter(store, "pretrain", attempt, "metrics", host) as writer:
            writer.write({"at": [attempt, host, 0]})
            writer.flush()
            writer.write({"at": [attempt, host, 1]})
    order = [(2, 0), (2, 9), (2, 10), (10, 0)]
    expected = [[attempt, host, seq] for attempt, host in order for seq in (0, 1)]
    assert [record["at"] for record in read_segments(store, "pretrain", "metrics")] == expected
    assert [r["at"] for r in read_segments(store, "pretrain", "metrics", attempt=10)] == expected[-2:]
    assert [r["at"] for r in read_segments(store, "pretrain", "metrics", 2, host=9)] == expected[2:4]
    assert list(read_segments(store, "pretrain", "events")) == []
    assert "pretrain/attempts/2/metrics/9-000001.jsonl" in store.list()


def test_every_record_carries_the_time_of_the_clock(store: Store) -> None:
    ticks = itertools.count(100.5)
    with SegmentWriter(store, "s", 1, "events", "pod-0", clock=lambda: next(ticks)) as writer:
        writer.write({"event": "start"})
        writer.write({"event": "stop"})
    records = list(read_segments(store, "s", "events"))
    assert records == [{"time": 100.5, "event": "start"}, {"time": 101.5, "event": "stop"}]


def test_a_restart_within_an_attempt_goes_on_after_its_earlier_segments(store: Store) -> None:
    for life in range(3):
        with SegmentWriter(store, "s", 1, "log", 0) as writer:
            writer.write({"life": life})
    assert [record["life"] for record in read_segments(store, "s", "log")] == [0, 1, 2]


def test_nothing_is_published_for_nothing(store: Store) -> None:
    with SegmentWriter(store, "s", 1, "log", 0) as writer:
        writer.flush()
    assert store.list() == []


def test_a_quiet_stage_is_published_by_time(store: Store) -> None:
    writer = SegmentWriter(store, "s", 1, "log", 0, flush_seconds=0.05)
    writer.write({"event": "compiling for the next ten minutes"})
    deadline = time.monotonic() + 5
    while not list(read_segments(store, "s", "log")):
        assert time.monotonic() < deadline, "the record was never published"
        time.sleep(0.02)
    writer.close()


class Failing(LocalStore):
    """A store that refuses a number of times."""

    refusals = 1

    def create(self, name: str, data: bytes) -> None:
        if self.refusals:
            self.refusals -= 1
            raise StorageError("no space left")
        super().create(name, data)


def test_a_refused_flush_loses_no_record(tmp_path: Path) -> None:
    store = Failing(tmp_path)
    writer = SegmentWriter(store, "s", 1, "log", 0)
    writer.write({"n": 0})
    with pytest.raises(StorageError):
        writer.flush()
    writer.write({"n": 1})
    writer.close()
    assert [record["n"] for record in read_segments(store, "s", "log")] == [0, 1]


def test_the_timer_survives_a_refusal(tmp_path: Path) -> None:
    store = Failing(tmp_path)
    writer = SegmentWriter(store, "s", 1, "log", 0, flush_seconds=0.02)
    writer.write({"n": 0})
    deadline = time.monotonic() + 5
    while not list(read_segments(store, "s", "log")):
        assert time.monotonic() < deadline, "the timer gave up after one refusal"
        time.sleep(0.02)
    writer.close()


@pytest.mark.parametrize("damage", [b'{"n": ', b"\xff\xfe", b"7", b""])
def test_a_damaged_line_is_skipped_loudly(store: Store, damage: bytes) -> None:
    store.create("s/attempts/1/log/0-000000.jsonl", b'{"n": 0}\n' + damage + b'\n{"n": 2}\n')
    store.create("s/attempts/1/log/notes.txt", b"not a segment")
    records: list[dict[str, Any]] = []
    with structlog.testing.capture_logs() as logs:
        records.extend(read_segments(store, "s", "log"))
    assert [record["n"] for record in records] == [0, 2]
    assert [(entry["log_level"], entry["line"]) for entry in logs] == [("warning", 2)]
    assert logs[0]["segment"].endswith("s/attempts/1/log/0-000000.jsonl")


def test_a_host_that_would_leave_its_folder_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=r"host '\.\./0'"):
        SegmentWriter(store, "s", 1, "log", "../0")
