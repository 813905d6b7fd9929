"""What a pod's status and its node say, as small facts. Pure.

Sources: kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle and .../disruptions for phases, states and conditions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from deploy.kubernetes.templates import CONTAINER, digest_in

Object = dict[str, Any]
Nodes = Mapping[str, Object | None]
"""Name -> node; None for one that is gone."""

SECONDS_UNREADY = 30.0
"""The node controller takes 50 s to say that a kubelet is silent; so much later it counts as gone."""
INDEX = "batch.kubernetes.io/job-completion-index"
SHELL_SIGNALS = range(129, 129 + 64)
LONGEST = 300


@dataclass(frozen=True)
class Ended:
    """How the stage's container ended."""

    code: int
    """Minus the signal, if one ended it."""
    at: float
    reason: str
    said: str
    """The last line of its termination message."""


def seconds(timestamp: str | None) -> float | None:
    """Unix time of a Kubernetes timestamp."""
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else None


def created(one: Object) -> float:
    return seconds(one["metadata"].get("creationTimestamp")) or 0.0


def condition(one: Object, kind: str) -> Object | None:
    """The condition of this type, if it is there, whatever it says."""
    return next((each for each in one.get("status", {}).get("conditions") or () if each["type"] == kind), None)


def holds(one: Object, kind: str) -> Object | None:
    """The condition of this type, if it is true."""
    found = condition(one, kind)
    return found if found is not None and found["status"] == "True" else None


def phase(pod: Object) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))


def finished(pod: Object) -> bool:
    return phase(pod) in ("Succeeded", "Failed")


def index(pod: Object) -> int:
    metadata = pod["metadata"]
    value = (metadata.get("annotations") or {}).get(INDEX) or (metadata.get("labels") or {}).get(INDEX) or "0"
    return int(value)


def node_of(pod: Object) -> str | None:
    return pod.get("spec", {}).get("nodeName")


def container_status(pod: Object) -> Object:
    found = pod.get("status", {}).get("containerStatuses") or ()
    return next((one for one in found if one["name"] == CONTAINER), {})


def ended(pod: Object) -> Ended | None:
    """How its container ended, where the kubelet has said so."""
    state = container_status(pod).get("state", {}).get("terminated")
    if state is None:
        return None
    code, signal = int(state["exitCode"]), int(state.get("signal") or 0)
    if signal or code in SHELL_SIGNALS:
        code = -(signal or code - 128)
    lines = [line.strip() for line in str(state.get("message") or "").splitlines() if line.strip()]
    said = lines[-1].removeprefix("nanocode: ")[:LONGEST] if lines else ""
    return Ended(code, seconds(state.get("finishedAt")) or 0.0, str(state.get("reason") or ""), said)


def running_since(pod: Object) -> float | None:
    """Since when its container runs; None while it does not."""
    state = container_status(pod).get("state", {}).get("running")
    return seconds(state.get("startedAt")) or created(pod) if state is not None else None


def waiting(pod: Object) -> tuple[str, str]:
    """Why its container does not run yet, as the kubelet words it: reason and message."""
    state = container_status(pod).get("state", {}).get("waiting") or {}
    return str(state.get("reason") or ""), " ".join(str(state.get("message") or "").split())[:LONGEST]


def disruption(pod: Object) -> str:
    """How the platform says that it took the pod away; empty if it does not say so."""
    found = holds(pod, "DisruptionTarget")
    if found is None:
        return ""
    return ": ".join(part for part in (found.get("reason"), found.get("message")) if part)[:LONGEST]


def node_trouble(pod: Object, nodes: Nodes, now: float) -> str:
    """Why the pod's node counts as gone; empty while it may be there."""
    name = node_of(pod)
    if name is None or name not in nodes:
        return ""
    node = nodes[name]
    if node is None:
        return f"node {name} is gone"
    ready = condition(node, "Ready")
    if ready is None or ready["status"] == "True":
        return ""
    since = seconds(ready.get("lastTransitionTime")) or 0.0
    return f"node {name} is silent" if now - since > SECONDS_UNREADY else ""


def image_digest(pod: Object) -> str | None:
    """The digest of the image that it runs, where the node knows one."""
    return digest_in(str(container_status(pod).get("imageID") or ""))


def memory_limit(pod: Object) -> str:
    return str((_container(pod).get("resources") or {}).get("limits", {}).get("memory") or "its node's")


def wants(pod: Object) -> dict[str, str]:
    """What its containers request in all that a node may lack: the stage's, which is the only one."""
    resources = _container(pod).get("resources") or {}
    return {**(resources.get("limits") or {}), **(resources.get("requests") or {})}


def _container(pod: Object) -> Object:
    return next(one for one in pod["spec"]["containers"] if one["name"] == CONTAINER)
