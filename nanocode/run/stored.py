"""What keeping a run costs, estimated: its bytes, as the controller weighs them once in a while, over time.

    controller/stored/<unix seconds>-<bytes>      one measurement; empty, its name says all

Weighed are the run directory, and what its stages have in buckets of other regions (`nanocode.run.near`) that the
settings name and whoever weighs may list. Soft delete, which a bucket may have, keeps and bills what was deleted; that
is not seen here.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise

from nanocode.config import prices
from nanocode.config.settings import Prices
from nanocode.run.directory import RunDirectory
from nanocode.storage.objects import Refused, open_store

FOLDER = "controller/stored"
SECONDS_BETWEEN = 3600.0
Measurements = Sequence[tuple[float, int]]
"""When, and how many bytes; the oldest first."""


def is_billed(run: RunDirectory, table: Prices) -> bool:
    """Whether it is in a bucket, and somebody has said what that costs."""
    return run.store.url.startswith("gs://") and table.storage_gb_month is not None


def measurements(names: Iterable[str]) -> list[tuple[float, int]]:
    """Of the folder's names; what is no measurement is passed over."""
    found = []
    for name in names:
        at, _, size = name.partition("-")
        with suppress(ValueError):
            found.append((float(int(at)), int(size)))
    return sorted(found)


def measure(run: RunDirectory, at: float, elsewhere: Iterable[str] = ()) -> tuple[float, int]:
    """Weigh the run now, and write it down; `StorageError` without an answer. `elsewhere`: its folders far away."""
    size = run.store.size()
    for place in elsewhere:
        with suppress(Refused):
            size += open_store(place).size()
    run.store.write(f"{FOLDER}/{int(at)}-{size}", b"")
    return float(int(at)), size


def byte_hours(known: Measurements, now: float) -> float:
    """Bytes, each times the hours it was there: on a straight line between two measurements, and as at the last one
    until now, but no longer than until the next one should have come."""
    total = sum((then - at) * (size + later) / 2 for (at, size), (then, later) in pairwise(known))
    if known:
        at, size = known[-1]
        total += size * min(max(0.0, now - at), 2 * SECONDS_BETWEEN)
    return total / 3600


def dollars(run: RunDirectory, table: Prices, known: Measurements, now: float) -> float:
    """So far; 0 where it is not billed, or nobody has said for how much."""
    return (prices.storage_dollars(table, byte_hours(known, now)) or 0.0) if is_billed(run, table) else 0.0
