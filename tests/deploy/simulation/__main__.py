"""`python -m tests.deploy.simulation SEED` prints the trace of one schedule, `--schedules N` runs many."""

import argparse
import time

from rich.console import Console
from rich.table import Table

from tests.deploy.simulation.controllers import KINDS, POINTS
from tests.deploy.simulation.runner import Summary, faults, run_in_processes, silence
from tests.deploy.simulation.world import simulate

ENOUGH = 50
"""So often each kind of action has to be cut off at each point, over all schedules."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.simulation", description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, help="replay this schedule and print its trace")
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int)
    options = parser.parse_args()
    return replay(options.seed) if options.seed is not None else many(options)


def replay(seed: int) -> int:
    trace: list[str] = []
    with silence():
        result = simulate(seed, trace)
    print("\n".join(trace))
    print(f"seed {seed}: {result.state or 'no rest'} after {result.minutes:.1f} min and {result.looks} looks")
    for text in result.broken:
        print(f"broken: {text}")
    return 1 if result.broken else 0


def many(options: argparse.Namespace) -> int:
    began = time.monotonic()
    summary = run_in_processes(options.first, options.schedules, options.processes)
    show(summary, time.monotonic() - began)
    return 1 if summary.broken else 0


def show(summary: Summary, seconds: float) -> None:
    console = Console()
    happened = faults(summary.met)
    console.print(
        f"{summary.schedules:,} schedules, {summary.looks:,} looks, {sum(happened.values()):,} faults "
        f"(at least {summary.fewest_faults} in each) in {seconds:.0f} s"
    )
    console.print("how they ended: " + ", ".join(f"{state} {count:,}" for state, count in summary.states.most_common()))
    table = Table("fault", "met", title="faults", title_justify="left")
    for kind, count in sorted(happened.items(), key=lambda one: -one[1]):
        table.add_row(kind, f"{count:,}")
    console.print(table)
    table = Table("the controller is killed", *POINTS, title="actions cut off", title_justify="left")
    for action in KINDS:
        counts = [summary.met[f"crash {point} {action.__name__}"] for point in POINTS]
        table.add_row(
            action.__name__, *(f"{count:,}" if count >= ENOUGH else f"[red]{count}[/red]" for count in counts)
        )
    console.print(table)
    console.print(f"invariants broken in {len(summary.broken)} schedules")
    for seed, text in summary.broken[:20]:
        console.print(f"  seed {seed}: {text}", highlight=False)


if __name__ == "__main__":
    raise SystemExit(main())
