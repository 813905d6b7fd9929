"""Spans of wall-clock time, each of one kind, and how they become a partition."""

from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """PRODUCTIVE: steps that count, or the own work of a stage that makes no steps.

    PROVISIONING: no attempt lived, and a slice was asked for and not there.
    AGAIN: steps of which nothing was kept.
    CUT_OFF: after the last record of an attempt whose process was seen to end later: it worked, and what it had not
    saved by then is lost.
    OTHER: what a training stage does besides: packing, sampling pairs, summing up.
    IDLE: no attempt lived.
    UNKNOWN: after the last record of an attempt that vanished with its host, or that has not said yet.
    """

    PRODUCTIVE = "productive"
    PROVISIONING = "provisioning"
    STARTUP = "start-up"
    COMPILE = "compile"
    RESTORE = "restore"
    DATA = "data wait"
    CHECKPOINT = "checkpoint stall"
    AGAIN = "steps done again"
    CUT_OFF = "work since the last record"
    EVALUATION = "evaluation"
    OTHER = "other work"
    IDLE = "idle"
    UNKNOWN = "unknown"


class Span(NamedTuple):
    """From `begin` to before `end`, in microseconds of Unix time."""

    begin: int
    end: int
    kind: Kind


def painted(layers: Sequence[Sequence[Span]], begin: int, end: int) -> list[Span]:
    """From `begin` to `end`, each instant of the kind of the last layer that holds it; no layer holds one twice.

    The first layer, at least, holds every instant.
    """
    edges: list[tuple[int, bool, int, Kind]] = []
    for layer, spans in enumerate(layers):
        for one in spans:
            first, last = max(one.begin, begin), min(one.end, end)
            if first < last:
                edges += [(first, True, layer, one.kind), (last, False, layer, one.kind)]
    found: list[Span] = []
    there: dict[int, Kind] = {}
    before = begin
    for at, begins, layer, kind in sorted(edges):  # at one instant, what ends comes first
        if at > before:
            top = there[max(there)]
            if found and found[-1].kind == top:
                found[-1] = Span(found[-1].begin, at, top)
            else:
                found.append(Span(before, at, top))
            before = at
        if begins:
            there[layer] = kind
        else:
            del there[layer]
    return found


def laid_out(wanted: list[tuple[int, Kind]], windows: list[tuple[int, int]]) -> list[Span]:
    """The amounts one after the other in the windows; shortened alike where the windows are too short for them."""
    room, total = sum(end - begin for begin, end in windows), sum(amount for amount, _ in wanted)
    if total > room:
        wanted = [(amount * room // total, kind) for amount, kind in wanted]
    found: list[Span] = []
    rest = deque(windows)
    for amount, kind in wanted:
        while amount and rest:
            begin, end = rest.popleft()
            cut = min(end, begin + amount)
            found.append(Span(begin, cut, kind))
            amount -= cut - begin
            if cut < end:
                rest.appendleft((cut, end))
    return found


def around(spans: list[Span], begin: int, end: int) -> list[tuple[int, int]]:
    """What the spans leave of a window that holds them."""
    edges = [begin, *(edge for one in spans for edge in (one.begin, one.end)), end]
    return [(first, last) for first, last in zip(edges[::2], edges[1::2], strict=True) if last > first]
