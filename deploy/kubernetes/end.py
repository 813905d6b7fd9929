"""Ends a run before its controller goes: deletes the TrainingRun, and waits until it has released what it holds.

python -m deploy.kubernetes.end --namespace NS --run R --timeout 540
"""

import argparse
import sys
import time

from deploy.controller.backend import Unreachable
from deploy.kubernetes.client import PLURAL, Cluster, connect

SECONDS_BETWEEN_LOOKS = 2.0


def end(cluster: Cluster, name: str, seconds: float) -> str:
    """Why the run is still there after so long; empty once it is gone."""
    deadline = time.monotonic() + seconds
    told = directory = ""
    while True:
        try:
            training_run = cluster.get(PLURAL, name)
            if training_run is None:
                if directory:
                    print(f"run {name} has ended; what it made stays in {directory}", flush=True)
                return ""
            directory = training_run["spec"]["runDirectory"]
            if "deletionTimestamp" not in training_run["metadata"]:
                cluster.delete(PLURAL, name)
            status = training_run.get("status") or {}
            words = (status.get("phase"), status.get("stage"), status.get("message"))
            state = ", ".join(str(word) for word in words if word)
        except Unreachable as error:
            state = str(error)
        if state != told:
            told = state
            print(f"run {name}: {state or 'no status yet'}", flush=True)
        if time.monotonic() > deadline:
            return (
                f"run {name} is still there after {seconds:g} s ({told}): is its controller running? `kubectl logs "
                f"deployment/{name}-controller` says what it waits for"
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)


def main() -> int:
    parser = argparse.ArgumentParser("python -m deploy.kubernetes.end", description="End a run and wait for that.")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--run", required=True, metavar="NAME", help="of the TrainingRun")
    parser.add_argument("--timeout", type=float, default=540.0, metavar="SECONDS")
    options = parser.parse_args()
    try:
        why = end(connect(options.namespace), options.run, options.timeout)
    except Unreachable as error:
        why = str(error)
    if why:
        print(f"nanocode: {why}", file=sys.stderr)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())
