"""A cloud on this machine: a fake Cloud TPU API whose slices have VMs, each a startup script in a real shell."""

import threading
import time
from pathlib import Path

from google.cloud import tpu_v2

from tests.clouds.tpu import Queued, Times, TpuServer, TpuService
from tests.clouds.vm import Site, Vm
from tests.clouds.world import World, Zone

A, B = "us-east5-b", "europe-west4-a"
IMAGE = "us-docker.pkg.dev/lab/nanocode/jobs@sha256:" + "2" * 64
SECONDS_OF_WARNING = 2.0


class Cloud:
    """Zones A and B, and what runs in them."""

    def __init__(self, folder: Path, app: Path, capacity: int = 8) -> None:
        self.world = World(time.time)
        self.world.zones |= {A: Zone(capacity=capacity, quota=16), B: Zone(capacity=capacity, quota=16)}
        times = Times(accept=0.1, provision=0.3, suspend=SECONDS_OF_WARNING, delete=0.5)
        self.service = TpuService(self.world, times=times, booted=self._boot, ended=self._end)
        self.server = TpuServer(self.service)
        self.site = Site({}, self._delete)
        self.vms: dict[str, list[Vm]] = {}
        self._folder, self._app = folder, app
        self._ticking = threading.Event()
        threading.Thread(target=self._tick, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """Of a controller that is to reach it."""
        return {"TPU_EMULATOR_HOST": self.server.address}

    def is_empty(self) -> bool:
        self.world.settle()
        return not self.service.all and not self.world.held()

    def close(self) -> None:
        self._ticking.set()
        self.server.close()
        for vms in self.vms.values():
            for vm in vms:
                vm.vanish()

    def _boot(self, queued: Queued) -> None:
        (spec,) = queued.resource.tpu.node_spec
        name = queued.name.rpartition("/")[2]
        hosts = 1 if queued.chips <= 8 else queued.chips // 4
        self.vms[queued.name] = [
            Vm(
                self._folder / name / f"vm-{worker}",
                dict(spec.node.metadata),
                worker,
                hosts,
                self.site,
                self._app,
                IMAGE,
            )
            for worker in range(hosts)
        ]

    def _end(self, queued: Queued) -> None:
        for vm in self.vms.get(queued.name, []):
            vm.warn()
            threading.Timer(SECONDS_OF_WARNING, vm.crash).start()

    def _delete(self, name: str) -> None:
        request = tpu_v2.DeleteQueuedResourceRequest(name=name, force=True)
        self.world.call("DeleteQueuedResource", lambda: self.service.delete_queued_resource(request))

    def _tick(self) -> None:
        """Things happen though nobody calls."""
        while not self._ticking.wait(0.1):
            self.world.settle()
