"""What the cluster itself says about node pools: their nodes, and what its autoscaler could not do for a pod."""

from collections.abc import Callable, Mapping

from deploy.kubernetes import pods, templates
from deploy.kubernetes.client import Cluster, Object
from deploy.provisioners.gke_pools import Nodes

MACHINE_TYPE = "node.kubernetes.io/instance-type"
FAILED_SCALE_UP = {"reason": "FailedScaleUp", "involvedObject.kind": "Pod"}


class NodePoolView:
    """`View` of `deploy.provisioners.gke`, over the Kubernetes API."""

    def __init__(self, cluster: Cluster, run: str, machine_type: Callable[[], str], clock: Callable[[], float]) -> None:
        """`run`: as its pods are labelled with it."""
        self._cluster, self._run, self._machine_type, self._clock = cluster, run, machine_type, clock

    def nodes(self) -> Mapping[str, Nodes]:
        found: dict[str, Nodes] = {}
        for node in self._cluster.list("nodes", {MACHINE_TYPE: self._machine_type()}):
            pool = (node["metadata"].get("labels") or {}).get(templates.NODE_POOL)
            if pool is not None and not _is_gone(node, self._clock()):
                before, ready = found.get(pool, Nodes()), pods.condition(node, "Ready")
                is_ready = ready is not None and ready["status"] == "True"
                made = pods.created(node)
                since = made if before.since is None else min(made, before.since)
                found[pool] = Nodes(before.there + 1, before.ready + is_ready, since)
        return found

    def failed_scale_ups(self) -> Mapping[str, str]:
        waiting = [pod for pod in self._cluster.list("pods", {templates.RUN: self._run}) if _waits_for_a_node(pod)]
        return failed_scale_ups(waiting, self._cluster.list("events", {}, fields=FAILED_SCALE_UP) if waiting else [])


def failed_scale_ups(waiting: list[Object], events: list[Object]) -> dict[str, str]:
    """Node pool -> what the autoscaler said last about a pod that waits for it.

    The event is about the pod, in words: `Node scale up in zones us-east5-b associated with this pod failed: GCE out of
    resources. Pod is at risk of not being scheduled.`
    """
    told = {event["involvedObject"].get("uid"): str(event.get("message") or "") for event in sorted(events, key=_last)}
    wanted = {pod["metadata"]["uid"]: pod["spec"]["nodeSelector"][templates.NODE_POOL] for pod in waiting}
    return {pool: told[uid] for uid, pool in wanted.items() if uid in told}


def _waits_for_a_node(pod: Object) -> bool:
    return (
        templates.NODE_POOL in (pod["spec"].get("nodeSelector") or {})
        and pods.node_of(pod) is None
        and not pods.finished(pod)
        and "deletionTimestamp" not in pod["metadata"]
    )


def _last(event: Object) -> str:
    """When it was said last; RFC 3339 in UTC sorts as text."""
    series = (event.get("series") or {}).get("lastObservedTime")
    return str(series or event.get("lastTimestamp") or event.get("eventTime") or "")


def _is_gone(node: Object, now: float) -> bool:
    """Whether its kubelet has been silent for long, as it is once the machine is away.

    A node that is not ready, and says so, is a machine that is there: it begins, or it ends.
    """
    ready = pods.condition(node, "Ready")
    if ready is None or ready["status"] != "Unknown":
        return False
    return now - (pods.seconds(ready.get("lastTransitionTime")) or 0.0) > pods.SECONDS_UNREADY
