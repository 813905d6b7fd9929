"""How long to work between two checkpoints: from what a save costs and how often work is lost.

Time to a loss taken as exponential with mean M, a save that stalls the loop for δ: working τ between saves minimises

    (exp((τ + δ) / M) - 1) / τ

by which expected time grows (Daly 2006, doi:10.1016/j.future.2004.11.016, eq. 20); √(2δM) is its first order (Young
1974, doi:10.1145/361147.361115). That a save goes on in the background for u seconds, and that a restart takes R,
multiplies it by exp((u + R) / M), whatever τ. An attempt that saved when told to leave lost nothing: no loss in M.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import sqrt
from typing import Any

from nanocode.config.settings import Training
from nanocode.run.attempts import End, Ending, recorded
from nanocode.run.directory import Claim, RunDirectory
from nanocode.run.goodput import LAST_SAVE
from nanocode.run.graph import STAGES
from nanocode.run.segments import newest_first

FEW_LOSSES = 3
"""With fewer of its own, a stage counts those of all training stages: they run on the same machines."""
RECENT_ATTEMPTS = 20
"""Of each stage: how often slices are taken away changes from day to day."""
SEGMENTS_BACK = 32
"""How many segments of events, of 10 s each, are searched for the last save of an attempt."""


def interval(stall: float, between_losses: float) -> float:
    """Seconds of work between saves that waste least: Daly 2006, eq. 37, within 0.1% of the minimum where δ < M / 2."""
    if stall >= 2 * between_losses:
        return between_losses
    share = stall / (2 * between_losses)
    return sqrt(2 * stall * between_losses) * (1 + sqrt(share) / 3 + share / 9) - stall


@dataclass
class Cadence:
    """The interval that holds now."""

    shortest: float
    longest: float
    between_losses: float | None = None
    """Mean seconds; None while nothing was lost."""
    stall: float | None = None
    """Seconds that the last save held the loop up; None before there was one."""
    save_seconds: float = 0.0
    """How long a save took until it counted: a next one would wait for it."""
    keep: Callable[..., None] = lambda kind, **facts: None
    """Records a save as an event."""

    @property
    def seconds(self) -> float:
        """From the end of one save to the next."""
        if self.between_losses is None:
            return self.longest
        # Where attempts are lost and none has saved anything, any save is better than none.
        wanted = self.shortest if self.stall is None else interval(self.stall, self.between_losses)
        return min(self.longest, max(self.shortest, self.save_seconds, wanted))

    def measured(self, stall: float, save_seconds: float | None) -> None:
        """Take in a save that has just begun, and how long the last whole one took."""
        self.stall, self.save_seconds = stall, save_seconds or self.save_seconds
        self.keep("saved", stall=stall, seconds=save_seconds, interval=self.seconds)


def settle(run: RunDirectory, stage: str, attempt: int, training: Training, keep: Callable[..., None]) -> Cadence:
    """The cadence that an attempt begins with, from what happened to those before it."""
    earlier = [claim for claim in run.attempts(stage) if claim.attempt < attempt][-RECENT_ATTEMPTS:]
    lived, losses = _seconds_and_losses(run, earlier)
    if losses < FEW_LOSSES:
        others = [name for name, one in STAGES.items() if one.trains and name != stage]
        more = [claim for name in others for claim in run.attempts(name)[-RECENT_ATTEMPTS:]]
        lived, losses = (a + b for a, b in zip((lived, losses), _seconds_and_losses(run, more), strict=True))
    found = Cadence(60 * training.checkpoint_minutes_min, 60 * training.checkpoint_minutes, keep=keep)
    found.between_losses = lived / losses if losses else None
    for claim in reversed(earlier):
        if (saved := _last_save(run, claim)) is not None:
            found.stall, found.save_seconds = float(saved["stall"]), float(saved["seconds"] or 0.0)
            break
    return found


def _seconds_and_losses(run: RunDirectory, claims: list[Claim]) -> tuple[float, float]:
    """How long these attempts lived together, and how many of them ended with work that was not saved."""
    with ThreadPoolExecutor(8) as readers:  # a bucket answers in tens of milliseconds
        each = list(readers.map(lambda claim: _life(run, claim), claims))
    return sum(lived for lived, _ in each), sum(lost for _, lost in each)


def _life(run: RunDirectory, claim: Claim) -> tuple[float, bool]:
    """How long an attempt lived by its events, and whether work was lost at its end."""
    records = [one for part in islice(_newest_events(run, claim), 2) for one in part]
    last = max((float(one["time"]) for one in records), default=0.0)
    saved = any(one.get("kind") == "end" and one.get("phase") == LAST_SAVE for one in records)
    end = recorded(run, claim.stage, claim.attempt, End)
    meant = end is not None and end.ending in (Ending.DONE, Ending.STOPPED, Ending.CONFIGURATION)
    return max(0.0, last - claim.claimed.timestamp()), not saved and not meant


def _last_save(run: RunDirectory, claim: Claim) -> dict[str, Any] | None:
    for records in islice(_newest_events(run, claim), SEGMENTS_BACK):
        for record in reversed(records):
            if record.get("kind") == "saved":
                return record
    return None


def _newest_events(run: RunDirectory, claim: Claim) -> Iterator[list[dict[str, Any]]]:
    return newest_first(run.store, claim.stage, "events", claim.attempt, 0)
