"""Our node pools, for the janitor: `Inventory` over the GKE API, for one cluster.

GKE does not say when a pool was made, nor how many nodes an autoscaled one has: it is shown as if it had all of them.
A pool that somebody keeps for slices is not deleted but emptied, and then given up: its labels go, the pool stays.
"""

import time
from collections.abc import Callable, Sequence

from deploy.controller.backend import Unreachable
from deploy.provisioners import labels
from deploy.provisioners.gke_client import Container, Refused, connect, in_words
from deploy.provisioners.gke_kept import is_kept
from deploy.provisioners.gke_pools import WORKS, Pool
from deploy.provisioners.janitor import Found
from nanocode.config.settings import Settings
from nanocode.run.exits import ConfigurationError

KIND = "node pool"
GENERATIONS = {"ct6e": "v6e", "ct5lp": "v5e", "ct5p": "v5p", "ct4p": "v4"}
"""Family of machines -> the price table's kind: cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus."""
LOOKS, SECONDS_BETWEEN = 30, 2.0
"""At a kept pool that is being emptied."""


class NodePoolInventory:
    """What one cluster has of them."""

    def __init__(self, container: Container, wait: Callable[[float], object] = time.sleep) -> None:
        self._container, self._wait = container, wait

    @classmethod
    def of(cls, settings: Settings) -> "NodePoolInventory":
        return cls(connect(settings.cloud))

    def list(self) -> Sequence[Found]:
        try:
            return [found for pool in self._container.pools() if (found := self._found(pool)) is not None]
        except Refused as no:
            raise ConfigurationError(in_words(no, self._container.where)) from no

    def delete(self, found: Found) -> None:
        name = found.name.rpartition("/")[2]
        try:
            pool = self._container.pool(name)
            whose = labels.owned(pool.labels) if pool is not None else None
            if pool is None or whose is None or (whose.run, whose.slice) != (found.run, found.slice):
                return  # gone, given up, or somebody else's by now
            if is_kept(pool):
                self._give_up(pool)
            elif pool.status != "STOPPING":
                self._container.delete(name)
        except Refused as no:
            raise Unreachable(in_words(no, self._container.where)) from no

    def _give_up(self, pool: Pool) -> None:
        self._container.resize(pool.name, 0)
        for _ in range(LOOKS):
            if not any(one.under_way for one in self._container.operations(pool.name)):
                break
            self._wait(SECONDS_BETWEEN)
        else:
            raise Unreachable("it is being emptied, and stays labelled until then: run the janitor again")
        now = self._container.pool(pool.name)
        if now is not None and labels.owned(now.labels) == labels.owned(pool.labels):
            mine = (labels.RUN, labels.SLICE, labels.OWNER, labels.EXPIRES)
            self._container.relabel(now, {key: value for key, value in now.labels.items() if key not in mine})

    def _found(self, pool: Pool) -> Found | None:
        whose = labels.owned(pool.labels)
        if whose is None:
            return None
        family, _, size = pool.shape.machine_type.partition("-")
        size = size.rpartition("-")[2].removesuffix("t")
        return Found(
            name=f"{self._container.where.parent}/nodePools/{pool.name}",
            kind=KIND,
            zone=pool.zone,
            chips=pool.shape.chips if pool.shape.topology else int(size) if size.isdecimal() else 0,
            created=None,
            run=whose.run,
            expires=whose.expires,
            state=pool.status,
            slice=whose.slice,
            owner=whose.owner,
            accelerator=GENERATIONS.get(family, family),
            spot=pool.shape.spot,
            costs=pool.status in WORKS,
            leaving=pool.status == "STOPPING",
        )
