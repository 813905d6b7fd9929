"""Nodes as GKE makes them: labels, taints and what they offer.

cloud.google.com/kubernetes-engine/docs/concepts/tpus, "plan TPUs" (TPU labels, `google.com/tpu`, its taint);
.../docs/concepts/spot-vms (the spot label; its taint is what our own node pools set, as that page advises);
.../docs/concepts/gpus (the accelerator label and the `nvidia.com/gpu` taint);
kubernetes.io/docs/reference/labels-annotations-taints (zone, region, instance type).
"""

from dataclasses import dataclass, field, replace

from tests.cluster.access import Json

ZONE = "us-east5-b"


@dataclass(frozen=True)
class Node:
    """One machine. `taints` is a tuple of (key, value, effect)."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[tuple[str, str, str], ...] = ()
    capacity: dict[str, str] = field(default_factory=dict)

    def named(self, name: str) -> "Node":
        """Another machine of the same kind."""
        return replace(self, name=name)

    def manifest(self) -> Json:
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/arch": "amd64",
            "kubernetes.io/os": "linux",
            "topology.kubernetes.io/zone": ZONE,
            "topology.kubernetes.io/region": ZONE.rpartition("-")[0],
            **self.labels,
        }
        taints = [{"key": key, "value": value, "effect": effect} for key, value, effect in self.taints]
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels},
            "spec": {"taints": taints, "providerID": f"gce://harness/{ZONE}/{self.name}"},
        }

    def offers(self) -> dict[str, str]:
        return {"cpu": "8", "memory": "32Gi", "ephemeral-storage": "100Gi", "pods": "110", **self.capacity}


SPOT_TAINT = ("cloud.google.com/gke-spot", "true", "NoSchedule")


def cpu_node(name: str, pool: str = "default-pool") -> Node:
    labels = {"cloud.google.com/gke-nodepool": pool, "node.kubernetes.io/instance-type": "e2-standard-8"}
    return Node(name, labels)


def v6e_node(
    name: str, topology: str = "2x4", machine: str = "ct6e-standard-8t", pool: str = "v6e", spot: bool = True
) -> Node:
    """One VM of a v6e slice; the chips of a VM are the number in its machine type."""
    chips = machine.rpartition("-")[2].removesuffix("t")
    labels = {
        "cloud.google.com/gke-nodepool": pool,
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": topology,
        "cloud.google.com/gke-accelerator-count": chips,
        "node.kubernetes.io/instance-type": machine,
        **({"cloud.google.com/gke-spot": "true"} if spot else {}),
    }
    taints = (("google.com/tpu", "present", "NoSchedule"), *([SPOT_TAINT] if spot else []))
    capacity = {"cpu": "180", "memory": "1440Gi" if chips == "8" else "720Gi", "google.com/tpu": chips}
    return Node(name, labels, taints, capacity)


def nvidia_node(
    name: str, accelerator: str = "nvidia-h100-80gb", count: int = 1, pool: str = "gpu", spot: bool = True
) -> Node:
    labels = {
        "cloud.google.com/gke-nodepool": pool,
        "cloud.google.com/gke-accelerator": accelerator,
        **({"cloud.google.com/gke-spot": "true"} if spot else {}),
    }
    taints = (("nvidia.com/gpu", "present", "NoSchedule"), *([SPOT_TAINT] if spot else []))
    return Node(name, labels, taints, {"cpu": "26", "memory": "234Gi", "nvidia.com/gpu": str(count)})
