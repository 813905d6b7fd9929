"""The dead man's switch of node pools: deletes those of a run whose controller is gone for good.

    python -m deploy.provisioners.dead_man --run-dir gs://BUCKET/RUN

A TPU VM watches its controller's heartbeat itself (`vm.watch`); a node pool cannot, so the chart has this begun every
few minutes, in a pod beside the controller's. When the status of the run has not been renewed for
`cloud.unattended_minutes`, GKE is asked to delete the run's pools; it drains their nodes, so that what trains there is
told to save. A controller that comes back finds its slices gone, and asks for others. Where the run cannot be read, the
labels' expiry counts, as for the janitor.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from deploy.controller.backend import Unreachable
from deploy.provisioners.gke_client import connect
from deploy.provisioners.gke_inventory import NodePoolInventory
from deploy.provisioners.janitor import Found, Inventory, Verdict, delete, judge
from deploy.provisioners.labels import run_label
from deploy.provisioners.uses import Use, read_use
from nanocode.config.settings import Cloud
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError, Exit
from nanocode.run.settling import read_settings
from nanocode.storage.objects import StorageError, open_store

UNREADABLE = (StorageError, ConfigurationError, ValueError)
"""What reading a run raises where there is no answer, or no sense in it."""


def sweep(run: RunDirectory, label: str, inventory: Inventory, clock: Callable[[], float]) -> list[Verdict]:
    """Delete what nobody will give back any more; `label`: of the run, on all that is its own.

    What cannot be deleted is told in its verdict, and holds up nothing else.
    """
    verdicts = [_judged(found, run, clock()) for found in inventory.list() if found.run == label]
    return [delete(inventory, one) if one.orphan else one for one in verdicts]


def _judged(found: Found, run: RunDirectory, now: float) -> Verdict:
    use: Use | None = None
    with suppress(*UNREADABLE):
        use = read_use(run, found.slice)
    if use is None or found.leaving:
        return judge(found, use, now)
    silent = max(0.0, now - use.controlled)
    if silent > use.unattended_seconds:
        return Verdict(found, True, f"its controller has been silent for {silent / 60:.0f} minutes")
    return Verdict(found, False, "its controller is there")


def main() -> int:
    parser = argparse.ArgumentParser("python -m deploy.provisioners.dead_man", description=__doc__.partition("\n")[0])
    parser.add_argument("--run-dir", required=True)
    options = parser.parse_args()
    try:
        run = RunDirectory(open_store(options.run_dir))
        cloud = Cloud()
        with suppress(*UNREADABLE):  # then the cluster is the one that this pod is in
            cloud = read_settings(run).cloud
        verdicts = sweep(run, run_label(run.store.url), NodePoolInventory(connect(cloud)), time.time)
    except (Unreachable, ConfigurationError, StorageError) as error:
        print(f"nanocode: {error}", file=sys.stderr)
        return Exit.FAILED
    for one in verdicts:
        done = f"not deleted ({one.trouble})" if one.trouble else "deleted" if one.deleted else "kept"
        print(f"{one.found.name}: {done}, {one.reason}", flush=True)
    return Exit.FAILED if any(one.trouble for one in verdicts) else Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
