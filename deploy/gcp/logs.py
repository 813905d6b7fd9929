"""What a stage says, over attempts and hosts: those that ended from the bucket, the one that runs from its pods."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from deploy.gcp.deployment import Deployment
from deploy.gcp.steps import StepFailed, output, show
from nanocode.run.exits import UsageError
from nanocode.run.graph import STAGES, order
from nanocode.run.segments import read_segments
from nanocode.storage.objects import Store, open_store

SECONDS_BETWEEN_LOOKS = 5.0
RESTS = ("done", "failed", "suspended", "cancelled", "over budget")
HOSTS = 64
"""Pods that `kubectl logs` follows at once; it refuses more than 5 unless told."""


@dataclass(frozen=True)
class Run:
    """A TrainingRun as far as logs go."""

    name: str
    directory: str
    states: dict[str, str]
    """Stage -> state."""


def follow(to: Deployment, name: str, stage: str, sleep: Callable[[float], None] = time.sleep) -> int:
    """Print the log of a stage until it rests; the exit code."""
    if stage not in STAGES:
        raise UsageError(f"STAGE={stage} is no stage: choose from {', '.join(order())}")
    store = open_store(read_run(to, name).directory)
    shown: set[int] = set()
    while True:
        run = read_run(to, name)
        live = live_attempts(to, name, stage)
        for attempt in sorted({*_attempts(store, stage), *live} - shown):
            print(f"--- {stage}, attempt {attempt}", flush=True)
            if attempt in live:
                show(follow_command(to, name, stage, attempt))
            else:
                for line in kept(store, stage, attempt):
                    print(line, flush=True)
            shown.add(attempt)
        if run.states.get(stage) in RESTS and not live:
            print(f"--- {stage} is {run.states[stage]}", file=sys.stderr)
            return 0
        sleep(SECONDS_BETWEEN_LOOKS)


def read_run(to: Deployment, name: str) -> Run:
    """`StepFailed` where there is no such run."""
    said = json.loads(output((*_kubectl(to), "get", "trainingrun", name, "--output=json")))
    stages = said.get("status", {}).get("stages", [])
    return Run(name, said["spec"]["runDirectory"], {one["name"]: one["state"] for one in stages})


def only_run(to: Deployment) -> str:
    """The run of the namespace, where there is one; `UsageError` names them where there are several, or none."""
    said = json.loads(output((*_kubectl(to), "get", "trainingruns", "--output=json")))
    names = sorted(one["metadata"]["name"] for one in said["items"])
    if len(names) != 1:
        there = f"there are {', '.join(names)}" if names else "there is none"
        raise UsageError(f"which run of namespace {to.namespace}? {there}: say NAME=...")
    return str(names[0])


def live_attempts(to: Deployment, name: str, stage: str) -> set[int]:
    """Those with a container that says something, or said so a moment ago."""
    labels = f"nanocode.dev/run={name},nanocode.dev/stage={stage}"
    try:
        said = json.loads(output((*_kubectl(to), "get", "pods", f"--selector={labels}", "--output=json")))
    except StepFailed:
        return set()
    running = [pod for pod in said["items"] if pod.get("status", {}).get("phase") == "Running"]
    return {int(pod["metadata"]["labels"]["nanocode.dev/attempt"]) for pod in running}


def follow_command(to: Deployment, name: str, stage: str, attempt: int) -> tuple[str, ...]:
    labels = f"nanocode.dev/run={name},nanocode.dev/stage={stage},nanocode.dev/attempt={attempt}"
    how = ("--follow", "--prefix", f"--max-log-requests={HOSTS}", "--tail=-1", "--ignore-errors")
    return (*_kubectl(to), "logs", f"--selector={labels}", *how)


def kept(store: Store, stage: str, attempt: int) -> Iterator[str]:
    """What an attempt's processes said on stderr, by time."""
    said = [one for one in read_segments(store, stage, "log", attempt) if one.get("stream") == "stderr"]
    for record in sorted(said, key=_time):
        yield f"{datetime.fromtimestamp(_time(record), UTC):%Y-%m-%d %H:%M:%S} {record.get('event', '')}"


def _time(record: dict[str, Any]) -> float:
    time = record.get("time")
    return float(time) if isinstance(time, int | float) else 0.0


def _attempts(store: Store, stage: str) -> set[int]:
    return {int(name) for name in store.children(f"{stage}/attempts") if name.isascii() and name.isdecimal()}


def _kubectl(to: Deployment) -> tuple[str, ...]:
    return ("kubectl", f"--context={to.context}", f"--namespace={to.namespace}")
