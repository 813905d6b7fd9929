"""`python -m tests.deploy.provisioners --schedules 2000`: each provisioner, over its cloud in this process, through so
many random schedules of faults; `--only gke SEED` replays one."""

import argparse
import time

from tests.deploy.provisioners import gke_schedules
from tests.deploy.provisioners.simulated import QueuedZones
from tests.deploy.simulation import runner

Broken = list[tuple[int, str]]


def queued_resources(first: int, count: int) -> tuple[Broken, str]:
    summary = runner.run(first, count, zones=QueuedZones)
    return summary.broken, f"{summary.looks:,} looks; {dict(summary.met.most_common())}; {dict(summary.states)}"


def node_pools(first: int, count: int) -> tuple[Broken, str]:
    broken, met = gke_schedules.run(first, count)
    return broken, str(dict(met.most_common()))


PROVISIONERS = {"queued-resource": queued_resources, "gke": node_pools}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.provisioners", description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, help="replay this schedule")
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", choices=PROVISIONERS)
    options = parser.parse_args()
    first, count = (options.first, options.schedules) if options.seed is None else (options.seed, 1)
    all_well = True
    for name in [options.only] if options.only else list(PROVISIONERS):
        began = time.process_time()
        broken, met = PROVISIONERS[name](first, count)
        seconds = time.process_time() - began
        print(f"{name}: {count:,} schedules in {seconds:.0f} s of one core, {len(broken)} broken; {met}", flush=True)
        for seed, text in broken[:20]:
            print(f"  seed {seed}: {text}")
        all_well &= not broken
    return 0 if all_well else 1


if __name__ == "__main__":
    raise SystemExit(main())
