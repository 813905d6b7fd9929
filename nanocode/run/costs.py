"""What a run has cost, slice by slice, from the facts in its directory.

    slices/<name>/REQUEST.json       zone, dollars per hour, and when it was asked for
    slices/<name>/{ready,gone}.json  when it began and stopped to cost; if it was taken away, that was `released.json`

A slice that is there anyway (a pool's nodes, this machine) has no such facts: it costs while an attempt lives on it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nanocode.config import prices
from nanocode.config.settings import Settings
from nanocode.run import copied, stored
from nanocode.run.directory import Claim, RunDirectory
from nanocode.storage.objects import NotFound

Spans = Iterable[tuple[float, float]]
Attempts = Iterable[tuple[Claim, float | None]]
"""Claims, each with when its attempt ended, or None while it lives."""
THERE_ANYWAY = {"pool": "pool", "this machine": "local"}
"""Slice that nobody asked for -> its name among the prices."""

TIMES = ("ready", "released", "gone", "preempted")


def hours(spans: Spans) -> float:
    """In all; a span that ends before it begins, because another clock says so, counts as none."""
    return sum(max(0.0, end - begin) for begin, end in spans) / 3600


def union(spans: Spans) -> list[tuple[float, float]]:
    """The same instants, each once."""
    found: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        elif begin < end:
            found.append((begin, end))
    return found


@dataclass(frozen=True)
class SliceCost:
    """One slice, and what it has cost."""

    name: str
    zone: str
    dollars_per_hour: float | None
    """None: nobody has said it."""
    costing: tuple[tuple[float, float], ...]
    """When it cost something."""
    held: tuple[float, float] | None = None
    """From when it was asked for until it was gone, or now."""
    costs: bool = False
    """It does so now."""

    @property
    def hours(self) -> float:
        return hours(self.costing)

    @property
    def dollars(self) -> float | None:
        return None if self.dollars_per_hour is None else self.hours * self.dollars_per_hour


@dataclass(frozen=True)
class Bill:
    """What a run has cost."""

    slices: tuple[SliceCost, ...]
    at_work: float
    """Dollars for cluster and CPU nodes."""
    stored: float = 0.0
    """Dollars for its bucket, as an estimate."""
    stored_bytes: int = 0
    """When it was weighed last."""
    copied: float | None = 0.0
    """Dollars for what went from region to region; None: nobody has said what that costs."""
    copied_bytes: int = 0

    @property
    def dollars(self) -> float:
        """As far as prices are known."""
        return sum(one.dollars or 0.0 for one in self.slices) + self.at_work + self.stored + (self.copied or 0.0)

    @property
    def unpriced(self) -> list[str]:
        """Zones whose slices cost nobody knows how much."""
        return sorted({one.zone for one in self.slices if one.costing and one.dollars_per_hour is None})


def bill(run: RunDirectory, settings: Settings, attempts: Attempts, now: float) -> Bill:
    """By slice, and in all."""
    attempts = list(attempts)
    table = prices.priced(settings).dollars_per_slice_hour
    slices = [_asked_for(run, name, table, now) for name in run.store.children("slices")]
    found = (*(one for one in slices if one is not None), *_there_anyway(table, attempts, now))
    at_work = [(claim.claimed.timestamp(), now if ended is None else ended) for claim, ended in attempts]
    at_work += [one.held for one in found if one.held is not None]
    known, crossed = weighed(run, settings), copied.total(run.store.children(copied.FOLDER))
    return Bill(
        found,
        hours(union(at_work)) * prices.dollars_per_hour_at_work(settings.prices),
        stored.dollars(run, settings.prices, known, now),
        known[-1][1] if known else 0,
        copied.dollars(settings.prices, crossed),
        crossed,
    )


def weighed(run: RunDirectory, settings: Settings) -> stored.Measurements:
    """The bytes of the run over time, where somebody is asked to pay for them."""
    if not stored.is_billed(run, settings.prices):
        return ()
    return stored.measurements(run.store.children(stored.FOLDER))


def _there_anyway(known: Mapping[str, float], attempts: Attempts, now: float) -> Iterator[SliceCost]:
    for name, zone in THERE_ANYWAY.items():
        lives = [(claim.claimed.timestamp(), ended) for claim, ended in attempts if claim.slice == name]
        if lives:
            spans = tuple((begin, now if ended is None else ended) for begin, ended in lives)
            dollars = known.get(zone, 0.0 if zone == "local" else None)
            yield SliceCost(name, zone, dollars, spans, costs=any(ended is None for _, ended in lives))


def dollars_per_hour(run: RunDirectory, settings: Settings, slice: str | None) -> float | None:
    """Of the slice that a claim names; None where nobody has said it, or it names none."""
    if slice is None:
        return None
    known = prices.priced(settings).dollars_per_slice_hour
    if slice in THERE_ANYWAY:
        return known.get(THERE_ANYWAY[slice])
    wish = _fact(run, slice, "REQUEST")
    return _price(wish, known) if wish is not None else None


def _asked_for(run: RunDirectory, name: str, known: Mapping[str, float], now: float) -> SliceCost | None:
    there = run.store.children(f"slices/{name}")
    wish = _fact(run, name, "REQUEST")
    at = {stem: _at(_fact(run, name, stem)) for stem in TIMES if f"{stem}.json" in there}
    asked, came, gone = _at(wish), at.get("ready"), at.get("gone")
    if wish is None or asked is None:
        return None
    # One that was taken away was given back when that was seen, and has cost nothing since.
    taken = at.get("released") if "preempted" in at else None
    went = min((time for time in (gone, taken) if time is not None), default=None)
    costing = () if came is None else ((came, now if went is None else went),)
    held = (asked, now if gone is None else gone)
    return SliceCost(name, str(wish.get("zone")), _price(wish, known), costing, held, came is not None and went is None)


def _price(wish: Mapping[str, Any], known: Mapping[str, float]) -> float | None:
    """As it was when the slice was asked for; where nobody had said it then, as it is now."""
    dollars = wish.get("dollars_per_hour")
    return float(dollars) if isinstance(dollars, int | float) else known.get(str(wish.get("zone")))


def _fact(run: RunDirectory, name: str, fact: str) -> dict[str, Any] | None:
    try:
        found = json.loads(run.store.read(f"slices/{name}/{fact}.json"))
    except (NotFound, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _at(fact: Mapping[str, Any] | None) -> float | None:
    at = fact.get("at") if fact is not None else None
    return float(at) if isinstance(at, int | float) else None
