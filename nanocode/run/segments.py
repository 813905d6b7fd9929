"""Metrics, events and logs as immutable segments, because an object cannot be appended to.

    <stage>/attempts/<n>/<kind>/<host>-<seq>.jsonl      JSON records, one a line, each with `time` in Unix seconds

A writer buffers and publishes from a timer thread, so the train loop never waits for the network; a kill loses at
most `flush_seconds` of records and damages none.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Literal, Self, get_args

import structlog

from nanocode.storage.objects import AlreadyExists, NotFound, StorageError, Store

log = structlog.get_logger()

Kind = Literal["metrics", "events", "log"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class SegmentWriter:
    """Publishes the records of one host and one attempt, at most one segment per `flush_seconds`."""

    def __init__(
        self,
        store: Store,
        stage: str,
        attempt: int,
        kind: Kind,
        host: str | int,
        flush_seconds: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if "/" in str(host):
            raise ValueError(f"host {host!r} cannot be part of an object's name: give it without '/'")
        self._store = store
        self._stem = f"{stage}/attempts/{attempt}/{kind}/{host}"
        self._flush_seconds = flush_seconds
        self._clock = clock
        self._lines: list[str] = []
        self._seq = 0
        self._timer: threading.Timer | None = None
        self._buffer = threading.Lock()  # held for moments only: `write` must not wait for a publication
        self._publishing = threading.Lock()

    def write(self, record: dict[str, Any]) -> None:
        """Keep the record for the next segment; a `time` of its own stays."""
        line = json.dumps({"time": self._clock(), **record})
        with self._buffer:
            self._lines.append(line)
            self._arm()

    def flush(self) -> None:
        """Publish what is buffered. On `StorageError` it stays buffered and goes into the next segment."""
        with self._publishing:
            with self._buffer:
                lines, self._lines = self._lines, []
            if not lines:
                return
            try:
                self._publish("".join(line + "\n" for line in lines).encode())
            except BaseException:
                with self._buffer:
                    self._lines = lines + self._lines
                raise

    def close(self) -> None:
        """Publish the rest; the writer may not be used afterwards."""
        with self._buffer:
            if self._timer is not None:
                self._timer.cancel()
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _publish(self, data: bytes) -> None:
        while True:
            name = f"{self._stem}-{self._seq:06d}.jsonl"
            self._seq += 1
            try:
                return self._store.create(name, data)
            except AlreadyExists:
                continue  # the process was restarted within its attempt: go on after its earlier segments

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(self._flush_seconds, self._tick)
            self._timer.daemon = True
            self._timer.start()

    def _tick(self) -> None:
        with self._buffer:
            self._timer = None
        try:
            self.flush()
        except StorageError as error:
            log.warning("segment not published, will try again", segment=self._stem, error=str(error))
            with self._buffer:
                self._arm()


def read_segments(
    store: Store, stage: str, kind: Kind, attempt: int | None = None, host: str | int | None = None
) -> Iterator[dict[str, Any]]:
    """The records by attempt, host and sequence, of one attempt and one host if given; damaged lines are skipped."""
    if attempt is not None:
        numbers = [attempt]
    else:
        numbers = sorted(int(n) for n in store.children(f"{stage}/attempts") if n.isascii() and n.isdecimal())
    for number in numbers:
        for segment in segments(store, stage, kind, number, host):
            yield from records(store, segment)


def segments(store: Store, stage: str, kind: Kind, attempt: int, host: str | int | None = None) -> list[str]:
    """The names of an attempt's segments by host and sequence, of one host if given."""
    found = _segments(store, f"{stage}/attempts/{attempt}/{kind}")
    return found if host is None else [name for name in found if _host(name) == str(host)]


def newest_first(
    store: Store, stage: str, kind: Kind, attempt: int, host: str | int | None = None
) -> Iterator[list[dict[str, Any]]]:
    """The records of each segment of a host, or of the first there is, the newest first: read as far as asked for."""
    names = _segments(store, f"{stage}/attempts/{attempt}/{kind}")
    if names and host is None:
        host = _host(names[0])
    for name in reversed(names):
        if _host(name) == str(host):
            yield list(records(store, name))


def last_record_time(store: Store, stage: str, attempt: int) -> float | None:
    """The time of an attempt's newest record, of any kind and host; reads the last segment of each only."""
    times: list[float] = []
    for kind in get_args(Kind):
        last = {name.rpartition("-")[0]: name for name in _segments(store, f"{stage}/attempts/{attempt}/{kind}")}
        found = [record for name in last.values() for record in records(store, name)]
        times += [record["time"] for record in found if isinstance(record.get("time"), int | float)]
    return max(times, default=None)


def _segments(store: Store, folder: str) -> list[str]:
    """The names of a folder's segments, by host and sequence."""
    segments = [name for name in store.children(folder) if _position(name) is not None]
    return [f"{folder}/{name}" for name in sorted(segments, key=lambda name: _position(name) or (0, "", 0))]


def _host(segment: str) -> str:
    return segment.rpartition("/")[2].rpartition("-")[0]


def _position(segment: str) -> tuple[int, str, int] | None:
    """Sort key of `<host>-<seq>.jsonl`, host 10 after host 9; None for any other name."""
    host, dash, seq = segment.removesuffix(".jsonl").rpartition("-")
    if not (segment.endswith(".jsonl") and dash and seq.isascii() and seq.isdecimal()):
        return None
    return len(host), host, int(seq)


def records(store: Store, name: str) -> Iterator[dict[str, Any]]:
    """The records of one segment; damaged lines are skipped, loudly, and a segment that is gone has none."""
    try:
        data = store.read(name)
    except NotFound:
        return  # pruned between listing and reading
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            yield record
        else:
            log.warning("damaged line skipped", segment=f"{store.url}/{name}", line=number)
