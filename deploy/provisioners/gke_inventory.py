"""Our node pools, for the janitor: `Inventory` over the GKE API.

A pool does not say since when it is there, nor how many nodes it has: it is judged by its labels and by what its run
says, and counts as if it were full.
"""

from collections.abc import Sequence

from deploy.controller.backend import Unreachable
from deploy.provisioners import labels
from deploy.provisioners.gke_client import Container, Refused, connect, in_words
from deploy.provisioners.gke_kept import KeptPools, is_kept
from deploy.provisioners.gke_pools import Pool
from deploy.provisioners.janitor import Found
from nanocode.config.settings import Settings

KIND = "node pool"
GENERATIONS = {"ct6e": "v6e", "ct5p": "v5p", "ct5lp": "v5e"}
"""Family of machines -> as the price table calls its chips."""


class NodePoolInventory:
    """What one cluster has of them."""

    def __init__(self, container: Container) -> None:
        self._container = container

    @classmethod
    def of(cls, settings: Settings) -> "NodePoolInventory":
        """Of the cluster that the settings name."""
        return cls(connect(settings.cloud))

    def list(self) -> Sequence[Found]:
        try:
            found = [self._found(pool) for pool in self._container.pools()]
        except Refused as no:
            raise Unreachable(in_words(no, self._container.where)) from no
        return [one for one in found if one.run]

    def delete(self, found: Found) -> None:
        """A pool that somebody keeps is emptied, and then put back."""
        name = found.name.rpartition("/")[2]
        try:
            pool = self._container.pool(name)
            if pool is None or pool.status == "STOPPING" or labels.owned(pool.labels) is None:
                return
            if is_kept(pool):
                KeptPools(self._container).put_back_unseen(pool)
            else:
                self._container.delete(name)
        except Refused as no:
            raise Unreachable(in_words(no, self._container.where)) from no

    def _found(self, pool: Pool) -> Found:
        whose = labels.owned(pool.labels)
        return Found(
            name=f"{self._container.where.parent}/nodePools/{pool.name}",
            kind=KIND,
            zone=pool.zone,
            chips=pool.hosts * pool.shape.chips_of_a_host,
            created=None,
            run=whose.run if whose is not None else "",
            expires=whose.expires if whose is not None else 0.0,
            state=pool.status,
            slice=whose.slice if whose is not None else "",
            owner=whose.owner if whose is not None else "",
            accelerator=GENERATIONS.get(pool.shape.machine_type.partition("-")[0], ""),
            spot=pool.shape.spot,
            leaving=pool.status == "STOPPING",
        )
