"""A simulated node: an object and a lease in the API, and pods that really run on this machine.

Its credentials are a node's own, so that the Node authorizer and NodeRestriction hold it to what a kubelet may do.
What the cloud does to a node (making it, tainting it, deleting it) is done with the cluster's credentials.
"""

import contextlib
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.cluster.access import UNREACHABLE, Api, Json, Refused
from tests.cluster.images import Images
from tests.cluster.names import Names
from tests.cluster.node import Node
from tests.cluster.pods import Host, PodWorker
from tests.cluster.processes import wait_until

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
RENEW_SECONDS = 2.0
"""A kubelet's is 10 s (kubernetes.io/docs/concepts/architecture/leases); the silence that counts is shorter here too."""
REPORT_SECONDS = 10.0
PREEMPTION_SECONDS = 15.0
"""What user pods get on a spot VM (cloud.google.com/kubernetes-engine/docs/concepts/spot-vms, "termination and graceful shutdown")."""
IMPENDING = {"key": "cloud.google.com/impending-node-termination", "effect": "NoSchedule"}
"""The taint of a node that is about to be reclaimed (the same page)."""


@dataclass(frozen=True)
class Site:
    """What all nodes of a cluster share. `cloud` has the cluster's own credentials."""

    folder: Path
    cloud: Api
    api_server: tuple[str, int]
    images: Images
    names: Names
    log_port: int
    version: str


class Kubelet:
    """`start` joins the cluster; then one of the faults, or `stop`."""

    def __init__(self, node: Node, site: Site, api: Api) -> None:
        self.node, self._site, self._api = node, site, api
        self.workers: dict[str, PodWorker] = {}
        self._over = threading.Event()
        self._hung = threading.Event()
        self._draining = False
        self.path = f"/api/v1/nodes/{node.name}"
        folder = site.folder / node.name
        folder.mkdir(mode=0o711, exist_ok=True)  # a machine that is repaired keeps its name
        self._host = Host(
            node.name, "127.0.0.1", folder, api, site.cloud, site.api_server, site.images, site.names, self._hung
        )
        self._threads = [
            threading.Thread(target=self._heartbeat, name=f"lease {node.name}", daemon=True),
            threading.Thread(target=self._follow_pods, name=f"pods {node.name}", daemon=True),
        ]

    @property
    def answers(self) -> bool:
        """Whether anybody would get an answer from this node's kubelet."""
        return not (self._over.is_set() or self._hung.is_set())

    def start(self) -> None:
        self._site.cloud.create("/api/v1/nodes", self.node.manifest())
        self._renew_lease()
        self._report(ready=True)
        for thread in self._threads:
            thread.start()

    def preempt(self, seconds: float = PREEMPTION_SECONDS) -> None:
        """A spot VM is reclaimed: its pods are told and have `seconds`, then the machine is gone, then its object.

        kubernetes.io/docs/concepts/cluster-administration/node-shutdown: the node turns NotReady, no pod starts any more.
        """
        self._draining = True
        # Nobody waits for an API server that is away: the machine goes all the same.
        with contextlib.suppress(Refused, *UNREACHABLE):
            self._site.cloud.patch(
                self.path, {"spec": {"taints": [IMPENDING, *self.node.manifest()["spec"]["taints"]]}}
            )
            self._report(ready=False)
        workers = list(self.workers.values())
        for worker in workers:
            worker.shut_down(seconds)
        # The machine does not wait for the last of them either.
        with contextlib.suppress(TimeoutError):
            wait_until("the pods have left", lambda: all(worker.left() for worker in workers), seconds + 1)
        self.vanish()
        self.forget()

    def vanish(self) -> None:
        """The machine is gone without a word: no process, no lease, no report."""
        self._over.set()
        for worker in list(self.workers.values()):
            worker.vanish()

    def forget(self) -> None:
        """The cloud node manager notices that there is no such VM and deletes the object.

        kubernetes.io/docs/concepts/architecture/cloud-controller, "node controller".
        """
        wait_until(f"node {self.node.name} is deleted", self._is_deleted)

    def _is_deleted(self) -> bool:
        try:
            self._site.cloud.delete(self.path)
        except Refused as problem:
            return problem.code == 404
        except UNREACHABLE:
            return False
        return True

    def hang(self) -> None:
        """The kubelet stops, its containers go on: no lease, no report, no deletion noticed, no log served."""
        self._hung.set()

    def resume(self) -> None:
        """A hung kubelet is back, and looks at what has become of its pods."""
        self._hung.clear()

    def stop(self) -> None:
        """Ends everything on the node at once; the cluster itself is going away."""
        self.vanish()
        for worker in list(self.workers.values()):
            worker.join(5)
        for thread in self._threads:
            thread.join(0.1)  # a watch may wait for its server; it is a daemon

    def _heartbeat(self) -> None:
        """The lease every few seconds; the status now and then, and at once when the node has been silent.

        kubernetes.io/docs/reference/node/node-status, "heartbeats".
        """
        silent, next_report = False, time.time() + REPORT_SECONDS
        while not self._over.wait(0.2 if silent else RENEW_SECONDS):
            if self._hung.is_set():
                silent = True
                continue
            try:
                self._renew_lease()
                if silent or time.time() > next_report:
                    self._report(ready=not self._draining)
                    next_report = time.time() + REPORT_SECONDS
                if silent:
                    # What the control plane has written about pods of a silent node is set right.
                    for worker in list(self.workers.values()):
                        worker.report_anew()
                silent = False
            except (Refused, *UNREACHABLE):
                silent = True

    def _renew_lease(self) -> None:
        spec = {"holderIdentity": self.node.name, "leaseDurationSeconds": 40, "renewTime": _micro_time()}
        try:
            self._api.patch(f"{LEASES}/{self.node.name}", {"spec": spec})
        except Refused as problem:
            if problem.code != 404:
                raise
            self._api.create(LEASES, {"metadata": {"name": self.node.name}, "spec": spec})

    def _follow_pods(self) -> None:
        while not self._over.is_set():
            if self._hung.is_set():
                time.sleep(0.1)
                continue
            try:
                self._follow()
            except (Refused, *UNREACHABLE):
                time.sleep(0.3)

    def _follow(self) -> None:
        listed: set[str] | None = set()
        for kind, item in self._api.watch("/api/v1/pods", fieldSelector=f"spec.nodeName={self.node.name}"):
            if self._over.is_set() or self._hung.is_set():
                return
            if kind == "LISTED":
                # What is not in a fresh list was deleted while nobody watched.
                for uid in set(self.workers) - (listed or set()):
                    self.workers.pop(uid).gone()
                listed = None
                continue
            uid = item["metadata"]["uid"]
            if listed is not None:
                listed.add(uid)
            if kind == "DELETED":
                if worker := self.workers.pop(uid, None):
                    worker.gone()
            elif uid in self.workers:
                self.workers[uid].update(item)
            elif not self._draining and item["status"].get("phase") not in ("Succeeded", "Failed"):
                self.workers[uid] = PodWorker(item, self._host)
                self.workers[uid].start()

    def _report(self, ready: bool) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

        def condition(kind: str, true: bool, reason: str, message: str) -> Json:
            stamps = {"lastHeartbeatTime": now, "lastTransitionTime": now}
            return {"type": kind, "status": "True" if true else "False", "reason": reason, "message": message, **stamps}

        conditions = [
            condition("MemoryPressure", False, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", False, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", False, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", True, "KubeletReady", "kubelet is posting ready status")
            if ready
            else condition("Ready", False, "KubeletNotReady", "node is shutting down"),
        ]
        offers = self.node.offers()
        status = {
            "capacity": offers,
            "allocatable": offers,
            "conditions": conditions,
            "addresses": [
                {"type": "InternalIP", "address": self._host.address},
                {"type": "Hostname", "address": self.node.name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._site.log_port}},
            "nodeInfo": {
                "kubeletVersion": self._site.version, "architecture": "amd64", "operatingSystem": "linux", "osImage": "simulated",
                "containerRuntimeVersion": "bubblewrap", "kernelVersion": "", "bootID": "", "machineID": "", "systemUUID": "",
                "kubeProxyVersion": "",
            },
        }  # fmt: skip
        self._api.patch(f"{self.path}/status", {"status": status})


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
