"""A whole cluster on this machine: a real control plane, simulated nodes, and what can go wrong with them.

with Cluster(images=images) as cluster:
    cluster.add(cpu_node("cpu-0"), v6e_node("v6e-0"))
    cluster.kubectl("apply", "-f", "job.yaml")
    cluster.preempt("v6e-0")
"""

import json
import os
import shutil
import stat
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.access import UNREACHABLE, Api, Json, Refused
from tests.cluster.binaries import binaries, pinned
from tests.cluster.control_plane import ControlPlane, Timings
from tests.cluster.images import Images
from tests.cluster.kubelet import PREEMPTION_SECONDS, Kubelet, Site
from tests.cluster.log_server import LogServer
from tests.cluster.names import Names
from tests.cluster.node import Node
from tests.cluster.processes import wait_until
from tests.cluster.slots import Slot

COMMAND_SECONDS = 300
NAMES_SECONDS = 1.0


class Missing(RuntimeError):
    """A program that the cluster needs is not on this machine; the message says how to get it."""


class Cluster:
    """Starts on entering the `with`, ends on leaving it. Logs of every part stay in `folder` until then, or for `keep`."""

    def __init__(
        self,
        images: Images | None = None,
        timings: Timings | None = None,
        folder: Path | None = None,
        keep: bool = False,
    ) -> None:
        require_programs()
        self.binaries = binaries()
        self.images = images or Images()
        self.keep = keep
        self.folder = folder or Path(tempfile.mkdtemp(prefix="nanocode-cluster-"))
        self.folder.mkdir(exist_ok=True)
        # Containers run as other users, and must be able to pass to their own folders.
        self.folder.chmod(0o711)
        closed = [one for one in self.folder.resolve().parents if not one.stat().st_mode & stat.S_IXOTH]
        if closed:
            raise ValueError(f"containers of other users cannot pass through {closed[-1]}: take another folder")
        plane = self.folder / "control-plane"
        plane.mkdir(mode=0o700)
        self.control_plane = ControlPlane(self.binaries, plane, timings or Timings())
        self.api: Api = self.control_plane.api
        self.kubeconfig = self.control_plane.kubeconfig
        self.kubelets: dict[str, Kubelet] = {}
        self._over = threading.Event()

    def __enter__(self) -> Self:
        try:
            self.control_plane.start()
        except BaseException:
            self.control_plane.stop()
            raise
        self._names = Names(self.api)
        self._logs = LogServer(self.control_plane.authority, self._find)
        nodes = self.folder / "nodes"
        nodes.mkdir(mode=0o711)
        self._site = Site(
            nodes,
            self.api,
            ("127.0.0.1", self.control_plane.port),
            self.images,
            self._names,
            self._logs.port,
            pinned("k8s.io/kubernetes"),
        )
        threading.Thread(target=self._keep_names, name="names", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._over.set()
        for kubelet in self.kubelets.values():
            kubelet.stop()
        self._logs.stop()
        self.control_plane.stop()
        if kind is None and not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, *nodes: Node) -> None:
        """Nodes join, and are Ready and without the taint of new ones when this returns."""
        for node in nodes:
            user = f"system:node:{node.name}"
            api = Api(self.control_plane.kubeconfig_of(user, "system:nodes"))
            self.kubelets[node.name] = Kubelet(node, self._site, api)
            self.kubelets[node.name].start()
        for node in nodes:
            wait_until(f"{node.name} takes pods", lambda node=node: self._takes_pods(node))  # type: ignore[misc]

    def preempt(self, name: str, seconds: float = PREEMPTION_SECONDS) -> None:
        """A spot node is reclaimed with notice; returns when its object is gone, after at most `seconds` and a little."""
        self.kubelets[name].preempt(seconds)
        del self.kubelets[name]

    def vanish(self, name: str) -> None:
        """A node is gone without notice. Its object stays until `forget`."""
        self.kubelets[name].vanish()

    def forget(self, name: str) -> None:
        """The cloud notices that the machine of a vanished node is gone."""
        self.kubelets.pop(name).forget()

    def hang(self, name: str) -> None:
        self.kubelets[name].hang()

    def resume(self, name: str) -> None:
        self.kubelets[name].resume()

    def kubectl(self, *words: str, stdin: str = "") -> str:
        """What kubectl prints, as the cluster's admin; raises CalledProcessError, whose `stderr` says why."""
        return self.command("kubectl", *words, stdin=stdin)

    def command(self, program: str, *words: str, stdin: str = "", stderr: bool = False) -> str:
        """What one of the built programs prints, with the admin's kubeconfig; on `stderr` too, if asked for."""
        done = subprocess.run(
            [str(self.binaries / program), *words],
            check=False,
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, [program, *words], done.stdout, done.stderr)
        return done.stdout + (done.stderr if stderr else "")

    def environment(self) -> dict[str, str]:
        """For a program that talks to this cluster and to no other."""
        # Helm's and kubectl's own caches and settings are the cluster's, not the user's.
        return {
            "PATH": f"{self.binaries}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "KUBECONFIG": str(self.kubeconfig),
        }

    def apply(self, *manifests: Json) -> None:
        self.kubectl("apply", "-f", "-", stdin="\n---\n".join(json.dumps(one) for one in manifests))

    def usage(self) -> dict[tuple[str, str, str], tuple[int, float]]:
        """(namespace, pod, container) -> resident bytes and processor seconds, of all that runs."""
        used = {}
        for kubelet in list(self.kubelets.values()):
            for worker in list(kubelet.workers.values()):
                for spec in worker.pod["spec"]["containers"]:
                    slot = worker.slot(spec["name"])
                    if slot is not None and slot.container is not None:
                        metadata = worker.pod["metadata"]
                        used[metadata["namespace"], metadata["name"], spec["name"]] = slot.container.usage()
        return used

    def _takes_pods(self, node: Node) -> bool:
        found = self.api.get(f"/api/v1/nodes/{node.name}")
        return not any(t["key"].startswith("node.kubernetes.io/") for t in found["spec"].get("taints") or ())

    def _find(self, namespace: str, pod: str, container: str) -> Slot | None:
        for kubelet in list(self.kubelets.values()):
            for worker in list(kubelet.workers.values()):
                metadata = worker.pod["metadata"]
                if (metadata["namespace"], metadata["name"]) == (namespace, pod):
                    if not kubelet.answers:
                        raise LookupError(f"node {kubelet.node.name} does not answer")
                    return worker.slot(container)
        return None

    def _keep_names(self) -> None:
        """Services come and go without a node being told."""
        while not self._over.wait(NAMES_SECONDS):
            try:
                self._names.refresh()
            except (Refused, *UNREACHABLE):
                continue


def require_programs() -> None:
    """Raises Missing for what a Linux machine may lack; Go is asked for only when something must be built."""
    packages = {"bwrap": "bubblewrap", "unshare": "util-linux", "setpriv": "util-linux", "mount": "mount"}
    for program, package in packages.items():
        if shutil.which(program) is None:
            raise Missing(f"simulated nodes need {program}: on Debian, apt-get install {package}")
