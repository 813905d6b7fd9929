"""Objects of a cluster for table tests: `job(failed("PodFailurePolicy"))`, `pod(0, ran(1, "it broke"))`."""

from datetime import UTC, datetime
from typing import Any

from deploy.kubernetes import waits

Object = dict[str, Any]
NOW = 1_800_000_000.0
MESSAGE = (  # as kube-scheduler 1.36 says it
    "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. no new claims to deallocate, "
    "preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
)
SELECTOR = {"cloud.google.com/gke-tpu-topology": "2x4"}
PATIENCE = waits.Patience(mistake=300, node=3600, admission=600)


def at(ago: float) -> str:
    return datetime.fromtimestamp(NOW - ago, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, reason: str = "", message: str = "", ago: float = 0, status: str = "True") -> Object:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at(ago)}


def job(*conditions: Object, hosts: int = 1, split: bool = False, ago: float = 30, **spec: Any) -> Object:
    spec = {"completions": hosts, "parallelism": hosts, **({"backoffLimitPerIndex": 2} if split else {}), **spec}
    metadata = {"name": "r-pretrain-1", "uid": "job", "creationTimestamp": at(ago), "labels": spec.pop("labels", {})}
    status = {"conditions": list(conditions), "completionTime": at(0)}
    return {"metadata": metadata, "spec": spec, "status": status}


def failed(reason: str, message: str = "") -> Object:
    return condition("Failed", reason, message)


def pod(
    index: int = 0, state: Object | None = None, *conditions: Object, node: str | None = "node-0", **status: Any
) -> Object:
    """`state`: of its container; a pod whose container has not ended is Pending or Running by it."""
    state = state or {}
    phase = "Running" if "running" in state else "Pending"
    if (ended := state.get("terminated")) is not None:
        phase = "Failed" if ended["exitCode"] else "Succeeded"
    container = {"name": "stage", "image": "registry/nanocode:1", "state": state, "imageID": status.pop("image_id", "")}
    resources = {"requests": {"cpu": "8", "memory": "48Gi"}, "limits": {"memory": "160Gi", "google.com/tpu": "8"}}
    return {
        "metadata": {
            "name": f"r-pretrain-1-{index}-abcde",
            "uid": f"pod-{index}",
            "creationTimestamp": at(60),
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        },
        "spec": {
            "containers": [{"name": "stage", "resources": resources}],
            "nodeSelector": SELECTOR,
            **({"nodeName": node} if node else {}),
        },
        "status": {"phase": phase, "conditions": list(conditions), "containerStatuses": [container], **status},
    }


def running(ago: float = 20) -> Object:
    return {"running": {"startedAt": at(ago)}}


def ran(code: int, message: str = "", reason: str = "", ago: float = 5) -> Object:
    said = {"message": f"earlier line\n{message}\n"} if message else {}
    return {"terminated": {"exitCode": code, "finishedAt": at(ago), "reason": reason or "Error", **said}}


def held(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason, "message": message}}


def taken(reason: str = "TerminationByKubelet", message: str = "imminent node shutdown") -> Object:
    return condition("DisruptionTarget", reason, message)


def placed(ago: float) -> Object:
    return condition("PodScheduled", ago=ago)


def homeless(ago: float) -> Object:
    return condition("PodScheduled", "Unschedulable", MESSAGE, ago, "False")


def node(ready: str = "True", ago: float = 600, name: str = "node-0", **allocatable: str) -> Object:
    there = {"cpu": "180", "memory": "1400Gi", "google.com/tpu": "8", **allocatable}
    ready_condition = condition("Ready", ago=ago, status=ready)
    return {"metadata": {"name": name}, "status": {"conditions": [ready_condition], "allocatable": there}}
