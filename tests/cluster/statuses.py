"""A pod's status as the kubelet reports it, from its containers: pure.

kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle: phases, container states, conditions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.cluster.access import Json
from tests.cluster.slots import Slot, timestamp

SHUTDOWN_REASON = "Terminated"
SHUTDOWN_MESSAGE = "Pod was terminated in response to imminent node shutdown."
"""Both as kubernetes.io/docs/concepts/cluster-administration/node-shutdown shows them."""


@dataclass(frozen=True)
class Circumstances:
    """What is known of a pod beside its containers."""

    began: float
    node_address: str
    pod_address: str
    shut_down: bool
    """The node told it to leave; it will have failed, however its containers end."""


def phase_of(init: Sequence[Slot], main: Sequence[Slot], shut_down: bool) -> str:
    slots = [*init, *main]
    initialized = all(_succeeded(slot) for slot in init)
    if any(slot.ended is not None and not _succeeded(slot) for slot in init) or (
        all(slot.ended is not None for slot in main)
    ):
        if any(slot.running for slot in slots):
            return "Running"
        return "Succeeded" if all(map(_succeeded, slots)) and not shut_down else "Failed"
    if not initialized or not any(slot.runs for slot in main):
        return "Pending"
    return "Running"


def status_of(init: Sequence[Slot], main: Sequence[Slot], known: Circumstances) -> Json:
    """The `status` of a pod, less what others write into it."""
    phase = phase_of(init, main, known.shut_down)
    initialized = all(_succeeded(slot) for slot in init)
    finished = phase in ("Succeeded", "Failed")
    ready = not finished and initialized and all(slot.ready for slot in main)
    why_not = "PodCompleted" if phase == "Succeeded" else "PodFailed" if finished else "ContainersNotReady"
    conditions = [
        _condition("PodReadyToStartContainers", not finished),
        _condition("Initialized", initialized, "" if initialized else "ContainersNotInitialized"),
        _condition("ContainersReady", ready, "" if ready else why_not),
        _condition("Ready", ready, "" if ready else why_not),
    ]
    status: Json = {
        "phase": phase,
        "startTime": timestamp(known.began),
        "hostIP": known.node_address,
        "hostIPs": [{"ip": known.node_address}],
        "podIP": known.pod_address,
        "podIPs": [{"ip": known.pod_address}],
        "conditions": conditions,
        "initContainerStatuses": [_container(slot, _succeeded(slot)) for slot in init],
        "containerStatuses": [_container(slot, slot.ready) for slot in main],
    }
    if known.shut_down:
        # kubernetes.io/docs/concepts/workloads/pods/disruptions, "pod disruption conditions"
        conditions.append(_condition("DisruptionTarget", True, "TerminationByKubelet", SHUTDOWN_MESSAGE))
        status |= {"reason": SHUTDOWN_REASON, "message": SHUTDOWN_MESSAGE}
    return status


def _succeeded(slot: Slot) -> bool:
    return slot.ended is not None and slot.ended["exitCode"] == 0


def _condition(kind: str, true: bool, reason: str = "", message: str = "") -> Json:
    return {"type": kind, "status": "True" if true else "False", "reason": reason, "message": message}


def _container(slot: Slot, ready: bool) -> Json:
    name, image = slot.spec["name"], slot.spec["image"]
    container = slot.container
    status: Json = {
        "name": name,
        "image": image,
        "imageID": f"{image.partition('@')[0]}@{slot.image.digest}" if slot.image else "",
        "containerID": f"harness://{container.pid}" if container else "",
        "ready": ready,
        "started": slot.running,
        "restartCount": max(0, slot.runs - 1),
        "lastState": {"terminated": slot.last} if slot.last else {},
    }
    if slot.ended is not None:
        status["state"] = {"terminated": slot.ended}
    elif container is not None:
        status["state"] = {"running": {"startedAt": timestamp(container.started)}}
    else:
        reason, message = slot.waiting
        status["state"] = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    return status
