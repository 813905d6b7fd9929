"""Deletes slices that nobody uses any more. What it may touch, and when:

| what is there                        | what its run says                                   | then      |
|--------------------------------------|-----------------------------------------------------|-----------|
| without our labels, or being deleted | -                                                   | is left   |
| younger than the bound               | -                                                   | is left   |
| older                                | it was given back longer ago than the bound         | goes      |
| older                                | it never asked for it                               | goes      |
| older                                | no sign of life for longer than the bound           | goes      |
| older                                | a sign of life within the bound                     | is left   |
| label expired longer ago than it     | nothing: it cannot be read, or nobody knows it      | goes      |
| anything else                        | the same                                            | is left   |

The bound is never shorter than a run lets its slices live unattended. Clocks differ: what is dated in the future is
taken to be now, and the bound is far longer than clocks are apart.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from deploy.controller.backend import Unreachable
from deploy.provisioners.uses import Use
from nanocode.run.exits import ConfigurationError

log = structlog.get_logger()

BOUND_SECONDS = 2 * 3600.0
"""Twice what a TPU VM lives without a controller, by default: it deletes itself long before."""
SHORTEST_BOUND_SECONDS = 600.0
"""A status is renewed every 10 s; the rest is for clocks that differ, and for a bucket that gives no answer."""


@dataclass(frozen=True)
class Found:
    """One thing in the cloud that costs or holds quota."""

    name: str
    """As the cloud calls it, in full."""
    kind: str
    """`queued resource` or `node pool`."""
    zone: str
    chips: int
    """That it has, or has asked for."""
    created: float | None
    """Unix seconds, by the cloud's clock; None where it does not say."""
    run: str = ""
    """The run's part of its labels; empty: it is somebody else's."""
    expires: float = 0.0
    """By its label; 0 where that cannot be read."""
    state: str = ""
    slice: str = ""
    owner: str = ""
    url: str | None = None
    """Of the run directory, where the thing itself knows it."""
    accelerator: str = "v6e"
    """As the price table calls the kind of its chips."""
    spot: bool = True
    costs: bool = True
    """It has machines now; a request that waits has none."""
    leaving: bool = False
    """It is being deleted."""


class Inventory(Protocol):
    """What one API has made."""

    def list(self) -> Sequence[Found]:
        """All with our labels; `Unreachable` without a whole answer, `ConfigurationError` if there can be none."""

    def delete(self, found: Found) -> None:
        """Have it deleted, and do not wait for that; gone already is no error. `Unreachable` when it is not certain."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of one thing."""

    found: Found
    orphan: bool
    reason: str
    deleted: bool = False
    trouble: str = ""
    """Why it could not be deleted."""


def judge(found: Found, use: Use | None, now: float, bound: float = BOUND_SECONDS) -> Verdict:
    """By the table above. `use`: what its run says; None where that cannot be read."""

    def age(since: float | None) -> float:
        return 0.0 if since is None else max(0.0, now - since)

    def kept(reason: str) -> Verdict:
        return Verdict(found, False, reason)

    bound = max(bound, SHORTEST_BOUND_SECONDS)
    if not found.run or not found.slice:
        return kept("it has no labels of ours")
    if found.leaving:
        return kept("it is being deleted")
    if use is None or (found.created is None and not use.asked_for):
        if found.expires and age(found.expires) > bound and (found.created is None or age(found.created) > bound):
            return Verdict(found, True, f"its run cannot be read, and its label expired {_ago(age(found.expires))}")
        return kept("its run cannot be read, and its label has not expired long ago")
    bound = max(bound, use.unattended_seconds)
    if found.created is not None and age(found.created) <= bound:
        return kept(use.what or "it is new")
    if use.released is not None and age(use.released) > bound and not use.lives(now, bound):
        return Verdict(found, True, f"it was given back {_ago(age(use.released))}")
    if not use.asked_for and not use.lives(now, bound):
        return Verdict(found, True, "its run never asked for it")
    if age(use.heard) > bound:
        heard = f"last heard of {_ago(age(use.heard))}" if use.heard else "never heard of"
        return Verdict(found, True, f"its run was {heard}")
    return kept(use.what or "its run is under way")


@dataclass(frozen=True)
class Survey:
    """What there is."""

    things: tuple[tuple[Inventory, Found], ...] = ()
    refusals: tuple[str, ...] = ()
    """APIs that cannot be asked, each with the next move: what they would have shown is not there."""
    silences: tuple[str, ...] = ()
    """APIs that gave no answer: nobody knows what they have."""


def survey(inventories: Iterable[Inventory]) -> Survey:
    """Everything that is there; one API that gives no answer hides nothing of another."""
    things: list[tuple[Inventory, Found]] = []
    refusals, silences = [], []
    for inventory in inventories:
        try:
            things += [(inventory, found) for found in inventory.list()]
        except ConfigurationError as error:
            refusals.append(str(error))
        except Unreachable as error:
            silences.append(str(error))
    return Survey(tuple(things), tuple(refusals), tuple(silences))


def sweep(
    seen: Survey,
    use_of: Callable[[Found], Use | None],
    clock: Callable[[], float],
    bound: float = BOUND_SECONDS,
    dry_run: bool = False,
) -> list[Verdict]:
    """Judge everything, each by what its run says at that moment, and delete the orphans.

    What cannot be deleted is told in its verdict, and holds up nothing else.
    """
    verdicts = []
    for inventory, found in seen.things:
        verdict = judge(found, use_of(found), clock(), bound)
        if verdict.orphan and not dry_run:
            verdict = delete(inventory, verdict)
        verdicts.append(verdict)
    return verdicts


def delete(inventory: Inventory, verdict: Verdict) -> Verdict:
    """The verdict with what became of it."""
    try:
        inventory.delete(verdict.found)
    except (Unreachable, ConfigurationError) as error:
        log.warning("an orphan could not be deleted", name=verdict.found.name, error=str(error))
        return replace(verdict, trouble=str(error))
    return replace(verdict, deleted=True)


def _ago(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h ago"
