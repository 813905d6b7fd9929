"""What a run has cost, slice by slice, from the facts in its directory.

    slices/<name>/REQUEST.json       zone, dollars per hour, and when it was asked for
    slices/<name>/{ready,gone}.json  when it began and stopped to cost

A slice that is there anyway (a pool's nodes, this machine) has no such facts: it costs while an attempt lives on it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nanocode.config import prices
from nanocode.config.settings import Settings
from nanocode.run.directory import Claim, RunDirectory
from nanocode.storage.objects import NotFound

Spans = Iterable[tuple[float, float]]
THERE_ANYWAY = {"pool": "pool", "this machine": "local"}
"""Slice that nobody asked for -> its name among the prices."""


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
    hours: float
    """In which it cost something."""
    held: bool
    """It costs now."""

    @property
    def dollars(self) -> float | None:
        return None if self.dollars_per_hour is None else self.hours * self.dollars_per_hour


def slice_costs(
    run: RunDirectory, settings: Settings, attempts: Iterable[tuple[Claim, float | None]], now: float
) -> list[SliceCost]:
    """Every slice that has come, and the places without one where an attempt had a price, by name.

    `attempts`: claims, each with when its attempt ended, or None while it lives.
    """
    known = prices.priced(settings).dollars_per_slice_hour
    found = [one for name in run.store.children("slices") if (one := _asked_for(run, name, known, now)) is not None]
    lives: dict[str, list[tuple[float, float | None]]] = {}
    for claim, ended in attempts:
        if claim.slice in THERE_ANYWAY:
            lives.setdefault(claim.slice, []).append((claim.claimed.timestamp(), ended))
    for name, spans in sorted(lives.items()):
        zone = THERE_ANYWAY[name]
        took = hours((begin, now if ended is None else ended) for begin, ended in spans)
        dollars = known.get(zone, 0.0 if zone == "local" else None)
        found.append(SliceCost(name, zone, dollars, took, any(ended is None for _, ended in spans)))
    return found


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
    facts = {fact: _fact(run, name, fact) for fact in ("REQUEST", "ready", "gone")}
    wish, ready, gone = facts["REQUEST"], _at(facts["ready"]), _at(facts["gone"])
    if wish is None or ready is None:
        return None
    took = hours([(ready, now if gone is None else gone)])
    return SliceCost(name, str(wish.get("zone")), _price(wish, known), took, gone is None)


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
