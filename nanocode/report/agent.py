"""What became of the agent: which stage helped by how much, what holds outside of training, and what the SOUL did.

Two measurements differ when their 95% intervals do not overlap, which is stricter than a test of the difference. Where
they overlap nothing is claimed: these tasks cannot tell.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from nanocode.agent.soul import Principle, parse_soul
from nanocode.report import words
from nanocode.report.agent_facts import AgentEvalFacts, RateFacts, SuiteFacts
from nanocode.report.facts import ByKind
from nanocode.report.report import Report
from nanocode.run.exits import ConfigurationError

FRESH, TRANSFER = "fresh", "transfer"
MODELS = {"pretrain": "base", "sft": "fine-tuned", "preference": "after preference"}
"""The stage whose weights a model is, and what it is called here; in the order of training."""
SUITES = {
    FRESH: "new instances, of words and phrasings as in training",
    "new words": "identifiers, file names and layouts of files that training never had",
    "new phrasings": "requests worded as training never had them",
    "all new": "both words and phrasings that training never had",
    TRANSFER: "families that no stage was trained on",
}
SUBJECTS = {"sft": "Fine-tuning", "preference": "The preference stage"}

Effect = Literal["helped", "hurt", "unclear"]


@dataclass(frozen=True)
class Score:
    """One row of the table of models."""

    name: str
    style: str
    suite: SuiteFacts


@dataclass(frozen=True)
class SuiteScore:
    name: str
    what: str
    suite: SuiteFacts


@dataclass(frozen=True)
class Adherence:
    """How often one principle was kept before and after the preference stage."""

    principle: Principle | None
    """None for a check that the SOUL in the marker does not name."""
    check: str
    before: RateFacts
    after: RateFacts

    @property
    def change(self) -> str:
        if not self.before or not self.after:
            return ""
        return {"helped": "up", "hurt": "down", "unclear": "within chance"}[effect(self.before, self.after)]


@dataclass(frozen=True)
class Drift:
    """Bits per byte of one kind of text, before and after a stage."""

    kind: str
    before: float | None
    after: float | None

    @property
    def change(self) -> str:
        if not self.before or self.after is None:
            return ""
        ratio = self.after / self.before - 1
        return f"{'+' if ratio >= 0 else '−'}{words.share(abs(ratio), 2)}"


def scores(facts: AgentEvalFacts) -> tuple[Score, ...]:
    """The models in the order of training on the suite that compares them, those that were measured."""
    found = [Score(name, stage, facts.suite(stage, FRESH)) for stage, name in MODELS.items()]
    return tuple(one for one in found if one.suite)


def baselines(facts: AgentEvalFacts) -> tuple[Score, ...]:
    """What policies without a model reach on the same tasks."""
    found = [Score(name, "baseline", facts.suite(name, FRESH)) for name in facts.models if name not in MODELS]
    return tuple(one for one in found if one.suite)


def last_model(facts: AgentEvalFacts) -> str | None:
    """The stage of the furthest model that was measured."""
    return next((stage for stage in reversed(MODELS) if facts.suite(stage, FRESH)), None)


def suite_scores(facts: AgentEvalFacts) -> tuple[SuiteScore, ...]:
    """The last model on everything it was measured on, the suite it was compared on first."""
    stage = last_model(facts)
    if stage is None:
        return ()
    measured = facts.models[stage].suites
    names = [name for name in SUITES if name in measured] + [name for name in measured if name not in SUITES]
    return tuple(SuiteScore(name, SUITES.get(name, ""), measured[name]) for name in names if measured[name])


def effect(before: RateFacts, after: RateFacts) -> Effect:
    """What stands between two measurements; without an interval nothing is known."""
    if before.interval is None or after.interval is None:
        return "unclear"
    if after.interval[0] > before.interval[1]:
        return "helped"
    return "hurt" if after.interval[1] < before.interval[0] else "unclear"


def effects(facts: AgentEvalFacts) -> list[str]:
    """A sentence on each stage whose model was measured together with the one before."""
    known = scores(facts)
    return [
        _effect(SUBJECTS[now.style], before.suite, now.suite)
        for before, now in pairwise(known)
        if list(MODELS).index(now.style) == list(MODELS).index(before.style) + 1
    ]


def _effect(subject: str, before: RateFacts, after: RateFacts) -> str:
    went = f"{words.share(before.share)} → {words.share(after.share)}"
    match effect(before, after):
        case "unclear":
            return f"{subject} made no difference beyond chance: {went} (the 95% intervals overlap)."
        case done:
            return f"{subject} {done}: {went}."


def headline(facts: AgentEvalFacts) -> str:
    """What the agent can do, in one sentence; empty where it was not measured."""
    known = scores(facts)
    if not known:
        return ""
    last = known[-1].suite
    text = f"As an agent that runs tools it passes {_rate(last)} of {words.count(last.tasks)} tasks it has never seen"
    others = (
        [f"the base model {words.share(known[0].suite.share)}"] if known[0].style == "pretrain" and known[1:] else []
    )
    others += [f"“{one.name}” {words.share(one.suite.share)}" for one in baselines(facts)]
    return f"{text}; {words.listing(others)}." if others else f"{text}."


def transfer(facts: AgentEvalFacts) -> str:
    """What it makes of families that it was never trained on; empty where that was not measured."""
    stage = last_model(facts)
    suite = facts.suite(stage, TRANSFER) if stage else SuiteFacts()
    if not suite:
        return ""
    each = words.listing([f"{family} {words.share(rate.share)}" for family, rate in suite.families.items()])
    return f"On families that it was never trained on it passes {_rate(suite)}: {each}."


def adherence(report: Report) -> tuple[Adherence, ...]:
    """Every principle of the SOUL in its order, then checks that were measured and have none."""
    before = report.agent_eval.suite("sft", FRESH).adherence
    after = report.agent_eval.suite("preference", FRESH).adherence
    try:
        principles = parse_soul(report.synth.soul, "SOUL.md").principles
    except ConfigurationError:  # of another version, or none: the checks' names must do
        principles = ()
    named = [one.check for one in principles]
    rows = [(one, one.check or "") for one in principles]
    others = [(None, check) for check in (*before, *(c for c in after if c not in before)) if check not in named]
    return tuple(
        Adherence(principle, check, before.get(check, RateFacts()), after.get(check, RateFacts()))
        for principle, check in (*rows, *others)
    )


def adherence_verdict(rows: tuple[Adherence, ...]) -> str:
    """What the preference stage did to the principles; empty where it was not measured on both sides."""
    known = [one for one in rows if one.change]
    if not known:
        return ""
    moved = [
        f"{one.check} {words.share(one.before.share)} → {words.share(one.after.share)}"
        for one in known
        if one.change != "within chance"
    ]
    if not moved:
        return "The preference stage moved no principle beyond chance."
    rest = len(known) - len(moved)
    others = f"; {rest} more stayed within it" if rest else ""
    return f"The preference stage moved {words.listing(moved)}, beyond chance{others}."


def drift(before: ByKind, after: ByKind) -> tuple[Drift, ...]:
    """What a stage unlearned of plain text, by kind."""
    both = (Drift("Code", before.code, after.code), Drift("English", before.english, after.english))
    return tuple(one for one in both if one.before is not None or one.after is not None)


def _rate(rate: RateFacts) -> str:
    if rate.interval is None:
        return words.share(rate.share)
    return f"{words.share(rate.share)} (95% interval {interval(rate.interval)})"


def interval(value: tuple[float, float] | None) -> str:
    """83% to 97%."""
    return words.MISSING if value is None else f"{words.share(value[0])} to {words.share(value[1])}"
