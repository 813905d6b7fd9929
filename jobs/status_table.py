"""The table of `nanocode status`, as wide as the terminal allows, once or again and again."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nanocode.config.prices import GIGABYTE
from nanocode.report.words import MISSING, dollars, duration, listing, quantity, share
from nanocode.run.status import RESTING
from nanocode.storage.objects import StorageError

SECONDS_BETWEEN_LOOKS = 2.0
MEDIUM, WIDE = 100, 120
"""Widths from which on there is room for more columns."""
STYLES = {"done": "green", "running": "cyan", "starting": "cyan", "provisioning": "cyan", "failed": "bold red"}


def _state(state: str) -> Text:
    return Text(state, style=STYLES.get(state, ""))


def _progress(stage: dict[str, Any]) -> str:
    """Steps, or what a stage without steps has done of what it counts."""
    if stage["step"] is None:
        return MISSING
    done, total = _short(stage["step"]), _short(stage["steps"]) if stage["steps"] else "?"
    unit = f" {stage['unit']}" if stage["unit"] and stage["unit"] != "steps" else ""
    return f"{done}/{total}{unit}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.2g}"


def _tries(stage: dict[str, Any]) -> str:
    return f"{stage['attempt']} of {stage['attempts']}" if stage["attempt"] else _count(stage["attempts"])


def _count(value: int | None) -> str:
    return str(value) if value else MISSING


ON_SLICES = "on slices"
"""Goodput without the waits for them; shown where there were any."""
COLUMNS: tuple[tuple[str, int, Callable[[dict[str, Any]], str]], ...] = (
    ("step", 0, _progress),
    ("loss", 0, lambda stage: MISSING if stage["loss"] is None else f"{stage['loss']:.3f}"),
    ("tokens/s", MEDIUM, lambda stage: quantity(stage["tokens_per_second"])),
    ("MFU", 0, lambda stage: share(stage["mfu"])),
    ("tries", 0, _tries),
    ("preempted", WIDE, lambda stage: _count(stage["preemptions"])),
    ("failed", WIDE, lambda stage: _count(stage["failures"])),
    ("goodput", 0, lambda stage: share(stage["goodput"])),
    (ON_SLICES, MEDIUM, lambda stage: share(stage["goodput_with_a_slice"])),
    ("cost", MEDIUM, lambda stage: dollars(stage["cost_dollars"]) if stage["cost_dollars"] else MISSING),
    ("left", 0, lambda stage: duration(stage["eta_seconds"]) if stage["state"] == "running" else MISSING),
)
"""Title, the width it takes to be shown, and the cell."""


def drawn(found: dict[str, Any], width: int) -> RenderableType:
    """The run, its stages, and below them what there is to say of each in words."""
    title = Text.assemble((found["run"], "bold"), ": ", _state(found["state"]), overflow="fold")
    if found["reason"]:
        title.append(f", {found['reason']}")
    if found["spent_dollars"]:
        title.append(f", {dollars(found['spent_dollars'])} spent")
    if found.get("stored_dollars"):
        kept = f"{found['stored_bytes'] / GIGABYTE:.1f} GB in its bucket"
        title.append(f", about {dollars(found['stored_dollars'])} of it for {kept}")
    if found.get("copied_bytes"):
        crossed = f"{found['copied_bytes'] / GIGABYTE:.1f} GB between regions"
        if found["copied_dollars"] is None:
            title.append(f", and nobody has said what {crossed} cost (prices.egress_gb)")
        else:
            title.append(f", {dollars(found['copied_dollars'])} of it for {crossed}")
    if found["forecast_dollars"] and found["state"] != "done":
        without = f" without {listing(found['forecast_without'])}" if found["forecast_without"] else ""
        title.append(f", about {dollars(found['forecast_dollars'])} by the end{without}")
    if found["unpriced_zones"]:
        title.append(f", and nobody has said what slices in {listing(found['unpriced_zones'])} cost (prices.chip_hour)")
    gap = 2 if width >= MEDIUM else 1
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    waited = any(stage["goodput_with_a_slice"] != stage["goodput"] for stage in found["stages"])
    shown = [(name, cell) for name, least, cell in COLUMNS if width >= least and (waited or name != ON_SLICES)]
    for name, _ in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for stage in found["stages"]:
        table.add_row(stage["name"], _state(stage["state"]), *(cell(stage) for _, cell in shown))
    telling = [one for one in found["stages"] if one["reason"] and one["state"] != "waiting"]
    reasons = [Text(f"{one['name']}: {one['reason']}", style="dim") for one in telling]
    return Group(title, table, *reasons, *_results(found))


def _results(found: dict[str, Any]) -> list[Text]:
    """How good the agent is, where to read more, and how to talk to it."""
    said = []
    if (agent := found.get("agent")) is not None:
        low, high = agent["interval"]
        said += [f"pass@1 after {agent['stage']}: {agent['pass@1']:.0%} of unseen tasks ({low:.0%} to {high:.0%})"]
    if found.get("report"):
        said += [f"report: {found['report']}"]
    if agent is not None:
        said += [f"talk to it: nanocode chat {found['run']}"]
    return [Text(line, overflow="fold") for line in said]


def table(found: dict[str, Any], width: int | None = None) -> str:
    """As text; coloured where it goes to a terminal."""
    console = Console(width=width)
    with console.capture() as captured:
        console.print(drawn(found, console.width))
    return captured.get().rstrip()


def watch(read: Callable[[], dict[str, Any]]) -> None:
    """Draw again and again, until there is nothing more to watch or Ctrl-C.

    A look without an answer is said below the last picture; the first one raises `StorageError`.
    """
    console = Console()
    found = read()
    with Live(drawn(found, console.width), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        try:
            while found["state"] not in RESTING:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                problem: tuple[Text, ...] = ()
                try:
                    found = read()
                except StorageError as error:
                    problem = (Text(f"no answer, asked again in a moment: {error}", style="yellow", overflow="fold"),)
                live.update(Group(drawn(found, console.width), *problem), refresh=True)
        except KeyboardInterrupt:
            pass  # the last picture stays
