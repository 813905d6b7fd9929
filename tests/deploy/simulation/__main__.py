"""`python -m tests.deploy.simulation --schedules N` runs many schedules; with a SEED, one of them, and prints its trace."""

import argparse
import resource
import time

from rich.console import Console
from rich.table import Table

from tests.deploy.simulation.controllers import CELLS, KINDS, POINTS
from tests.deploy.simulation.runner import Summary, run_in_processes, silence
from tests.deploy.simulation.schedule import KINDS as FAULTS
from tests.deploy.simulation.world import simulate

COMMAND = "python -m tests.deploy.simulation"
ENOUGH = 50
"""So often each kind of action has to be cut off at each point, over all schedules."""


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, help="replay this schedule and print its trace")
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, help="one for each core, if not given")
    options = parser.parse_args()
    return replay(options.seed) if options.seed is not None else many(options)


def replay(seed: int) -> int:
    trace: list[str] = []
    with silence():
        try:
            result = simulate(seed, trace)
        finally:
            print("\n".join(trace))
    print(f"seed {seed}: {result.state or 'no rest'} after {result.minutes:.1f} min and {result.looks} looks")
    for text in result.broken:
        print(f"broken: {text}")
    return 1 if result.broken else 0


def many(options: argparse.Namespace) -> int:
    began = time.monotonic()
    summary = run_in_processes(options.first, options.schedules, options.processes)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    show(summary, time.monotonic() - began, used.ru_utime + used.ru_stime)
    return 1 if summary.broken else 0


def show(summary: Summary, seconds: float, processor_seconds: float) -> None:
    console = Console()
    faults = {kind: count for kind, count in summary.met.most_common() if kind in FAULTS}
    console.print(
        f"{summary.schedules:,} schedules, {summary.looks:,} looks, {sum(faults.values()):,} faults "
        f"(at least {summary.fewest_faults} in each) in {seconds:.0f} s, "
        f"{processor_seconds:.0f} s of processor time"
    )
    console.print("how they ended: " + _counts(dict(summary.states.most_common())))
    console.print("faults that were met: " + _counts(faults))
    console.print("meanwhile, the user: " + _counts({k: n for k, n in summary.met.most_common() if k not in FAULTS}))
    table = Table("a controller was killed in", *POINTS.values(), title="actions cut off", title_justify="left")
    for kind in KINDS:
        table.add_row(
            kind.__name__, *(_often(summary, kind.__name__, point, (kind, point) in CELLS) for point in POINTS)
        )
    console.print(table)
    fewest = min(summary.cut[kind.__name__, point] for kind, point in CELLS)
    console.print(f"each at least {fewest} times; {ENOUGH} are asked for. - : it is one effect only")
    console.print(f"invariants broken in {len(summary.broken)} schedules")
    for seed, text in summary.broken[:20]:
        console.print(f"  {text}\n    replay: {COMMAND} {seed}", highlight=False, markup=False)


def _counts(counted: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counted.items())


def _often(summary: Summary, kind: str, point: str, exists: bool) -> str:
    count = summary.cut[kind, point]
    return "-" if not exists else f"{count:,}" if count >= ENOUGH else f"[red]{count}[/red]"


if __name__ == "__main__":
    raise SystemExit(main())
