"""Node pools that somebody keeps, so that a slice need not wait for a pool to be made, nor another for one to go.

A pool with the label `nanocode-kept=true` is never deleted here: a slice borrows it, by the labels that any slice has,
and afterwards it has no nodes and no labels of ours. One of a single host keeps the autoscaler that a slice needs, of 0
to 1 nodes, whatever it had before. Of two runs that want the same one the second is refused, by its etag.
"""

from deploy.provisioners.gke_client import Container, Refused
from deploy.provisioners.gke_pools import Nodes, Pool, Shape, autoscaling
from deploy.provisioners.labels import EXPIRES, OWNER, RUN, SLICE, owned

KEPT = "nanocode-kept"
OURS = (RUN, SLICE, OWNER, EXPIRES)
"""Labels of a pool that is borrowed."""
RESIZE = "SET_NODE_POOL_SIZE"


class KeptPools:
    """Those of a cluster."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._free: list[Pool] = []
        self._sized: set[str] = set()

    def look(self, there: list[Pool]) -> None:
        """Take note of those that nobody uses now."""
        self._free = [
            pool for pool in there if is_kept(pool) and owned(pool.labels) is None and pool.status == "RUNNING"
        ]

    def borrow(self, zone: str, shape: Shape, labels: dict[str, str]) -> bool:
        """Label one as a slice; whether there was one."""
        for pool in [one for one in self._free if one.zone == zone and _is_like(one.shape, shape)]:
            self._free.remove(pool)
            try:
                self._container.relabel(pool, {**pool.labels, **labels})
            except Refused:
                continue  # somebody was faster
            return True
        return False

    def converge(self, pool: Pool, nodes: Nodes) -> None:
        """See to it that a pool that is borrowed may have, or has, the nodes of a slice."""
        if not is_kept(pool):
            return
        if pool.hosts == 1 and pool.most_nodes != 1:
            self._container.autoscale(pool.name, autoscaling())
        elif pool.hosts > 1 and not nodes.there and pool.name not in self._sized:
            # An empty pool is one that was just borrowed, or one that is being put back: its last operation tells.
            last = next(iter(self._container.operations(pool.name)), None)
            if last is None or last.kind != RESIZE:
                self._container.resize(pool.name, pool.hosts)
            self._sized.add(pool.name)

    def put_back(self, pool: Pool, nodes: Nodes) -> None:
        """Empty it, or have it stop trying to fill; once it is empty take our labels off."""
        self._sized.discard(pool.name)
        if nodes.there or pool.status == "RUNNING_WITH_ERROR":
            self._container.resize(pool.name, 0)
        else:
            self._unlabel(pool)

    def _unlabel(self, pool: Pool) -> None:
        rest = {key: value for key, value in pool.labels.items() if key not in OURS}
        self._container.relabel(pool, rest)


def is_kept(pool: Pool) -> bool:
    return pool.labels.get(KEPT) == "true"


def _is_like(one: Shape, shape: Shape) -> bool:
    """A pool of one host has no topology of its own."""
    topology = shape.topology if shape.hosts > 1 else ""
    return (one.machine_type, one.topology, one.spot) == (shape.machine_type, topology, shape.spot)
