"""Why a pod does not run yet, in one sentence with the next move, and when waiting is over. Pure.

What somebody has to correct (an image, a Secret, a kind of node that is not there) ends the attempt after a deadline,
as a wrong setting does; a node that is busy or not there yet is waited for without one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.kubernetes import pods
from deploy.kubernetes.pods import Object
from nanocode.run.exits import Exit

NEVER_PULLED = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "RegistryUnavailable", "ImageInspectError")
NOT_CONFIGURED = ("CreateContainerConfigError",)
NOT_STARTED = ("CreateContainerError", "RunContainerError", "StartError", "PreCreateHookError", "PreStartHookError")
ACCELERATORS = ("google.com/tpu", "nvidia.com/gpu")
"""Resources, and the taints of the nodes that have them."""
LASTING_TAINTS = (*ACCELERATORS, "cloud.google.com/gke-spot")
"""Other taints come and go with a start or a drain: a node that has one is waited for."""


@dataclass(frozen=True)
class Patience:
    """Deadlines in seconds."""

    mistake: float = 300.0
    """For an image, a Secret or a command: a registry may be down for a moment."""
    node: float = 3600.0
    """For a node of a kind that was never there."""
    admission: float = 600.0
    """For a pod that has its node."""


@dataclass(frozen=True)
class Wait:
    """Why a pod does not run."""

    sentence: str
    code: Exit | None = None
    """What the attempt ends with, once waiting is over; None: it goes on."""


def of_pod(pod: Object, now: float, patience: Patience, kind: "Kind") -> Wait:
    """Why this one does not run yet."""
    reason, message = pods.waiting(pod)
    scheduled = pods.condition(pod, "PodScheduled")
    if scheduled is not None and scheduled["status"] != "True":
        return _unscheduled(pod, scheduled, now, patience, kind)
    since = pods.seconds((scheduled or {}).get("lastTransitionTime")) or pods.created(pod)
    name, image = pod["metadata"]["name"], pods.container_status(pod).get("image") or "of the stage"
    mistake = Exit.CONFIGURATION if now - since > patience.mistake else None
    if reason == "InvalidImageName":
        return Wait(f"{image} is no name of an image: correct image.repository and image.tag", Exit.CONFIGURATION)
    if reason in NEVER_PULLED:
        move = "push it (`make push`), or correct image.repository and image.tag"
        return Wait(f"image {image} cannot be pulled ({message or reason}): {move}", mistake)
    if reason in NOT_CONFIGURED:
        return Wait(_missing(message or reason), mistake)
    if reason in NOT_STARTED:
        return Wait(f"the container of pod {name} cannot start ({message or reason}): look at its image", mistake)
    late = now - since > patience.admission
    what = f"pod {name} is being set up on its node ({reason or 'no word from the kubelet'})"
    told = f"{what}, for {patience.admission / 60:.0f} minutes: `kubectl describe pod {name}` says what it waits for"
    return Wait(told, Exit.FAILED) if late else Wait(what)


def of_job(job: Object, now: float, patience: Patience) -> Wait:
    """Why a Job has no pods."""
    name = job["metadata"]["name"]
    if job["spec"].get("suspend"):
        queue = (job["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
        return Wait(f"Job {name} waits to be admitted by queue {queue}" if queue else f"Job {name} is suspended")
    if now - pods.created(job) > patience.admission:
        why = "quota, Pod Security, or the service account"
        return Wait(f"no pod was made for it: `kubectl describe job {name}` says why ({why})", Exit.FAILED)
    return Wait("its pods are being made")


@dataclass(frozen=True)
class Kind:
    """What is known of the nodes that a stage's pods ask for."""

    nodes: Sequence[Object] = ()
    """Those that its pods may go to, large enough or not; asked for only while one of them finds no place."""
    proven: bool = False
    """A pod of this run ran on such a node before: where there is none now, one will come back."""


def selector(pod: Object) -> dict[str, str]:
    """The labels of the nodes it can go to."""
    return dict(pod["spec"].get("nodeSelector") or {})


def described(pod: Object) -> str:
    """The nodes it can go to, in words: `with a=b, without c`."""
    found = {"with": [f"{key}={value}" for key, value in sorted(selector(pod).items())], "without": list[str]()}
    for one in (one for term in _required(pod) for one in term):
        values = "|".join(one.get("values") or ())
        word = "without" if one["operator"] in ("NotIn", "DoesNotExist") else "with"
        found[word].append(f"{one['key']}={values}" if values else one["key"])
    return ", ".join(f"{word} {', '.join(labels)}" for word, labels in found.items() if labels) or "of any kind"


def allowed(pod: Object, node: Object) -> bool:
    """Whether the pod may go onto a node that has the labels of its selector.

    kubernetes.io/docs/concepts/scheduling-eviction, "Assigning Pods to Nodes" and "Taints and Tolerations".
    """
    labels, terms = node["metadata"].get("labels") or {}, _required(pod)
    if terms and not any(all(_holds(one, labels) for one in term) for term in terms):
        return False
    taints = [one for one in (node.get("spec") or {}).get("taints") or () if one["key"] in LASTING_TAINTS]
    return all(_tolerated(pod, one) for one in taints if one["effect"] != "PreferNoSchedule")


def _required(pod: Object) -> list[list[Object]]:
    """The expressions of each term of its required node affinity."""
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    return [term.get("matchExpressions") or [] for term in required.get("nodeSelectorTerms") or ()]


def _holds(expression: Object, labels: dict[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or ()
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":  # a node without the label is among them
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    return True  # Gt and Lt: the scheduler says


def _tolerated(pod: Object, taint: Object) -> bool:
    return any(
        one.get("key") in (None, "", taint["key"])
        and one.get("effect") in (None, "", taint["effect"])
        and (one.get("operator") == "Exists" or one.get("value", "") == taint.get("value", ""))
        for one in pod["spec"].get("tolerations") or ()
    )


def unscheduled(pod: Object) -> bool:
    found = pods.condition(pod, "PodScheduled")
    return not pods.finished(pod) and found is not None and found["status"] != "True"


def _unscheduled(pod: Object, scheduled: Object, now: float, patience: Patience, kind: Kind) -> Wait:
    if scheduled.get("reason") == "SchedulingGated":
        return Wait("it waits to be admitted by its queue")
    message = _of_the_scheduler(str(scheduled.get("message") or scheduled.get("reason") or ""))
    if any(fits(pod, node) for node in kind.nodes):
        return Wait(f"it waits for a node: {message}")
    which = described(pod)
    if kind.nodes:
        wanted = ", ".join(f"{value} {key}" for key, value in sorted(pods.wants(pod).items()))
        lacking = f"no node {which} is large enough for {wanted} ({message})"
        move = "correct resources of the stage in the values, or add larger nodes"
    elif kind.proven:
        return Wait(f"it waits for a node {which} to come back: {message}")
    else:
        lacking = f"there is no node {which} ({message})"
        accelerated = any(key in ACCELERATORS for key in pods.wants(pod))
        values = "accelerator, tpu and spot" if accelerated else "ordinaryNodes"
        move = f"add such a node pool, or correct {values} in the values"
    since = pods.seconds(scheduled.get("lastTransitionTime")) or pods.created(pod)
    return Wait(f"{lacking}: {move}", Exit.CONFIGURATION if now - since > patience.node else None)


def _of_the_scheduler(message: str) -> str:
    """Its first sentence: those that follow say that evicting others would not help either."""
    text = " ".join(message.split()).partition(" no new claims to deallocate")[0].partition(" preemption:")[0]
    return text.rstrip(" .,")[: pods.LONGEST]


def fits(pod: Object, node: Object) -> bool:
    """Whether the pod would go onto the node if it were empty."""
    from kubernetes.utils.quantity import parse_quantity  # late: the client costs a second

    there: dict[str, Any] = node.get("status", {}).get("allocatable") or {}
    return all(parse_quantity(there.get(key, "0")) >= parse_quantity(value) for key, value in pods.wants(pod).items())


def _missing(message: str) -> str:
    found = re.search(r"""(secret|configmap) ["']?([^"'\s]+?)["']? not found""", message, re.IGNORECASE)
    if found is not None and found[1].lower() == "secret":
        return (
            f"Secret {found[2]} is not there: `kubectl create secret generic {found[2]} --from-literal=KEY=VALUE` with "
            "the key that the values name at `secrets`, or take it out of them"
        )
    if found is not None:
        return f"ConfigMap {found[2]} is not there: install the chart again"
    return f"the container's environment cannot be made ({message}): correct the Secret, or `secrets` in the values"
