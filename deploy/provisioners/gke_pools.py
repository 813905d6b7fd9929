"""Node pools as slices: the pool that is asked for, and which slice a pool is that is there. Pure.

A slice is one node pool in one zone. Of one host, it begins without nodes and may have one: the cluster autoscaler
brings it when the pod of a stage waits for this pool, and takes it ten minutes after the last pod has gone
(cloud.google.com/kubernetes-engine/docs/concepts/cluster-autoscaler). Of several hosts, it is made at its full size,
compact and with its topology: they come together or not at all, and are never fewer
(cloud.google.com/kubernetes-engine/docs/concepts/tpus). A pool for each slice, and not one pool of 0..N: then a stage
runs on the slice it was begun on, and giving that one back takes nobody else's node.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from deploy.controller.observed import Slice
from deploy.provisioners.gke_refusals import Refusal
from deploy.provisioners.labels import RUN

SHUTDOWN_GRACE_SINCE = (1, 35, 0, 1171000)
"""GKE version whose spot pools may have a longer shutdown grace than 30 s."""
SHUTDOWN_GRACE = {"shutdown_grace_period_seconds": 120, "shutdown_grace_period_critical_pods_seconds": 15}
"""Leaves a stage about 105 s to save; without it, it has 15."""
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
"""What an account may do is for IAM to say, not for scopes."""
PODS_PER_NODE = 32
"""A stage's pod and the system's fit; the default of 110 takes 256 addresses for each node."""
WORKS = ("RUNNING", "RUNNING_WITH_ERROR", "RECONCILING")
FAILED = ("ERROR", "RUNNING_WITH_ERROR")


@dataclass(frozen=True)
class Shape:
    """What a slice is made of."""

    machine_type: str
    topology: str
    spot: bool = True

    @property
    def chips(self) -> int:
        return prod(int(side) for side in self.topology.split("x"))

    @property
    def chips_of_a_host(self) -> int:
        found = re.fullmatch(r".+-(\d+)t", self.machine_type)
        return int(found[1]) if found is not None else 0

    @property
    def hosts(self) -> int:
        """Of this topology; `ValueError` for machines that do not make it up."""
        each = self.chips_of_a_host
        if not each or self.chips % each:
            raise ValueError(
                f"cloud.topology {self.topology} has {self.chips} chips, which machines of {self.machine_type} do not "
                "make up: correct cloud.machine_type or cloud.topology"
            )
        return self.chips // each


@dataclass(frozen=True)
class Customs:
    """How the cluster's other pools are made: what a pool of ours takes over from them."""

    version: str
    """Of the control plane, which new nodes have as well."""
    service_account: str = "default"
    workload_identity: bool = False
    image_streaming: bool = False


@dataclass(frozen=True)
class Pool:
    """A node pool as GKE shows it."""

    name: str
    zone: str
    status: str
    labels: Mapping[str, str] = field(default_factory=dict)
    shape: Shape = Shape("", "")
    conditions: tuple[tuple[str, str], ...] = ()
    """Code and message."""
    etag: str = ""
    most_nodes: int | None = None
    """Of its autoscaler; None: it has none."""

    @property
    def hosts(self) -> int:
        """Of the slice that it is; only pools of several have a topology of their own."""
        return self.shape.hosts if self.shape.topology else 1


@dataclass(frozen=True)
class Nodes:
    """The nodes of a pool, as the cluster shows them."""

    there: int = 0
    """Those that have not been silent for so long that they count as gone."""
    ready: int = 0
    since: float | None = None
    """When the first of them was made."""


def version(text: str) -> tuple[int, ...]:
    """`1.35.0-gke.1171000` as numbers that compare."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def wanted(name: str, zone: str, shape: Shape, labels: Mapping[str, str], customs: Customs) -> dict[str, Any]:
    """The fields of the `NodePool` to create."""
    config: dict[str, Any] = {
        "machine_type": shape.machine_type,
        "spot": shape.spot,
        "resource_labels": dict(labels),
        "labels": {RUN: labels[RUN]},
        "service_account": customs.service_account,
        "oauth_scopes": [SCOPE],
    }
    if customs.workload_identity:
        config["workload_metadata_config"] = {"mode": "GKE_METADATA"}
    if customs.image_streaming:
        config["gcfs_config"] = {"enabled": True}
    if shape.spot and version(customs.version) >= SHUTDOWN_GRACE_SINCE:
        config["kubelet_config"] = dict(SHUTDOWN_GRACE)
    pool = {
        "name": name,
        "locations": [zone],
        "config": config,
        "management": {"auto_repair": True, "auto_upgrade": True},
        "max_pods_constraint": {"max_pods_per_node": PODS_PER_NODE},
    }
    if shape.hosts > 1:
        placement = {"type_": "COMPACT", "tpu_topology": shape.topology}
        return {**pool, "initial_node_count": shape.hosts, "placement_policy": placement}
    return {**pool, "initial_node_count": 0, "autoscaling": autoscaling()}


def autoscaling() -> dict[str, Any]:
    """Of the pool of a slice of one host."""
    return {"enabled": True, "total_min_node_count": 0, "total_max_node_count": 1, "location_policy": "ANY"}


def as_slice(name: str, pool: Pool, nodes: Nodes, failure: Refusal | None = None) -> Slice:
    """What the provisioner says of it; `failure`: what its operation, or the autoscaler, came to."""
    complete, works = nodes.there >= pool.hosts, pool.status in WORKS
    if pool.status == "STOPPING" or complete:
        failure = None
    fills = pool.hosts == 1 and nodes.there == 0
    return Slice(
        name,
        pool.zone,
        usable=works and failure is None and (fills or nodes.ready >= pool.hosts),
        machines=complete,
        since=nodes.since if complete else None,
        trouble=failure.trouble if failure is not None else None,
        reason=failure.sentence if failure is not None else "",
    )
