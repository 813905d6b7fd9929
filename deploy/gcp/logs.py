"""What a stage says, over attempts and hosts: those that ended from the bucket, the one that runs from its pods."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from deploy.gcp.deployment import Deployment
from deploy.gcp.pod_logs import PodLogs
from deploy.gcp.steps import StepFailed, output
from nanocode.run.attempts import End, recorded
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import UsageError
from nanocode.run.graph import STAGES, order
from nanocode.run.segments import read_segments
from nanocode.storage.objects import StorageError, Store, open_store

SECONDS_BETWEEN_LOOKS = 5.0
RESTS = ("done", "failed", "suspended", "cancelled", "over budget")
PATIENCE = "--request-timeout=10s"
"""Of a look: nothing is shown in the meantime."""
LOOKS_MISSED_AT_MOST = 60
"""In a row, which is five minutes."""


@dataclass(frozen=True)
class Run:
    """A TrainingRun as far as logs go."""

    name: str
    directory: str
    states: dict[str, str]
    """Stage -> state."""


@dataclass(frozen=True)
class Pod:
    """A pod as far as logs go."""

    name: str
    attempt: int
    phase: str


def follow(to: Deployment, name: str, stage: str) -> int:
    """Print the log of a stage until it rests; the exit code."""
    if stage not in STAGES:
        raise UsageError(f"STAGE={stage} is no stage: choose from {', '.join(order())}")
    directory = RunDirectory(open_store(read_run(to, name).directory))
    shown, followed = set[int](), set[int]()
    with PodLogs(_kubectl(to)) as logs:
        for state, pods, over in _looks(to, name, stage, directory, logs.show):
            live = {pod.attempt for pod in pods if pod.phase == "Running"}
            followed |= live
            with suppress(StorageError):  # the next look tries again
                for attempt in sorted((live | over) - shown):
                    lines = [] if attempt in live else list(kept(directory.store, stage, attempt))
                    print(f"--- {stage}, attempt {attempt}", *lines, sep="\n", flush=True)
                    shown.add(attempt)
            for pod in pods:
                if pod.attempt in followed and pod.phase != "Pending":
                    logs.follow(pod.name, ended=pod.phase in ("Succeeded", "Failed"))
            if state in RESTS and over <= shown and not live and not logs.at_work:
                print(f"--- {stage} is {state}", file=sys.stderr)
                break
    return 0


def _looks(
    to: Deployment, name: str, stage: str, directory: RunDirectory, wait: Callable[[float], None]
) -> Iterator[tuple[str | None, list[Pod], set[int]]]:
    """The stage's state, its pods and the attempts that are over, again and again.

    No answer is no news, unless it is the first one or none comes for minutes; that the run is gone is one.
    """
    over, missed = set[int](), LOOKS_MISSED_AT_MOST
    while True:
        try:
            state, pods = read_run(to, name).states.get(stage), read_pods(to, name, stage)
            news = _attempts(directory.store, stage) - over
            over |= {one for one in news if state in RESTS or recorded(directory, stage, one, End) is not None}
        except (StepFailed, StorageError) as error:
            missed += 1
            if missed > LOOKS_MISSED_AT_MOST or "(NotFound)" in str(error):
                raise
        else:
            missed = 0
            yield state, pods, over
        wait(SECONDS_BETWEEN_LOOKS)


def read_run(to: Deployment, name: str) -> Run:
    """`StepFailed` where there is no such run."""
    said = json.loads(output((*_kubectl(to), "get", "trainingrun", name, "--output=json", PATIENCE)))
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


def read_pods(to: Deployment, name: str, stage: str) -> list[Pod]:
    """Those of a stage's attempts, which say what the attempt says, or mirror it."""
    labels = f"nanocode.dev/run={name},nanocode.dev/stage={stage}"
    said = json.loads(output((*_kubectl(to), "get", "pods", f"--selector={labels}", "--output=json", PATIENCE)))
    return [
        Pod(
            one["metadata"]["name"],
            int(one["metadata"]["labels"]["nanocode.dev/attempt"]),
            one.get("status", {}).get("phase", "Pending"),
        )
        for one in said["items"]
    ]


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
