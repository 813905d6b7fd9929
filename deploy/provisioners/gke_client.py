"""The GKE API as far as node pools need it, one call at a time: what it says as plain values, and how it refuses.

Every call has a deadline and is made once: the next look is the retry. That is not the client's default, whose retries
pass over a lost reply in silence. Nothing here waits for an operation.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.request import Request, urlopen

from deploy.controller.backend import Unreachable
from deploy.provisioners.gke_pools import Customs, Pool, Shape
from deploy.provisioners.gke_refusals import Where, passes, refusal
from nanocode.config.settings import Cloud

SECONDS_TO_LOOK, SECONDS_TO_ACT = 10.0, 30.0
METADATA, SECONDS_FOR_METADATA = "http://metadata.google.internal/computeMetadata/v1", 3.0
UNDER_WAY = ("PENDING", "RUNNING", "ABORTING")


class Refused(Exception):
    """GKE said no, and will say it again; the code as gRPC spells it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


@dataclass(frozen=True)
class Operation:
    """Something long that GKE does, or has done."""

    path: str
    kind: str
    """`CREATE_NODE_POOL`, `DELETE_NODE_POOL`..."""
    pool: str
    """Name of the node pool that it is about, if it is about one."""
    under_way: bool
    started: str
    ended: float | None = None
    """Unix seconds; None where it is not said."""
    error: tuple[str, str] | None = None
    """Code and message."""


class Container:
    """Node pools of one cluster."""

    def __init__(
        self,
        where: Where,
        connect: Callable[[], Any] | None = None,
        seconds: tuple[float, float] = (SECONDS_TO_LOOK, SECONDS_TO_ACT),
    ) -> None:
        """`seconds`: for a call that looks, and for one that acts."""
        self.where = where
        self._connect, self._connected = connect or _default_client, None
        self._to_look, self._to_act = seconds
        self._customs: Customs | None = None

    @property
    def account(self) -> str | None:
        """The one that the cluster's nodes run as, once that is known."""
        return self._customs.service_account if self._customs is not None else None

    def pools(self) -> list[Pool]:
        found = self._look("list_node_pools", {"parent": self.where.parent})
        return [_pool(one) for one in found.node_pools]

    def pool(self, name: str) -> Pool | None:
        try:
            return _pool(self._look("get_node_pool", {"name": self._path(name)}))
        except Refused as no:
            if no.code == "NOT_FOUND":
                return None
            raise

    def customs(self) -> Customs:
        """How the cluster's first pool is made, and which version it has; asked once."""
        if self._customs is None:
            cluster = self._look("get_cluster", {"name": self.where.parent})
            first = cluster.node_pools[0].config if cluster.node_pools else None
            self._customs = Customs(
                version=cluster.current_master_version,
                service_account=(first.service_account if first is not None else "") or "default",
                workload_identity=bool(cluster.workload_identity_config.workload_pool),
                image_streaming=first is not None and first.gcfs_config.enabled,
            )
        return self._customs

    def operation(self, path: str) -> Operation | None:
        try:
            return self._operation(self._look("get_operation", {"name": path}))
        except Refused as no:
            if no.code == "NOT_FOUND":
                return None
            raise

    def operations(self, pool: str) -> list[Operation]:
        """Those about this pool, the newest first."""
        found = self._look("list_operations", {"parent": self._location}).operations
        mine = [one for each in found if (one := self._operation(each)).pool == pool]
        return sorted(mine, key=lambda one: one.started, reverse=True)

    def create(self, fields: dict[str, Any]) -> Operation:
        """`fields`: of the `NodePool`."""
        return self._operation(self._act("create_node_pool", {"parent": self.where.parent, "node_pool": fields}))

    def delete(self, name: str) -> None:
        """Begin to; one that is gone is no error."""
        try:
            self._act("delete_node_pool", {"name": self._path(name)})
        except Refused as no:
            if no.code != "NOT_FOUND":
                raise

    def resize(self, name: str, nodes: int) -> None:
        self._act("set_node_pool_size", {"name": self._path(name), "node_count": nodes})

    def autoscale(self, name: str, fields: dict[str, Any]) -> None:
        self._act("set_node_pool_autoscaling", {"name": self._path(name), "autoscaling": fields})

    def relabel(self, pool: Pool, labels: dict[str, str]) -> None:
        """Give it these labels and no others; refused where it has changed since we looked."""
        fields = {"name": self._path(pool.name), "resource_labels": {"labels": labels}, "etag": pool.etag}
        self._act("update_node_pool", fields)

    # -- one call ------------------------------------------------------------------------------------------------------

    @property
    def _location(self) -> str:
        return f"projects/{self.where.project}/locations/{self.where.location}"

    def _path(self, pool: str) -> str:
        return f"{self.where.parent}/nodePools/{pool}"

    def _look(self, method: str, request: dict[str, Any]) -> Any:
        return self._ask(method, request, self._to_look)

    def _act(self, method: str, request: dict[str, Any]) -> Any:
        return self._ask(method, request, self._to_act)

    def _ask(self, method: str, request: dict[str, Any], seconds: float) -> Any:
        from google.api_core.exceptions import GoogleAPICallError, RetryError
        from google.auth.exceptions import GoogleAuthError, TransportError

        try:
            if self._connected is None:
                self._connected = self._connect()
            return getattr(self._connected, method)(request=request, timeout=seconds, retry=None)
        except GoogleAPICallError as error:
            code = error.grpc_status_code.name if error.grpc_status_code is not None else type(error).__name__
            said = f"{error.reason}: {error.message}" if error.reason else str(error.message)
            if passes(code, said):
                raise Unreachable(f"GKE gives no answer for now ({method}, {code}: {said[:200]})") from error
            raise Refused(code, said) from error
        except (RetryError, TransportError) as error:
            raise Unreachable(f"GKE gives no answer ({method}, {type(error).__name__})") from error
        except GoogleAuthError as error:
            raise Refused("UNAUTHENTICATED", str(error)) from error

    def _operation(self, one: Any) -> Operation:
        conditions = [_condition(each) for each in one.nodepool_conditions]
        error: tuple[str, str] | None = None
        if one.error.code or conditions:
            telling = next((code for code, _ in conditions if code != "UNKNOWN"), _spelled(one.error.code))
            error = (telling, one.error.message or one.status_message or "; ".join(said for _, said in conditions))
        return Operation(
            path=f"{self._location}/operations/{one.name}",
            kind=_name(one.operation_type),
            pool=_pool_of(one.target_link, self.where.cluster),
            under_way=_name(one.status) in UNDER_WAY,
            started=one.start_time,
            ended=datetime.fromisoformat(one.end_time).timestamp() if one.end_time else None,
            error=error,
        )


def connect(cloud: Cloud) -> Container:
    """The cluster that the settings name, or the one that this pod is in; `Unreachable` where that is none."""
    project, location, cluster = (
        said or _of_this_node(path)
        for said, path in (
            (cloud.project, "project/project-id"),
            (cloud.cluster_location, "instance/attributes/cluster-location"),
            (cloud.cluster, "instance/attributes/cluster-name"),
        )
    )
    return Container(Where(project, location, cluster))


def _of_this_node(path: str) -> str:
    """What GKE's metadata server says (cloud.google.com/kubernetes-engine/docs/concepts/workload-identity)."""
    try:
        asked = Request(f"{METADATA}/{path}", headers={"Metadata-Flavor": "Google"})  # noqa: S310  (it is http)
        with urlopen(asked, timeout=SECONDS_FOR_METADATA) as answer:  # noqa: S310
            return str(answer.read().decode())
    except OSError as error:
        raise Unreachable(
            f"no cluster to make node pools in (no answer from {METADATA}): set cloud.project, cloud.cluster_location "
            "and cloud.cluster, which `gcloud container clusters list` shows"
        ) from error


def in_words(no: Refused, where: Where) -> str:
    """One sentence with the next move."""
    return refusal(no.code, no.message, where).sentence


def _default_client() -> Any:
    from google.cloud.container_v1 import ClusterManagerClient  # late: it costs half a second

    return ClusterManagerClient()


def _pool(one: Any) -> Pool:
    machine = one.config.machine_type
    topology = one.placement_policy.tpu_topology
    locations: Iterable[str] = one.locations
    return Pool(
        name=one.name,
        zone=next(iter(locations), ""),
        status=_name(one.status),
        labels=dict(one.config.resource_labels),
        shape=Shape(machine, topology, one.config.spot),
        conditions=tuple(_condition(each) for each in one.conditions),
        etag=one.etag,
        most_nodes=(one.autoscaling.total_max_node_count or one.autoscaling.max_node_count)
        if one.autoscaling.enabled
        else None,
    )


def _condition(one: Any) -> tuple[str, str]:
    code = _name(one.code)
    if code == "UNKNOWN" and one.canonical_code:
        code = _spelled(int(one.canonical_code))
    return code, one.message


def _pool_of(link: str, cluster: str) -> str:
    """`.../clusters/C/nodePools/P` -> P; empty for another cluster's, or for no pool at all."""
    _, found, rest = link.partition(f"/clusters/{cluster}/nodePools/")
    return rest.partition("/")[0] if found else ""


def _name(value: Any) -> str:
    """Of an enum; one that the client does not know is a plain number."""
    return str(getattr(value, "name", value))


def _spelled(code: int) -> str:
    """A gRPC status by its number."""
    from google.rpc.code_pb2 import Code

    return str(Code.Name(code)) if code in Code.values() else str(code)
