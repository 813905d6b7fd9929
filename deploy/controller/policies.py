"""What the controller is allowed to do, each rule a pure function of what was observed.

Times were written by several clocks, which may step: an age that comes out negative counts as zero, so a step can make
the controller late by its size, and never makes it forget.
"""

import math
from collections.abc import Iterable, Sequence

from deploy.controller.observed import Attempt, Observed, Process, Slice, Stage, Trouble
from nanocode.config.settings import Budget, Controller
from nanocode.run.attempts import End, Ending, by_exit_code
from nanocode.run.costs import hours, union
from nanocode.run.exits import Exit

GONE = (Process.EXITED, Process.LOST, Process.ABSENT)
SECONDS_PER_HOUR = 3600.0
USEFUL_MINUTES = 5.0
"""A slice that the budget would have to end before this is not worth asking for: the first step takes that long."""
LOOKS_TO_STOP = 5
"""One each to tell an attempt, to end it, to see that it has, to give its slice back, and to spare."""
PERMISSION_MINUTES = 60.0
"""How long a zone is left alone in which we may do nothing: until somebody has granted it."""


def age(now: float, since: float | None) -> float:
    """Seconds since then; 0 for a time to come."""
    return 0.0 if since is None else max(0.0, now - since)


# -- attempts ----------------------------------------------------------------------------------------------------------


def ending(stage: Stage, attempt: Attempt, policy: Controller, now: float) -> tuple[Ending, str] | None:
    """What the end of a live attempt counts as, and why; None while its process may still do something."""
    seen, stop = attempt.seen, attempt.stop
    if seen.process not in GONE:
        return None
    if stage.marked == attempt.digest:
        return Ending.DONE, "done"
    if stop is not None:
        return (Ending.FAILED if stop.hung else Ending.STOPPED), stop.reason
    if seen.process is Process.LOST:
        return Ending.PREEMPTED, seen.reason or "it vanished with its host"
    if seen.process is Process.ABSENT:
        late = age(now, attempt.claimed) > policy.admission_minutes * 60
        return (Ending.PREEMPTED, "it was claimed and never started") if late else None
    return _ending_by_exit_code(seen.exit_code, seen.disrupted, seen.reason)


def _ending_by_exit_code(code: int | None, disrupted: bool, reason: str) -> tuple[Ending, str]:
    found = Ending.PREEMPTED if disrupted else by_exit_code(code)
    if found is Ending.PREEMPTED:
        return found, reason or "told to leave"
    if found is Ending.CONFIGURATION:
        return found, reason or f"exit code {code}"
    if code == Exit.DONE:
        return Ending.FAILED, "it ended with exit code 0 and left no marker"
    ended = "it was killed" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
    return Ending.FAILED, f"{ended}: {reason}" if reason else ended


def overdue(attempt: Attempt, policy: Controller, now: float, stepped: float | None) -> tuple[str, bool] | None:
    """Why a live attempt has to be stopped, and whether it hangs; None while every deadline holds.

    Deadlines begin anew when the clock has stepped: a laptop that slept must not think its work hangs.
    """

    def passed(since: float, minutes: float) -> bool:
        return age(now, max(since, stepped or since)) > minutes * 60

    seen = attempt.seen
    if seen.process is Process.PENDING and passed(seen.since or attempt.claimed, policy.admission_minutes):
        return f"no machine took it within {policy.admission_minutes:g} minutes", False
    if seen.process is not Process.RUNNING:
        return None
    if attempt.first_step is None:
        if passed(max(seen.since or attempt.claimed, attempt.copying or 0.0), policy.start_minutes):
            return f"it did no step within {policy.start_minutes:g} minutes", True
    elif passed(max(attempt.first_step, attempt.last_sign or 0.0), policy.heartbeat_minutes):
        return f"it gave no sign of life for {policy.heartbeat_minutes:g} minutes", True
    return None


def out_of_grace(attempt: Attempt, policy: Controller, now: float) -> bool:
    """Whether an attempt that was told to leave has had the time to."""
    return attempt.stop is not None and age(now, attempt.stop.at) > policy.termination_seconds


# -- retries -----------------------------------------------------------------------------------------------------------


def counted(stage: Stage, forgiven: int) -> list[End]:
    """The endings that a stage is judged by: of its digest, not forgiven, and not of our own doing."""
    ends = [one.end for one in stage.attempts if one.digest == stage.digest and one.number > forgiven]
    return [end for end in ends if end is not None and end.ending is not Ending.STOPPED]


def failures(ends: Iterable[End]) -> int:
    """Failures since the stage last got further than before."""
    count = furthest = 0
    for end in ends:
        if end.progress > furthest:
            count, furthest = 0, end.progress
        count += end.ending is Ending.FAILED
    return count


def exhausted(ends: Sequence[End], policy: Controller) -> str:
    """Why a stage is not tried again; empty while it is."""
    for end in ends:
        if end.ending is Ending.CONFIGURATION:
            return end.reason
    count = failures(ends)
    if count >= policy.failures:
        return f"{count} failures without progress, the last one: {_last_failure(ends)}"
    last = ends[-policy.attempts_without_progress :]
    if len(last) == policy.attempts_without_progress and len({end.progress for end in last}) == 1:
        return f"{len(last)} attempts ended where they began, the last one: {last[-1].reason}"
    return ""


def _last_failure(ends: Sequence[End]) -> str:
    return next(end.reason for end in reversed(ends) if end.ending is Ending.FAILED)


def waits(ends: Sequence[End], policy: Controller, now: float) -> bool:
    """Whether it is too early to try again: after a failure only, and longer after each."""
    if not ends or ends[-1].ending is not Ending.FAILED:
        return False
    return 0 <= now - ends[-1].at < policy.retry_seconds * 2 ** (failures(ends) - 1)


# -- slices ------------------------------------------------------------------------------------------------------------


def held(one: Slice) -> bool:
    """Asked for, and neither given back nor gone."""
    return one.requested is not None and one.released is None and one.gone is None


def has_machines(one: Slice) -> bool:
    """Whether they are there, and cost."""
    return one.machines if one.machines is not None else one.usable


def of_use(one: Slice) -> bool:
    """Whether a stage can begin on it."""
    return one.usable and (one.permanent or held(one))


def user_of(one: Slice, stages: Iterable[Stage]) -> Attempt | None:
    """The live attempt on a slice."""
    live = (attempt for stage in stages for attempt in stage.attempts if attempt.live)
    return next((attempt for attempt in live if attempt.slice == one.name), None)


def idle_seconds(one: Slice, stages: Iterable[Stage], now: float) -> float:
    """Since it came, or since the last attempt on it ended."""
    attempts = (attempt for stage in stages for attempt in stage.attempts if attempt.slice == one.name)
    return age(now, max([one.ready or 0.0, *(attempt.end.at for attempt in attempts if attempt.end)]))


def lost(one: Slice) -> bool:
    """Whether it was taken away from us."""
    return one.trouble is Trouble.PREEMPTED or (one.ready is not None and one.gone is not None and one.released is None)


def hopeless(one: Slice, policy: Controller, now: float) -> str:
    """Why a slice that we hold will not be of use (any more); empty while it may."""
    if one.trouble is not None:
        return f"{one.trouble.value}: {one.reason}" if one.reason else one.trouble.value
    if one.ready is None and age(now, one.requested) > policy.provision_minutes * 60:
        return f"it did not come within {policy.provision_minutes:g} minutes"
    return ""


def withdrawn(attempt: Attempt, slices: Iterable[Slice], policy: Controller, now: float) -> str:
    """Why an attempt that waits for a machine will not get one on its slice; empty while it may."""
    one = next((one for one in slices if one.name == attempt.slice and one.requested is not None), None)
    if attempt.seen.process is not Process.PENDING or one is None:
        return ""
    if reason := hopeless(one, policy, now):
        return f"{one.name} came to nothing, {reason}"
    return f"{one.name} is given back" if one.released is not None or one.gone is not None else ""


def last_reason(slices: Iterable[Slice]) -> str:
    """What the newest slice that came to nothing came to, in its own words."""
    told = [one for one in slices if one.trouble is not None and one.reason]
    return max(told, key=lambda one: one.requested or 0.0).reason if told else ""


def zones(slices: Iterable[Slice], policy: Controller, now: float) -> list[str]:
    """Where to ask for the next slice, best first: the fewest losses lately, then the price, then the user's order.

    When a zone has nothing for us again, that counts as a loss: else two cheap zones that take longer to say so than a
    zone is left alone would be asked in turn for ever, and a dearer one that has slices never. A price that nobody has
    said comes after all others. A zone that had no slice for us is left alone for a while; empty when all are.
    """
    known = [one for one in slices if not one.permanent]
    minutes = {
        Trouble.STOCKOUT: policy.stockout_minutes,
        Trouble.QUOTA: policy.stockout_minutes,
        Trouble.PERMISSION: PERMISSION_MINUTES,
        Trouble.OTHER: policy.stockout_minutes,
    }

    def refused(zone: str) -> bool:
        return any(
            one.zone == zone and one.trouble in minutes and age(now, one.released) <= minutes[one.trouble] * 60
            for one in known
            if one.trouble is not None
        )

    def losses(zone: str) -> int:
        lately = [one for one in known if age(now, one.gone or one.released) <= policy.churn_minutes * 60]
        mine = [one for one in lately if one.zone == zone]
        return sum(map(lost, mine)) + max(0, sum(one.trouble in minutes for one in mine) - 1)

    def promise(zone: str) -> tuple[int, float, int]:
        return losses(zone), policy.dollars_per_slice_hour.get(zone, math.inf), policy.zones.index(zone)

    return sorted((zone for zone in policy.zones if not refused(zone)), key=promise)


# -- money -------------------------------------------------------------------------------------------------------------


def came(one: Slice, seen: Observed) -> float | None:
    """When a slice began to cost, as the cloud says; else the look that did not show it yet. None: now.

    A bill is rounded up: by less than a look at either end that the cloud does not tell.
    """
    if one.since is not None:
        return one.since
    if seen.looked is None or one.requested is None:
        return None
    before = max(one.requested, seen.looked)
    return before if before < seen.now else None


def bill(seen: Observed) -> dict[str, float]:
    """Dollars so far by slice: from when it came until it is gone or taken away, or while an attempt lives on one that
    is permanent.

    One whose price nobody has said is billed at nothing, and `unpriced` names it.
    """
    found = {}
    for one in seen.slices:
        if one.permanent:
            attempts = [attempt for stage in seen.stages for attempt in stage.attempts if attempt.slice == one.name]
            spans = [_life(attempt, seen.now) for attempt in attempts]
        else:
            spans = [] if one.ready is None else [(one.ready, _end(one, seen.now))]
        found[one.name] = hours(spans) * (one.dollars_per_hour or 0.0)
    return found


def _end(one: Slice, now: float) -> float:
    """When a slice stopped to cost; one that was taken away does so before what is left of it is cleared away."""
    taken = one.released if one.trouble is Trouble.PREEMPTED else None
    return _first_of(one.gone, one.until, taken, now)


def spent(seen: Observed) -> float:
    """Dollars so far: the slices, cluster and CPU nodes while the run was at work, its bucket, and copies elsewhere."""
    lives = [_life(attempt, seen.now) for stage in seen.stages for attempt in stage.attempts]
    holds = [(one.requested, _end(one, seen.now)) for one in seen.slices if one.requested is not None]
    at_work = hours(union([*lives, *holds])) * seen.dollars_per_hour_at_work
    return sum(bill(seen).values()) + at_work + seen.dollars_stored + seen.dollars_copied


def burning(seen: Observed) -> list[float]:
    """Dollars per hour of every slice that costs now, as far as they are known."""
    costing = [
        one
        for one in seen.slices
        if (user_of(one, seen.stages) is not None if one.permanent else one.gone is None and one.ready is not None)
    ]
    return [one.dollars_per_hour for one in costing if one.dollars_per_hour is not None]


def unpriced(seen: Observed, policy: Controller) -> list[str]:
    """Where a slice has cost, or would, and nobody has said how much."""
    places = {one.zone: one.dollars_per_hour for one in seen.slices if one.permanent or one.ready is not None}
    if not any(one.permanent for one in seen.slices):
        places = {zone: policy.dollars_per_slice_hour.get(zone) for zone in policy.zones} | places
    return [zone for zone, dollars in places.items() if dollars is None]


def cost_of_stopping(prices: Iterable[float], policy: Controller) -> float:
    """Dollars that slices still cost once it is decided to stop: the grace, giving them back, and the looks between."""
    seconds = policy.termination_seconds + policy.release_seconds + LOOKS_TO_STOP * policy.seconds_between_looks
    return sum(prices) * seconds / SECONDS_PER_HOUR


def over_budget(seen: Observed, policy: Controller, budget: Budget) -> str:
    """Why going on would cost more than there is; empty while it would not.

    Stopping begins at the budget less what stopping costs. With nothing in use, a slice has to be worth its start. What
    costs nobody knows how much cannot be kept within a budget, so it is not begun.
    """
    if budget.dollars is None:
        return ""
    if (places := unpriced(seen, policy)) and _needs_slices(seen):
        return cannot_be_kept(places, budget.dollars)
    so_far, rates = spent(seen), burning(seen)
    if rates:
        needed = cost_of_stopping([*rates, seen.dollars_per_hour_at_work], policy)
    else:
        cheapest = _cheapest(seen, policy) + seen.dollars_per_hour_at_work
        needed = cost_of_stopping([cheapest], policy) + cheapest * USEFUL_MINUTES * 60 / SECONDS_PER_HOUR
    if so_far + needed < budget.dollars:
        return ""
    return f"${so_far:.2f} of ${budget.dollars:.2f} are spent: raise budget.dollars to go on"


def cannot_be_kept(places: Iterable[str], dollars: float) -> str:
    """Why a budget ends a run that needs slices in places nobody has said the price of."""
    return (
        f"nobody has said what a slice in {', '.join(places)} costs, so the budget of ${dollars:.2f} cannot "
        "be kept: set prices.chip_hour or controller.dollars_per_slice_hour"
    )


def _needs_slices(seen: Observed) -> bool:
    """Whether a stage that is asked for still has to run on one."""
    wanted = [stage for stage in seen.stages if not seen.intent.stages or stage.name in seen.intent.stages]
    return any(stage.machine == "accelerator" and not stage.done for stage in wanted)


def _cheapest(seen: Observed, policy: Controller) -> float:
    """Of the slices that a stage could begin on."""
    there = [one.dollars_per_hour for one in seen.slices if one.permanent]
    prices = there or [policy.dollars_per_slice_hour.get(zone) for zone in policy.zones]
    return min((one for one in prices if one is not None), default=0.0)


def _life(attempt: Attempt, now: float) -> tuple[float, float]:
    return attempt.claimed, attempt.end.at if attempt.end else now


def _first_of(*times: float | None) -> float:
    return min(time for time in times if time is not None)
