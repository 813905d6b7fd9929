"""Slices as node pools of a GKE cluster: asked for, followed from look to look, and given back.

What is there is read anew at every look, from the pools' labels and GKE's operations: a controller that ends between
asking and looking loses nothing. All that is remembered is what spares a question (the operation of a pool that is
being made), and why a pool could not be made that nobody shows now; asked again, GKE says it again.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Protocol

import structlog

from deploy.controller.backend import Unreachable
from deploy.controller.observed import Slice
from deploy.provisioners.gke_client import Container, Operation, Refused, in_words
from deploy.provisioners.gke_kept import KeptPools, is_kept
from deploy.provisioners.gke_pools import Customs, Nodes, Pool, Shape, as_slice, wanted
from deploy.provisioners.gke_refusals import Refusal, Where, refusal
from deploy.provisioners.labels import labels, name_of, owned
from nanocode.config.settings import Cloud

log = structlog.get_logger()

SECONDS_PER_HOUR = 3600.0


class View(Protocol):
    """What the cluster itself says about node pools, by their names."""

    def nodes(self) -> Mapping[str, Nodes]: ...

    def failed_scale_ups(self) -> Mapping[str, str]:
        """What the autoscaler said last about pools that it could not grow, while a pod waits for them."""


class NodePools:
    """`Provisioner` over the node pools of one run."""

    def __init__(
        self,
        container: Container,
        run: str,
        owner: str,
        view: View,
        cloud: Callable[[], Cloud] = Cloud,
        clock: Callable[[], float] = time.time,
        cool: Callable[[], bool] = lambda: True,
        recorded: Callable[[], Iterable[Slice]] = tuple,
    ) -> None:
        """`run`: as `labels.run_label` words it. `cool`: whether no node has just refused a pod. `recorded`: the slices
        of the journal."""
        self._container, self._run, self._owner, self._view = container, run, owner, view
        self._cloud, self._clock, self._cool, self._recorded = cloud, clock, cool, recorded
        self._pools: dict[str, Pool] = {}
        """By slice, as the last look has found them."""
        self._operations: dict[str, Operation] = {}
        self._refused: dict[str, Slice] = {}
        self._zones: dict[str, str] = {}
        """Slice that we have asked for -> where."""
        self._kept = KeptPools(container)
        self._unseen: set[str] = set()
        """Slices that nobody has written down as ready."""

    # -- looking -------------------------------------------------------------------------------------------------------

    def observe(self) -> Mapping[str, Slice]:
        try:
            there = self._container.pools()
            self._pools = self._mine(there)
            self._kept.look(there)
            nodes = self._view.nodes() if self._pools else {}
            empty = [pool for pool in self._pools.values() if not nodes.get(pool.name, Nodes()).there]
            failed = self._view.failed_scale_ups() if empty else {}
            self._unseen = {one.name for one in self._recorded() if one.ready is None}
            found = {
                name: self._shown(name, pool, nodes.get(pool.name, Nodes()), failed.get(pool.name))
                for name, pool in self._pools.items()
            }
            for name in [name for name in self._operations if name not in self._pools]:
                if (one := self._being_made(name)) is not None:
                    found[name] = one
            gone = self._deleted(found)
        except Refused as no:
            raise Unreachable(in_words(no, self._container.where)) from no
        self._refused = {name: one for name, one in self._refused.items() if name not in found}
        return {**found, **self._refused, **gone}

    def _deleted(self, found: Mapping[str, Slice]) -> dict[str, Slice]:
        """When slices went that cost something when they were last seen, as far as GKE's operations tell it."""
        gone: dict[str, Slice] = {}
        for one in self._recorded():
            if one.ready is not None and one.gone is None and one.name not in found and not one.permanent:
                done = [each for each in self._container.operations(name_of(self._run, one.name)) if each.ended]
                last = next((each for each in done if each.kind == "DELETE_NODE_POOL" and each.error is None), None)
                if last is not None:
                    gone[one.name] = Slice(one.name, one.zone, present=False, until=last.ended)
        return gone

    def pool_of(self, slice: str) -> str:
        """The node pool that a slice is; `LookupError` for a slice that is gone."""
        if slice not in self._pools:
            self.observe()
        if slice not in self._pools:
            raise LookupError(f"{slice} is gone")
        return self._pools[slice].name

    def _mine(self, there: list[Pool]) -> dict[str, Pool]:
        ours = [(owned(pool.labels), pool) for pool in there]
        return {one.slice: pool for one, pool in ours if one is not None and one.run == self._run}

    def _shown(self, name: str, pool: Pool, nodes: Nodes, failed: str | None) -> Slice:
        failure = self._failure(name, pool, failed)
        if failure is None and pool.status == "RUNNING":
            self._operations.pop(name, None)
            self._kept.converge(pool, nodes)
            self._renew(pool)
        if is_kept(pool):
            nodes = replace(nodes, since=None)  # it may have had them before it was borrowed
        elif pool.hosts > 1 and nodes.since is not None and name in self._unseen:
            nodes = replace(nodes, since=min(nodes.since, self._made(pool.name) or nodes.since))
        shown = as_slice(name, pool, nodes, failure)
        return shown if self._cool() else replace(shown, usable=False)

    def _made(self, pool: str) -> float | None:
        """When the machines of a pool of several hosts were all there first: these may be others by now."""
        made = [one for one in self._container.operations(pool) if one.kind == "CREATE_NODE_POOL"]
        return made[-1].ended if made else None

    def _failure(self, name: str, pool: Pool, failed: str | None) -> Refusal | None:
        """Why there will be no nodes in this pool, as far as anybody says so."""
        where = self._where(pool.zone)
        if pool.status in ("PROVISIONING", "ERROR"):
            operation = self._follow(name, pool.name)
            if operation is not None and operation.error is not None:
                return refusal(*operation.error, where)
        if pool.status in ("ERROR", "RUNNING_WITH_ERROR"):
            told = [refusal(code, message, where) for code, message in pool.conditions]
            return told[0] if told else refusal(pool.status, "GKE does not say why", where)
        return refusal("FailedScaleUp", failed, where) if failed is not None else None

    def _follow(self, name: str, pool: str) -> Operation | None:
        """The operation that makes this pool, as it stands now."""
        known = self._operations.get(name)
        if known is None:
            made = [one for one in self._container.operations(pool) if one.kind == "CREATE_NODE_POOL"]
            known = made[0] if made else None
        elif known.under_way:
            known = self._container.operation(known.path)
        if known is None:
            self._operations.pop(name, None)
        else:
            self._operations[name] = known
        return known

    def _being_made(self, name: str) -> Slice | None:
        """A slice whose pool is not shown, though its operation is known."""
        operation, zone = self._follow(name, self._operations[name].pool), self._zones.get(name, "")
        if operation is not None and operation.under_way:
            return Slice(name, zone, machines=False)
        self._operations.pop(name, None)
        if operation is not None and operation.error is not None:
            self._refuse(name, refusal(*operation.error, self._where(zone)), zone)
        return None

    def _renew(self, pool: Pool) -> None:
        """Move the label that lets anybody delete it, long before that time comes."""
        lasts = self._cloud().expiry_hours * SECONDS_PER_HOUR
        one = owned(pool.labels)
        if one is None or one.expires - self._clock() > lasts / 2:
            return
        fresh = labels(self._run, one.slice, self._owner, self._clock() + lasts)
        try:
            self._container.relabel(pool, {**pool.labels, **fresh})
        except (Refused, Unreachable) as error:
            log.warning("expiry not moved, the next look tries again", pool=pool.name, error=str(error))

    # -- acting --------------------------------------------------------------------------------------------------------

    def request(self, name: str, zone: str) -> None:
        if name in self._pools or name in self._operations or name in self._refused:
            return
        self._zones[name] = zone
        where = self._where(zone)
        try:
            pool, shape = name_of(self._run, name), self._shape
            mine = labels(self._run, name, self._owner, self._clock() + self._cloud().expiry_hours * SECONDS_PER_HOUR)
            if self._kept.borrow(zone, shape, mine):
                return
            if (begun := self._begun(pool)) is not None:
                self._operations[name] = begun
                return
            self._operations[name] = self._container.create(wanted(pool, zone, shape, mine, self._customs()))
        except ValueError as error:
            self._refuse(name, refusal("INVALID_ARGUMENT", str(error), where), zone)
        except Refused as no:
            if no.code != "ALREADY_EXISTS":
                self._refuse(name, refusal(no.code, no.message, where), zone)
            elif not self._is_mine(name):
                taken = f"a node pool {name_of(self._run, name)} is there and is not this run's: delete it"
                self._refuse(name, refusal("FAILED_PRECONDITION", taken, where), zone)

    def release(self, name: str) -> None:
        self._refused.pop(name, None)
        pool = self._pools.get(name)
        try:
            if pool is None:
                pool = self._container.pool(name_of(self._run, name))
                if pool is None or name not in self._mine([pool]):
                    return
            self._operations.pop(name, None)
            if is_kept(pool):
                self._kept.put_back(pool, self._view.nodes().get(pool.name, Nodes()))
            elif pool.status != "STOPPING":
                self._container.delete(pool.name)
        except Refused as no:
            raise Unreachable(in_words(no, self._where(pool.zone if pool is not None else ""))) from no

    def release_all(self) -> bool:
        """Give back everything that bears the run's label, whatever is written about it; whether nothing is left."""
        there = self.observe()
        for name in self._pools:
            self.release(name)
        return not [name for name, one in there.items() if one.present and name not in self._refused]

    def _begun(self, pool: str) -> Operation | None:
        """The creation of this pool, where a controller before us began it and GKE does not show it yet."""
        made = [one for one in self._container.operations(pool) if one.kind == "CREATE_NODE_POOL"]
        return made[0] if made and made[0].under_way else None

    def _is_mine(self, name: str) -> bool:
        pool = self._container.pool(name_of(self._run, name))
        return pool is None or name in self._mine([pool])

    def _refuse(self, name: str, no: Refusal, zone: str) -> None:
        self._refused[name] = Slice(name, zone, trouble=no.trouble, reason=no.sentence, machines=False)

    def _customs(self) -> Customs:
        found = self._container.customs()
        account = self._cloud().service_account
        return replace(found, service_account=account) if account else found

    @property
    def _shape(self) -> Shape:
        cloud = self._cloud()
        return Shape(cloud.machine_type, cloud.topology, cloud.spot)

    def _where(self, zone: str) -> Where:
        account = self._cloud().service_account or self._container.account or "SERVICE_ACCOUNT"
        shape = self._shape
        return replace(
            self._container.where, zone=zone, machine_type=shape.machine_type, chips=shape.chips, account=account
        )
