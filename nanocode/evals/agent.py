"""How well an agent does tasks: really executed, judged by their checks, with intervals.

Intervals are Wilson's (1927) at 95%; pass@k is the unbiased estimate of Chen et al. 2021 (arXiv:2107.03374).
"""

from collections.abc import Iterable, Sequence
from math import comb, sqrt
from typing import Any

from pydantic import BaseModel, ConfigDict

from nanocode.agent.conversation import Conversation, Step, User, to_json
from nanocode.agent.episode import Policy
from nanocode.agent.soul import Soul
from nanocode.tasks.draw import Novelty
from nanocode.tasks.families import TRAINED, TRANSFER, scenario
from nanocode.tasks.playing import Attempt, attempts
from nanocode.tasks.task import Task

Z = 1.959964
"""Of the normal distribution: 95% lie within."""
STREAM = "eval"

SUITES: dict[str, tuple[Novelty, tuple[str, ...]]] = {
    "fresh": (Novelty(), TRAINED),
    "new words": (Novelty(words=True), TRAINED),
    "new phrasings": (Novelty(phrasings=True), TRAINED),
    "all new": (Novelty(words=True, phrasings=True), TRAINED),
    "transfer": (Novelty(), TRANSFER),
}
"""What each suite has that training never had, and its families. Instances are new in all of them."""


class TaskResult(BaseModel):
    """One attempt at one task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    family: str
    passed: bool
    reason: str = ""
    steps: int
    calls: int
    failed_calls: int
    """Calls whose result was an error, such as an edit of a text that is not there."""
    kept: dict[str, bool]
    """The SOUL's checks that the conversation gave an occasion for, and whether it kept them."""
    messages: list[dict[str, Any]]


def suite(name: str, instances: int, seed: int = 0) -> list[Task]:
    """The tasks of a built-in suite, `instances` of each family; nothing else draws from this stream."""
    novelty, families = SUITES[name]
    return [scenario(f, f"{STREAM}-{seed}", n, novelty).task for f in families for n in range(instances)]


def evaluate(policy: Policy, tasks: Sequence[Task], soul: Soul, unsafe_bash: bool = False) -> list[TaskResult]:
    """Every task played side by side, and judged."""
    return [_result(one, soul) for one in attempts(policy, tasks, unsafe_bash=unsafe_bash)]


def _result(one: Attempt, soul: Soul) -> TaskResult:
    steps = [message for message in one.messages if isinstance(message, Step)]
    values = to_json(one.messages)
    return TaskResult(
        id=one.task.id,
        family=one.task.family,
        passed=one.verdict.passed,
        reason=one.verdict.reason,
        steps=len(steps),
        calls=sum(step.call is not None for step in steps),
        failed_calls=sum(value.get("result", "").startswith("error:") for value in values),
        kept=soul.kept(one.messages),
        messages=values,
    )


class Rate(BaseModel):
    """A share of successes, with its 95% interval."""

    model_config = ConfigDict(frozen=True)

    passed: int
    total: int

    @property
    def share(self) -> float:
        return self.passed / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's: never outside [0, 1], and honest at 0 and 1."""
        if not self.total:
            return 0.0, 1.0
        n, p = self.total, self.share
        middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z / (1 + Z * Z / n) * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {"passed": self.passed, "total": self.total, "pass@1": self.share, "interval": [low, high]}


def by_family(results: Iterable[TaskResult]) -> dict[str, Rate]:
    """The rate of each family, in the order in which they come."""
    found: dict[str, list[bool]] = {}
    for result in results:
        found.setdefault(result.family, []).append(result.passed)
    return {family: Rate(passed=sum(passed), total=len(passed)) for family, passed in found.items()}


def macro_average(rates: dict[str, Rate]) -> tuple[float, tuple[float, float]]:
    """The mean over families, and its 95% interval: families are fixed, so only their instances are chance."""
    if not rates:
        return 0.0, (0.0, 1.0)
    mean = sum(rate.share for rate in rates.values()) / len(rates)
    # Agresti and Coull's p̃ keeps a family without a failure from claiming to be certain.
    variance = 0.0
    for rate in rates.values():
        p = (rate.passed + Z * Z / 2) / (rate.total + Z * Z)
        # Over n, not their n + Z²: that would hold the truth of 10 families of 10 instances in 89 of 100 cases.
        variance += p * (1 - p) / max(rate.total, 1)
    half = Z * sqrt(variance) / len(rates)
    return mean, (max(0.0, mean - half), min(1.0, mean + half))


def adherence(results: Iterable[TaskResult]) -> dict[str, Rate]:
    """By the SOUL's check: how often it was kept, of the conversations that gave an occasion."""
    found: dict[str, list[bool]] = {}
    for result in results:
        for check, kept in result.kept.items():
            found.setdefault(check, []).append(kept)
    return {check: Rate(passed=sum(kept), total=len(kept)) for check, kept in sorted(found.items())}


def pass_at_k(attempted: int, passed: int, k: int) -> float:
    """The chance that one of k attempts passes, estimated from more; `ValueError` for k beyond the attempts."""
    if not 0 < k <= attempted:
        raise ValueError(f"pass@{k} cannot be estimated from {attempted} attempts: make at least {k}")
    return 1.0 - comb(attempted - passed, k) / comb(attempted, k)


class DoNothing:
    """A policy that ends its turn at once: what a check lets through for free."""

    def __call__(self, conversations: Sequence[Conversation]) -> list[Step]:
        return [Step("Done.") for _ in conversations]


class CopyRequest:
    """A policy that answers with the request's own words."""

    def __call__(self, conversations: Sequence[Conversation]) -> list[Step]:
        return [Step(one[0].text if isinstance(one[0], User) else "") for one in conversations]


BASELINES: dict[str, Policy] = {"do nothing": DoNothing(), "copy the request": CopyRequest()}
