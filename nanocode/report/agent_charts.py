"""The chart of the agent: families as rows, models as marks with whiskers, all on one scale from 0% to 100%."""

from dataclasses import dataclass

from nanocode.report import words
from nanocode.report.agent import Score, interval
from nanocode.report.agent_facts import RateFacts

ALL = "all families"


@dataclass(frozen=True)
class Mark:
    style: str
    """The stage, which colours it."""
    percent: float
    low: float
    width: float
    """The 95% interval, in percent of the scale."""
    description: str


@dataclass(frozen=True)
class Row:
    label: str
    marks: tuple[Mark, ...]
    value: str
    """Of the last model."""


def rows(scores: tuple[Score, ...]) -> tuple[Row, ...]:
    """The mean over families first, then every family."""
    if not scores:
        return ()
    names = list(dict.fromkeys(name for score in scores for name in score.suite.families))
    found = [_row(ALL, [(score, score.suite) for score in scores])]
    for name in names:
        found.append(_row(name, [(score, score.suite.families.get(name, RateFacts())) for score in scores]))
    return tuple(found)


def _row(label: str, rates: list[tuple[Score, RateFacts]]) -> Row:
    marks = tuple(_mark(score, rate) for score, rate in rates if rate.share is not None)
    return Row(label, marks, words.share(rates[-1][1].share))


def _mark(score: Score, rate: RateFacts) -> Mark:
    share = rate.share or 0.0
    low, high = rate.interval or (share, share)
    between = f", 95% interval {interval(rate.interval)}" if rate.interval else ""
    return Mark(score.style, 100 * share, 100 * low, 100 * (high - low), f"{score.name} {words.share(share)}{between}")
