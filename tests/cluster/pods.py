"""The life of one pod on its node: a thread that starts, watches, reports and ends its containers.

kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle, "termination of Pods", for deletion;
kubernetes.io/docs/concepts/cluster-administration/node-shutdown for a node that tells its pods to leave.
"""

import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.accelerators import tpu_environment
from tests.cluster.access import UNREACHABLE, Api, Json, Refused
from tests.cluster.containers import Container, Plan
from tests.cluster.environment import Unresolved
from tests.cluster.images import Image, Images
from tests.cluster.names import DOMAIN, Names
from tests.cluster.notes import Notes
from tests.cluster.plans import Surroundings, owner, plan, unsupported
from tests.cluster.probes import KINDS, Probe
from tests.cluster.slots import Slot, timestamp
from tests.cluster.statuses import Circumstances, status_of
from tests.cluster.volumes import Volumes

TICK_SECONDS = 0.1


@dataclass(frozen=True)
class Host:
    """What a node lends to its pods. `api` speaks as the node, `cloud` as those who are not the node's own."""

    name: str
    address: str
    folder: Path
    api: Api
    cloud: Api
    api_server: tuple[str, int]
    images: Images
    names: Names
    hung: threading.Event


class PodWorker(threading.Thread):
    """`update` tells it of a newer object, `shut_down` to leave, `vanish` that the machine is gone."""

    def __init__(self, pod: Json, host: Host) -> None:
        metadata = pod["metadata"]
        super().__init__(name=f"pod {metadata['namespace']}/{metadata['name']}", daemon=True)
        self.pod, self._host = pod, host
        self.path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        self.folder = host.folder / f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
        self.folder.mkdir(mode=0o711)
        self._wake = threading.Event()
        self._gone = self._vanished = self._confirmed = False
        self._note = Notes(pod, host.name, host.api, host.hung)
        self._condemned: dict[str, tuple[int, float]] = {}
        self._shut_down_within: float | None = None
        self._kill_at: float | None = None
        self._mounted = False
        self._next_mount = 0.0
        self._began = time.time()
        self._reported: Json = {}
        spec = pod["spec"]
        self._init = [self._slot(one, is_init=True) for one in spec.get("initContainers") or ()]
        self._main = [self._slot(one, is_init=False) for one in spec["containers"]]
        self._address = host.names.address(pod)
        pod["status"] = {**pod.get("status", {}), "podIP": self._address, "hostIP": host.address}
        self._probes = {
            (one["name"], kind): Probe(one, kind, self._address) for one in spec["containers"] for kind in KINDS
        }
        self._volumes = Volumes(pod, self.folder / "volumes", host.api, self._lookup, owner(pod))

    def slot(self, container: str) -> Slot | None:
        return next((one for one in (*self._main, *self._init) if one.spec["name"] == container), None)

    def update(self, pod: Json) -> None:
        self.pod["metadata"] = pod["metadata"]
        self._wake.set()

    def gone(self) -> None:
        """The object is deleted: what still runs is ended, and nobody is told."""
        self._gone = True
        self._wake.set()

    def shut_down(self, seconds: float) -> None:
        """The node ends: the containers have these seconds at most; a pod that has ended already is left as it is."""
        if not self._finished():
            self._shut_down_within = seconds
        self._wake.set()

    def left(self) -> bool:
        """Whether nothing of it runs any more, and its last status is reported."""
        return self._finished() and self._reported.get("phase") in ("Succeeded", "Failed")

    def report_anew(self) -> None:
        """Says its status again, whatever was said before."""
        self._reported = {}
        self._wake.set()

    def vanish(self) -> None:
        """Every process ends at this instant."""
        self._vanished = True
        for slot in (*self._init, *self._main):
            slot.stop(signal.SIGKILL)
        self._wake.set()

    def run(self) -> None:
        try:
            while self._step():
                self._wake.wait(TICK_SECONDS)
                self._wake.clear()
        except Exception:
            (self.folder / "kubelet.log").write_text(traceback.format_exc())
            self.vanish()
            raise
        finally:
            for slot in (*self._init, *self._main):
                slot.reap()
            self._host.names.forget(self.pod)
            self._volumes.remove()

    def _step(self) -> bool:
        """One round; False when nothing is left to do."""
        if self._vanished:
            return False
        grace = self._grace()
        if grace is None:
            self._advance()
        else:
            self._end(grace)
        finished = self._finished()
        if self._gone:
            return not finished
        if not self._host.hung.is_set():
            self._report()
            if finished and self.pod["metadata"].get("deletionTimestamp"):
                self._confirm_deletion()
        return True

    def _finished(self) -> bool:
        return all(slot.ended is not None for slot in (*self._init, *self._main))

    def _advance(self) -> None:
        if not self._mounted and not self._mount():
            return
        for slot in self._init:
            slot.advance(self._planner(slot))
            if slot.ended is None:
                return
            if slot.ended["exitCode"] != 0:
                return
        for slot in self._main:
            slot.advance(self._planner(slot))
            if slot.container is not None:
                self._probe(slot, slot.container)
        try:
            self._volumes.renew_tokens()
        except (Refused, *UNREACHABLE):
            return  # there is a fifth of its life left to try again

    def _probe(self, slot: Slot, container: Container) -> None:
        """Whether it is ready, and whether it must be started anew."""
        name, was = slot.spec["name"], slot.ready
        slot.ready, problem = self._probes[name, "readinessProbe"].judge(container.started, was)
        if problem:
            self._note("Warning", "Unhealthy", f"Readiness {problem}")
        if slot.ready != was:
            self._host.names.refresh()
        alive, problem = self._probes[name, "livenessProbe"].judge(container.started, True)
        if problem:
            self._note("Warning", "Unhealthy", f"Liveness {problem}")
        condemned, kill_at = self._condemned.get(name, (0, 0.0))
        if condemned == container.pid:
            if time.time() >= kill_at:
                slot.stop(signal.SIGKILL)
        elif not alive:
            self._note("Normal", "Killing", f"Container {name} failed liveness probe, will be restarted")
            grace = float(self.pod["spec"].get("terminationGracePeriodSeconds") or 0)
            self._condemned[name] = (container.pid, time.time() + grace)
            slot.stop(signal.SIGTERM)

    def _grace(self) -> float | None:
        """Seconds that the containers have from being told to end; None while nobody told them."""
        metadata = self.pod["metadata"]
        asked = float(self.pod["spec"].get("terminationGracePeriodSeconds") or 0)
        if metadata.get("deletionTimestamp"):
            asked = float(metadata.get("deletionGracePeriodSeconds") or 0)
        if self._shut_down_within is not None:
            return min(asked, self._shut_down_within)
        return asked if self._gone or metadata.get("deletionTimestamp") else None

    def _end(self, grace: float) -> None:
        slots = [*self._init, *self._main]
        now = time.time()
        if self._kill_at is None:
            for slot in slots:
                if slot.running:
                    self._note("Normal", "Killing", f"Stopping container {slot.spec['name']}")
                    slot.stop(signal.SIGTERM)
            self._kill_at = now + grace
        # A second, shorter grace counts from when it is given: a forced deletion ends a patient one.
        self._kill_at = min(self._kill_at, now + grace)
        if now >= self._kill_at:
            for slot in slots:
                slot.stop(signal.SIGKILL)
        for slot in slots:
            slot.close()

    def _mount(self) -> bool:
        if time.time() < self._next_mount:
            return False
        try:
            if lack := unsupported(self.pod):
                raise Unresolved(f"this kubelet does not simulate {lack}")
            self._volumes.prepare()
            self._surroundings = self._make_surroundings()
        except (Unresolved, Refused, *UNREACHABLE) as problem:
            self._note("Warning", "FailedMount", f"MountVolume.SetUp failed: {problem}")
            self._next_mount = time.time() + 0.5
            return False
        self._mounted = True
        return True

    def _make_surroundings(self) -> Surroundings:
        hosts, resolv = self.folder / "hosts", self.folder / "resolv.conf"
        self._host.names.serve(self.pod, hosts)
        # There is no name server: what the hosts file does not know is refused at once.
        namespace = self.pod["metadata"]["namespace"]
        resolv.write_text(f"search {namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}\noptions ndots:5\n")
        injected = {
            one["name"]: tpu_environment(self.pod, one, self._host.cloud) for one in self.pod["spec"]["containers"]
        }
        return Surroundings(self._lookup, self._host.api_server, hosts, resolv, injected)

    def _slot(self, spec: Json, is_init: bool) -> Slot:
        policy = self.pod["spec"].get("restartPolicy", "Always")
        again: dict[str, Callable[[int], bool]] = {
            "Never": lambda code: False,
            "OnFailure": lambda code: code != 0,
            # An init container is run again only if it failed.
            "Always": (lambda code: code != 0) if is_init else (lambda code: True),
        }
        slot = Slot(spec, self.folder / spec["name"], self._host.images, again[policy], self._note)
        if not is_init and self.pod["spec"].get("initContainers"):
            slot.waiting = ("PodInitializing", "")
        return slot

    def _planner(self, slot: Slot) -> Callable[[Image, Path], Plan]:
        def made(image: Image, message: Path) -> Plan:
            try:
                return plan(self.pod, slot.spec, image, self._volumes, self._surroundings, message)
            except (Refused, *UNREACHABLE) as problem:
                raise Unresolved(str(problem)) from None

        return made

    def _lookup(self, kind: str, name: str) -> Json | None:
        try:
            return self._host.api.get(f"/api/v1/namespaces/{self.pod['metadata']['namespace']}/{kind}/{name}")
        except Refused as problem:
            if problem.code == 404:
                return None
            raise

    def _report(self) -> None:
        known = Circumstances(self._began, self._host.address, self._address, self._shut_down_within is not None)
        status = status_of(self._init, self._main, known)
        if status == self._reported:
            return
        now, before = timestamp(time.time()), {c["type"]: c for c in self._reported.get("conditions", ())}
        stamped = [
            condition | ({} if condition == before.get(condition["type"]) else {"lastTransitionTime": now})
            for condition in status["conditions"]
        ]
        try:
            self._host.api.patch(
                f"{self.path}/status",
                {"metadata": {"uid": self.pod["metadata"]["uid"]}, "status": status | {"conditions": stamped}},
            )
        except (Refused, *UNREACHABLE):
            return  # said again at the next round
        if status["phase"] != self._reported.get("phase"):
            self._host.names.refresh()
        self._reported = status

    def _confirm_deletion(self) -> None:
        """The kubelet's last word: nothing runs any more, the object may go once no finalizer holds it."""
        if self._confirmed:
            return
        try:
            self._host.api.delete(
                self.path, {"gracePeriodSeconds": 0, "preconditions": {"uid": self.pod["metadata"]["uid"]}}
            )
        except (Refused, *UNREACHABLE):
            return
        self._confirmed = True
