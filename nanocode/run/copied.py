"""What went from region to region, so that it is in the bill: bytes, in groups, as stages copy them.

    copied/<unix seconds>-<bytes>-<stage>.<attempt>-<8 hex>      one group; empty, its name says all

It is written before the group is copied: where a machine is taken away meanwhile, the bill is up to a group too high.
Claims, markers, metrics and logs go to the run's bucket from wherever a stage runs; they are small, and not counted.
"""

import time
import uuid
from collections.abc import Iterable
from contextlib import suppress

from nanocode.config.prices import GIGABYTE
from nanocode.config.settings import Prices
from nanocode.run.directory import RunDirectory

FOLDER = "copied"
PHASE = "copying between regions"
"""Under which an attempt publishes how far that is: a sign of life, and no work yet."""


def count(run: RunDirectory, size: int, stage: str, attempt: int) -> None:
    """So many bytes are about to go to another region."""
    run.store.write(f"{FOLDER}/{int(time.time())}-{size}-{stage}.{attempt}-{uuid.uuid4().hex[:8]}", b"")


def total(names: Iterable[str]) -> int:
    """Bytes, by the folder's names; what is no count is passed over."""
    found = 0
    for name in names:
        with suppress(ValueError, IndexError):
            found += int(name.split("-")[1])
    return found


def dollars(table: Prices, size: int) -> float | None:
    """None where something was copied, and nobody has said what that costs."""
    if not size:
        return 0.0
    return None if table.egress_gb is None else size / GIGABYTE * table.egress_gb
