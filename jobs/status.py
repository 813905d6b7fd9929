"""`nanocode status`: what the run directory says about each stage."""

import io
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.stage import read_settings
from nanocode.run.digests import stage_digests
from nanocode.run.directory import RunDirectory
from nanocode.run.graph import order
from nanocode.run.liveness import last_sign, seems_alive
from nanocode.run.segments import read_segments
from nanocode.storage.objects import open_store


def read(location: str) -> dict[str, Any]:
    """The documented object of `nanocode status --json`; `ConfigurationError` where there is no run."""
    run = RunDirectory(open_store(location))
    settings = read_settings(run)
    digests = stage_digests(settings, run)
    stages = [_stage(run, name, digests[name], settings.pretrain_steps) for name in order()]
    states = {stage["state"] for stage in stages}
    state = "done" if states == {"done"} else "running" if "running" in states else "unfinished"
    return {"run": run.store.url, "state": state, "stages": stages}


def _stage(run: RunDirectory, name: str, digest: str, steps: int) -> dict[str, Any]:
    marker, attempts = run.done(name), run.attempts(name)
    found: dict[str, Any] = dict.fromkeys(
        ("attempt", "step", "steps", "loss", "tokens_per_second", "mfu", "preemptions", "failures", "goodput", "reason")
    )
    own = [claim for claim in attempts if claim.input_digest == digest]
    if marker is not None and marker.input_digest == digest:
        state, found["attempt"] = "done", marker.attempt
    else:
        state = "stale" if marker is not None else "begun" if attempts else "waiting"
        if own:
            now = time.time()
            # The newest sign, not the highest number: of two processes on one run the older one may be the last alive.
            sign, claim = max(((last_sign(run, one), one) for one in own), key=lambda pair: (pair[0], pair[1].attempt))
            found["attempt"] = claim.attempt
            if seems_alive(claim, sign, now):
                state = "running"
            else:
                found["reason"] = f"attempt {claim.attempt} by {claim.who} wrote last {now - sign:,.0f} s ago"
    if name == "pretrain":
        found["steps"] = steps
        for record in read_segments(run.store, name, "metrics", found["attempt"]) if found["attempt"] else ():
            if record.get("kind") == "step":
                found["step"], found["loss"] = record["step"] + 1, record["loss"]
            elif record.get("kind") == "time":
                found["tokens_per_second"], found["mfu"] = record["tokens_per_second"], record["mfu"]
    cost = marker.cost_dollars if marker is not None else 0.0
    return {"name": name, "state": state, **found, "attempts": len(attempts), "cost_dollars": cost}


def table(found: dict[str, Any]) -> str:
    """The same for people."""
    drawn = Table(title=f"{found['run']}: {found['state']}", title_justify="left")
    for column in ("stage", "state", "step", "loss", "tokens/s", "MFU", "attempt"):
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
            f"{stage['attempt']} of {stage['attempts']}" if stage["attempt"] else str(stage["attempts"] or "–"),
        )
    out = io.StringIO()
    Console(file=out, width=100).print(drawn)
    return out.getvalue().rstrip()


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
