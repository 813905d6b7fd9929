"""What a run will have cost in the end, at the current goodput. Pure.

The rest of a stage takes as long a step as its steps so far did, on a machine and with all that was lost on the way;
the first start is left out, for it is paid once. A stage of training that has not begun takes as long a token as the
last one that did. How long an evaluation takes is known only while it runs: what is left out is named.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """One stage that needs a slice, and is not done or has told how fast it goes."""

    name: str
    tokens: float = 0.0
    """In all; 0 of a stage that does not train."""
    done: float = 0.0
    """Share of it."""
    seconds: float = 0.0
    """Spent on that share, once it worked."""
    left: float | None = None
    """Seconds, of a stage that does not train and runs."""


@dataclass(frozen=True)
class Forecast:
    dollars: float
    without: tuple[str, ...] = ()
    """Stages that are still to come and that nobody knows the time of."""


def forecast(spent: float, dollars_per_hour: float | None, stages: Iterable[Work]) -> Forecast | None:
    """None while the rest cannot be told: no price, or nothing has trained yet."""
    pace: float | None = None
    seconds, without = 0.0, []
    for one in stages:
        if one.tokens and one.done and one.seconds:
            pace = one.seconds / (one.done * one.tokens)
        if one.done >= 1:
            continue
        if not one.tokens:
            without += [one.name] if one.left is None else []
            seconds += one.left or 0.0
        elif pace is None:
            return None
        else:
            seconds += (1 - one.done) * one.tokens * pace
    if seconds and dollars_per_hour is None:
        return None
    return Forecast(spent + seconds / 3600 * (dollars_per_hour or 0.0), tuple(without))
