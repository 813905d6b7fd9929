"""What a run has cost and will have cost, for `nanocode status` and all that shows the same."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanocode.config import prices
from nanocode.config.settings import Settings, Training
from nanocode.run.costs import Bill, bill, dollars_per_hour
from nanocode.run.directory import RunDirectory
from nanocode.run.forecast import Work, forecast
from nanocode.run.goodput import Ledger
from nanocode.run.graph import STAGES, order
from nanocode.run.history import ended
from nanocode.run.intent import latest_intent


def money(
    run: RunDirectory,
    settings: Settings,
    stages: Sequence[Mapping[str, Any]],
    ledgers: Mapping[str, Ledger],
    chips: Callable[[str, int], int],
    told: Sequence[float],
    now: float,
) -> dict[str, Any]:
    """The keys of the status that are about it. `told`: what the controller says is spent, what is newest first."""
    attempts = [(claim, ended(run, claim, now)) for name in order() for claim in run.attempts(name)]
    found = bill(run, settings, attempts, now)
    spent = next((one for one in (*told[:1], found.dollars, *told[1:]) if one), 0.0)
    spent = spent or sum(stage["cost_dollars"] for stage in stages)
    wanted = latest_intent(run).stages or order()
    works = [_work(stage, ledgers[stage["name"]], settings) for stage in stages if _needs_a_slice(stage, wanted)]
    outlook = forecast(spent, _dollars_per_hour(run, settings, stages, found, chips), works)
    return {
        "spent_dollars": spent,
        "forecast_dollars": outlook.dollars if outlook is not None else None,
        "forecast_without": list(outlook.without) if outlook is not None else [],
        "unpriced_zones": found.unpriced,
        "stored_bytes": found.stored_bytes,
        "stored_dollars": found.stored,
        "copied_bytes": found.copied_bytes,
        "copied_dollars": found.copied,
        "slices": [
            {
                "name": one.name,
                "zone": one.zone,
                "dollars_per_hour": one.dollars_per_hour,
                "hours": one.hours,
                "dollars": one.dollars,
                "costs": one.costs,
            }
            for one in found.slices
        ],
    }


def _needs_a_slice(stage: Mapping[str, Any], wanted: Sequence[str]) -> bool:
    name = stage["name"]
    return STAGES[name].machine == "accelerator" and (name in wanted or stage["state"] == "done")


def _work(stage: Mapping[str, Any], ledger: Ledger, settings: Settings) -> Work:
    name = stage["name"]
    if not STAGES[name].trains:
        running = stage["eta_seconds"] if stage["state"] == "running" else None
        return Work(name, done=float(stage["state"] == "done"), left=running)
    own: Training = getattr(settings, name)
    share = 1.0 if stage["state"] == "done" else min(1.0, (stage["step"] or 0) / stage["steps"])
    if stage["state"] != "done" and share == 1.0:
        share = (stage["steps"] - 1) / stage["steps"]  # its last steps are done, and it is not
    return Work(name, float(own.batch_tokens) * stage["steps"], share, ledger.seconds_at_work)


def _dollars_per_hour(
    run: RunDirectory,
    settings: Settings,
    stages: Sequence[Mapping[str, Any]],
    found: Bill,
    chips: Callable[[str, int], int],
) -> float | None:
    """Of the machines that the rest will run on: those it has now, else those it had last."""
    besides = prices.dollars_per_hour_at_work(settings.prices)
    besides += prices.storage_dollars(settings.prices, found.stored_bytes) or 0.0
    claims = [claim for name in order() if STAGES[name].machine == "accelerator" for claim in run.attempts(name)]
    last = max(claims, key=lambda claim: claim.claimed, default=None)
    price = dollars_per_hour(run, settings, last.slice) if last is not None else None
    if price is None and last is not None and settings.budget.dollars_per_chip_hour:
        price = chips(last.stage, last.attempt) * settings.budget.dollars_per_chip_hour or None
    if price is None:
        known = [one for one in found.slices if one.costing and one.dollars_per_hour]
        price = known[-1].dollars_per_hour if known else None
    return None if price is None else price + besides
