"""The controller's simulator with slices from `QueuedResources` over an in-process Cloud TPU API.

Everything that the simulator throws at a provisioner still happens, and besides: the API answers with UNAVAILABLE or
DEADLINE_EXCEEDED before or after the act, and what is preempted stays SUSPENDED until it is deleted.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from deploy.controller.backend import Unreachable
from deploy.controller.observed import Slice, Trouble
from deploy.provisioners.labels import SLICE
from deploy.provisioners.queued import Connection, QueuedResources
from deploy.provisioners.queued_states import labels_of
from nanocode.config.settings import Cloud
from tests.clouds.tpu import STOCKOUT, InProcess, Queued, Times, TpuService
from tests.clouds.world import Code, World, Zone
from tests.deploy.simulation.clock import Clock
from tests.deploy.simulation.slices import PERMANENT, Machine, Zones

SHARE_OF_BAD_ANSWERS = 0.03
BAD = (
    ("UNAVAILABLE", False),
    ("UNAVAILABLE", True),
    ("DEADLINE_EXCEEDED", True),
    ("INTERNAL", False),
)


class SimulatedWorld(World):
    """Things happen when the simulator's clock comes to them."""

    def __init__(self, simulated: Clock) -> None:
        super().__init__(lambda: simulated.now)
        self._simulated = simulated

    def at(self, when: float, what: Callable[[], object]) -> None:
        super().at(when, what)
        self._simulated.at(when, self.settle)


class QueuedZones(Zones):
    """Zones of a fake cloud, reached through the provisioner."""

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self._cloud = SimulatedWorld(self._clock)
        for zone in self._prices:
            self._cloud.zones[zone] = Zone(capacity=10**6)
        self._service = TpuService(
            self._cloud, times=Times(accept=0.5), booted=self._came, ended=self._went, deleted=self._vanished
        )
        # Longer than any plan's `provision_minutes`: the controller's own deadline is what is tried here.
        cloud = Cloud(image="jobs@sha256:0", owner="sim", queue_minutes=30.0)
        self._slices = QueuedResources(
            Connection(InProcess(self._service), "lab"), "gs://bucket/run", lambda: cloud, self._recorded, self._now
        )
        self._slices._threads = SimpleNamespace(map=map)  # type: ignore[assignment]  # the same in every run

    def _now(self) -> float:
        return self._clock.now

    def _recorded(self) -> list[Slice]:
        store = self._machines._store
        return [facts.seen(name, float("inf")) for name, facts in store.slices.items()]

    # -- what a controller asks for ------------------------------------------------------------------------------------

    def request(self, name: str, zone: str) -> None:
        trouble, until = self.refusing.get(zone, (None, 0.0))
        refused = trouble if self._clock.now < until else None
        there = self._cloud.zones[zone]
        there.quota = 0 if refused is Trouble.QUOTA else None
        there.generations = () if refused is Trouble.PERMISSION else ("v6e",)
        if refused is Trouble.STOCKOUT:
            self._service.never_provisioned[zone] = (8, STOCKOUT.format(zone))
        else:
            self._service.never_provisioned.pop(zone, None)
        before = len(self._service.all)
        self._met["slow arrival"] += self.arrival_delay > 0
        self._service.times.provision = self._rng.uniform(5, 60) + self.arrival_delay
        self._spoil("CreateQueuedResource")
        try:
            self._slices.request(name, zone)
        except Unreachable:
            self._met["api error"] += 1
        made = len(self._service.all) - before
        if made:
            if any(one.name == name for one in self.present()):
                self._machines._invariants.broken.append(f"{name} is made twice")
            self.arrival_delay = 0.0
            self.all.append(Machine(name, zone, self._prices[zone], self._clock.now))
        if refused is not None and not any(one.name == name for one in self.present() if one.ready is not None):
            self._met[refused.value] += 1

    def release(self, name: str) -> None:
        self._service.times.delete = self._rng.uniform(0.1, 0.95) * self._release_seconds
        self._spoil("DeleteQueuedResource")
        try:
            self._slices.release(name)
        except Unreachable:
            self._met["api error"] += 1
        queued = self._queued(name)
        one = self.shown(name)
        if one is not None and queued is not None and queued.state.name == "DELETING":
            one.leaving = True

    def observe(self) -> dict[str, Slice]:
        self._spoil("ListQueuedResources")
        there = dict(self._slices.observe())
        return there if self.permanent is None else {PERMANENT: self.permanent, **there}

    def preempt(self, one: Machine, grace: float, shown_for: float) -> None:
        for process in self._machines.alive():
            if process.slice == one.name and grace:
                self._machines.told_by_platform(process, grace)

        def away() -> None:
            queued = self._queued(one.name)
            if queued is not None:
                self._service.suspend(queued)

        self._clock.after(grace, away)

    def _spoil(self, method: str) -> None:
        self._cloud.faults.clear()
        if self._rng.random() < SHARE_OF_BAD_ANSWERS:
            code, took_effect = self._rng.choice(BAD)
            self._cloud.fail(method, Code[code], took_effect=took_effect)

    # -- what the cloud does -------------------------------------------------------------------------------------------

    def _queued(self, name: str) -> Queued | None:
        return next((one for one in self._service.all.values() if _slice_of(one) == name), None)

    def _machine(self, queued: Queued) -> Machine | None:
        return next((one for one in reversed(self.all) if one.name == _slice_of(queued)), None)

    def _came(self, queued: Queued) -> None:
        one = self._machine(queued)
        assert one is not None
        one.ready = self._cloud.now

    def _went(self, queued: Queued) -> None:
        one = self._machine(queued)
        if one is not None and one.ready is not None and one.paid_until is None:
            one.paid_until = self._cloud.now
            one.trouble = one.trouble or Trouble.PREEMPTED
            self._lose_processes(one)

    def _vanished(self, queued: Queued) -> None:
        one = self._machine(queued)
        if one is not None:
            one.gone = self._cloud.now
            one.paid_until = one.paid_until or one.gone


def _slice_of(queued: Queued) -> str:
    return labels_of(queued.resource)[SLICE]
