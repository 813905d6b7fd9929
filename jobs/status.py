"""`nanocode status`: what the run directory says about each stage."""

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.stage import read_settings
from nanocode.run.digests import stage_digests
from nanocode.run.directory import RunDirectory
from nanocode.run.graph import order
from nanocode.run.segments import read_segments
from nanocode.storage.objects import open_store


def read(location: str) -> dict[str, Any]:
    """The documented object of `nanocode status --json`; `ConfigurationError` where there is no run."""
    run = RunDirectory(open_store(location))
    settings = read_settings(run)
    digests = stage_digests(settings, run)
    stages = [_stage(run, name, digests[name], settings.pretrain_steps) for name in order()]
    states = {stage["state"] for stage in stages}
    state = "done" if states == {"done"} else "unfinished"
    return {"run": run.store.url, "state": state, "stages": stages}


def _stage(run: RunDirectory, name: str, digest: str, steps: int) -> dict[str, Any]:
    marker, attempts = run.done(name), run.attempts(name)
    found: dict[str, Any] = dict.fromkeys(
        ("step", "steps", "loss", "tokens_per_second", "mfu", "preemptions", "failures", "goodput", "reason")
    )
    if marker is not None and marker.input_digest == digest:
        state = "done"
    elif marker is not None:
        state = "stale"
    else:
        state = "begun" if attempts else "waiting"
    if name == "pretrain":
        found["steps"] = steps
        own = [claim.attempt for claim in attempts if claim.input_digest == digest]
        for record in read_segments(run.store, name, "metrics", own[-1]) if own else ():
            if record.get("kind") == "step":
                found["step"], found["loss"] = record["step"] + 1, record["loss"]
            elif record.get("kind") == "time":
                found["tokens_per_second"], found["mfu"] = record["tokens_per_second"], record["mfu"]
    cost = marker.cost_dollars if marker is not None else 0.0
    return {"name": name, "state": state, **found, "attempts": len(attempts), "cost_dollars": cost}


def table(found: dict[str, Any]) -> str:
    """The same for people."""
    drawn = Table(title=f"{found['run']}: {found['state']}", title_justify="left")
    for column in ("stage", "state", "step", "loss", "tokens/s", "MFU", "attempts"):
        drawn.add_column(column, justify="left" if column in ("stage", "state") else "right")
    for stage in found["stages"]:
        step = f"{stage['step']}/{stage['steps']}" if stage["step"] else "–"
        drawn.add_row(
            stage["name"],
            stage["state"],
            step,
            _number(stage["loss"], ".3f"),
            _number(stage["tokens_per_second"], ",.0f"),
            _number(stage["mfu"], ".1%"),
            str(stage["attempts"]),
        )
    out = io.StringIO()
    Console(file=out, width=100).print(drawn)
    return out.getvalue().rstrip()


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
