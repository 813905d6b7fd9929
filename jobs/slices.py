"""`nanocode slices`: what we have in the cloud, what it costs, who uses it; and the janitor, who deletes the rest."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.provisioners import inventories
from deploy.provisioners.janitor import Found, Inventory, Survey, Verdict, survey, sweep
from deploy.provisioners.uses import Runs, Use
from jobs.printable import visible
from nanocode.config import prices
from nanocode.config.settings import Settings, load
from nanocode.report.words import MISSING, dollars, duration
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError, Exit, UsageError
from nanocode.run.settling import read_settings
from nanocode.storage.objects import open_store

Open = Callable[[Settings], list[Inventory]]


def slices(
    locations: Sequence[str],
    overrides: Iterable[str],
    as_json: bool,
    janitor: bool,
    dry_run: bool,
    older_than_hours: float,
    open_inventories: Open | None = None,
    clock: Callable[[], float] = time.time,
) -> Exit:
    """Print them; `ConfigurationError` where nothing can be asked. FAILED: something is not known, or not deleted."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # what is printed may be JSON
    runs = Runs(locations)
    if locations and not runs.urls:
        raise UsageError(f"{', '.join(locations)}: no run is there: name run directories, or folders of them")
    settings = settings_for(runs, overrides)
    seen = survey((open_inventories or inventories.inventories)(settings))
    if seen.refusals and not seen.things and not seen.silences:
        raise ConfigurationError(seen.refusals[0])
    now, uses = clock(), dict[str, Use | None]()

    def use_of(found: Found) -> Use | None:
        uses[found.name] = runs.use(found.run, found.slice, found.url) if found.run else None
        return uses[found.name]

    verdicts = sweep(seen, use_of, clock, older_than_hours * 3600, dry_run=dry_run or not janitor)
    rows = [_row(one, uses[one.found.name], settings, now, janitor) for one in verdicts]
    print(_as_json(rows, seen, settings) if as_json else _as_text(rows, seen, settings, janitor, dry_run))
    for sentence in () if as_json else (*seen.refusals, *seen.silences):
        print(f"nanocode: {sentence}", file=sys.stderr, flush=True)
    failed = bool(seen.silences) or any(one.trouble for one in verdicts)
    return Exit.FAILED if failed else Exit.DONE


def settings_for(runs: Runs, overrides: Iterable[str]) -> Settings:
    """Project and prices of the first run that is named, zones of all; else those of the environment; `--set` wins."""
    if not runs.urls:
        return load(None, overrides)
    settings = read_settings(RunDirectory(open_store(runs.urls[0])))
    zones = f"controller.zones={json.dumps(runs.zones())}"
    return load(None, [zones, *overrides], base=settings.model_dump(mode="json"))


def _row(verdict: Verdict, use: Use | None, settings: Settings, now: float, janitor: bool) -> dict[str, Any]:
    found = verdict.found
    row = {
        "name": found.name,
        "kind": found.kind,
        "zone": found.zone,
        "chips": found.chips,
        "accelerator": found.accelerator,
        "spot": found.spot,
        "state": found.state,
        "age_seconds": max(0.0, now - found.created) if found.created is not None else None,
        "dollars_per_hour": _dollars_per_hour(found, use, settings),
        "run": use.run if use is not None else found.run or None,
        "slice": found.slice or None,
        "owner": found.owner or None,
        "stage": use.stage if use is not None else None,
        "attempt": use.attempt if use is not None else None,
        "expires": found.expires or None,
    }
    if janitor:
        told = {"orphan": verdict.orphan, "reason": verdict.reason, "deleted": verdict.deleted}
        row |= {**told, "trouble": verdict.trouble or None}
    return row


def _dollars_per_hour(found: Found, use: Use | None, settings: Settings) -> float | None:
    """As its run has written it, else by the table; None where nobody has said it."""
    if not found.costs:
        return 0.0
    if use is not None and use.dollars_per_hour is not None:
        return use.dollars_per_hour
    for one in (use.settings, settings) if use is not None else (settings,):
        chip = prices.chip_dollars(one.prices, found.zone, found.accelerator, found.spot)
        if chip is not None:
            return chip * found.chips
    return None


def _totals(rows: Sequence[dict[str, Any]]) -> tuple[float, list[str]]:
    """Dollars per hour of all whose price is known, and the zones of the others."""
    rows = [row for row in rows if not row.get("deleted")]
    known = [row["dollars_per_hour"] for row in rows if row["dollars_per_hour"] is not None]
    return sum(known), sorted({row["zone"] for row in rows if row["dollars_per_hour"] is None})


def _as_json(rows: Sequence[dict[str, Any]], seen: Survey, settings: Settings) -> str:
    total, unpriced = _totals(rows)
    found = {"slices": rows, "dollars_per_hour": total, "unpriced_zones": unpriced}
    besides = prices.dollars_per_hour_at_work(settings.prices)
    return json.dumps(
        {**found, "besides_dollars_per_hour": besides, "unknown": [*seen.refusals, *seen.silences]}, indent=1
    )


def _as_text(rows: Sequence[dict[str, Any]], seen: Survey, settings: Settings, janitor: bool, dry_run: bool) -> str:
    """A table, wide enough for its names, and what it comes to in a line."""
    if not rows:
        return "there is nothing of ours" + (", as far as is known" if seen.refusals or seen.silences else "")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("name", "kind", "zone", "chips", "state", "age", "per hour", "used by"):
        table.add_column(title, no_wrap=True, justify="right" if title in ("chips", "age", "per hour") else "left")
    if janitor:
        table.add_column("janitor", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in _cells(row, janitor, dry_run)))
    console = Console(width=max(400, Console().width))
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join([*lines, "", _summary(rows, settings)])


def _cells(row: dict[str, Any], janitor: bool, dry_run: bool) -> list[str]:
    where = visible(str(row["run"])) if row["run"] else "not ours"
    who = f"{where}, {row['stage']} {row['attempt']}" if row["stage"] else where
    chips = f"{row['chips']} {row['accelerator']}".rstrip()
    kind = f"spot {row['kind']}" if row["spot"] else row["kind"]
    cells = [row["name"].rpartition("/")[2], kind, row["zone"], chips, row["state"].lower() or MISSING]
    cells += [duration(row["age_seconds"]), dollars(row["dollars_per_hour"]), who]
    if janitor:
        cells.append(_told(row, dry_run))
    return cells


def _told(row: dict[str, Any], dry_run: bool) -> str:
    if not row["orphan"]:
        return f"kept: {row['reason']}"
    if row["trouble"]:
        return f"not deleted ({row['trouble']}): {row['reason']}"
    return f"{'would be deleted' if dry_run else 'deleted'}: {row['reason']}"


def _summary(rows: Sequence[dict[str, Any]], settings: Settings) -> str:
    left = [row for row in rows if not row.get("deleted")]
    total, unpriced = _totals(rows)
    parts = [f"{len(left)} there, {sum(row['chips'] for row in left)} chips, {dollars(total)} an hour"]
    if unpriced:
        parts.append(f"without {', '.join(unpriced)}, whose price nobody has said (prices.chip_hour)")
    besides = prices.dollars_per_hour_at_work(settings.prices)
    if besides:
        parts.append(f"cluster and CPU nodes cost {dollars(besides)} an hour besides")
    return "; ".join(parts)
