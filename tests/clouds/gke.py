"""GKE's ClusterManager (google.container.v1) on loopback, for the real client: node pools, operations, and an autoscaler.

    gke = FakeGke(World(clock))
    NodePools(Container(gke.where, gke.client), run, owner, gke.view, ...)
    gke.wait_for(pool); gke.leave(pool)            # a pod that needs a node of this pool; it has ended

What the real service does, and where that is written down; all below cloud.google.com/kubernetes-engine/docs unless said
otherwise. None of it was seen in the real cloud.

- A call that changes something answers with an Operation at once, and the pool is shown meanwhile: PROVISIONING, RECONCILING
  or STOPPING (reference/rest/v1/projects.locations.clusters.nodePools#Status). The target link has the project's number,
  and the operation's name is short (reference/rest/v1/projects.locations.operations).
- A failed operation is DONE with `error` and `nodepoolConditions`, and "the node pool may be partially created": it stays,
  in ERROR, with the same conditions (Operation.Type CREATE_NODE_POOL; StatusCondition.Code). Words of a stockout:
  github.com/tranquilitybase-io/tb-gcp/issues/589; of missing quota: 403, "Insufficient regional quota to satisfy request"
  (troubleshooting/node-registration and quotas); of addresses: IP_SPACE_EXHAUSTED (how-to/multi-pod-cidr).
- One operation at a time for each pool; another call is refused with FAILED_PRECONDITION, "Cluster is running incompatible
  operation" (troubleshooting/concurrent-operations).
- A pool of several TPU hosts is one unit: all or none (concepts/tpus). A spot VM that is taken away is made again by its
  instance group as soon as there is room (concepts/spot-vms).
- The autoscaler looks every 10 s, grows a pool whose node a pod waits for, says FailedScaleUp ("GCE out of resources", "GCE
  quota exceeded") on the pod when it cannot and then leaves the pool alone for five minutes, and takes a node that nobody has
  used for ten minutes (concepts/cluster-autoscaler, troubleshooting/cluster-autoscaler-scale-up;
  github.com/kubernetes/autoscaler FAQ).
- A disabled API and a foreign project are refused as Service Usage words them (service-usage/docs/troubleshooting).
- Node pools have etags; an update with an old one is refused (NodePool.etag). Which code that has is not documented.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
from google.api_core.exceptions import from_grpc_status
from google.cloud import container_v1 as v1
from google.cloud.container_v1.services.cluster_manager.transports import ClusterManagerGrpcTransport
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from deploy.provisioners.gke_pools import Nodes
from deploy.provisioners.gke_refusals import Where
from tests.clouds.world import Code, Holding, Refusal, World

SERVICE = "google.container.v1.ClusterManager"
NUMBER = "123456789"
METHODS: dict[str, tuple[Any, Any]] = {
    "GetCluster": (v1.GetClusterRequest, v1.Cluster),
    "GetServerConfig": (v1.GetServerConfigRequest, v1.ServerConfig),
    "ListNodePools": (v1.ListNodePoolsRequest, v1.ListNodePoolsResponse),
    "GetNodePool": (v1.GetNodePoolRequest, v1.NodePool),
    "CreateNodePool": (v1.CreateNodePoolRequest, v1.Operation),
    "DeleteNodePool": (v1.DeleteNodePoolRequest, v1.Operation),
    "SetNodePoolSize": (v1.SetNodePoolSizeRequest, v1.Operation),
    "SetNodePoolAutoscaling": (v1.SetNodePoolAutoscalingRequest, v1.Operation),
    "UpdateNodePool": (v1.UpdateNodePoolRequest, v1.Operation),
    "ListOperations": (v1.ListOperationsRequest, v1.ListOperationsResponse),
    "GetOperation": (v1.GetOperationRequest, v1.Operation),
}
Status, Kind = v1.NodePool.Status, v1.Operation.Type
LOOK_SECONDS, BACKOFF_SECONDS, UNNEEDED_SECONDS = 10.0, 300.0, 600.0
"""Of the autoscaler."""


@dataclass
class FakePool:
    """A node pool, and the machines behind it."""

    shown: v1.NodePool
    holding: Holding | None = None
    ready_at: float = 0.0
    size: int = 0
    """Nodes that its instance group is told to have."""
    operation: str | None = None
    """That is under way."""
    pods: int = 0
    """That need a node of it."""
    idle_since: float = 0.0
    failed_scale_up: str = ""
    gone: bool = False

    @property
    def name(self) -> str:
        return str(self.shown.name)

    @property
    def zone(self) -> str:
        return str(self.shown.locations[0])

    @property
    def each(self) -> int:
        return int(self.shown.config.machine_type.rpartition("-")[2].rstrip("t"))


@dataclass
class View:
    """What the cluster's own API says of pools: `View` of `deploy.provisioners.gke`."""

    gke: "FakeGke"

    def nodes(self) -> dict[str, Nodes]:
        self.gke.world.settle()
        now = self.gke.world.now
        return {
            pool.name: Nodes(pool.size, pool.size if now >= pool.ready_at else 0, pool.holding.begin)
            for pool in self.gke.pools.values()
            if pool.holding is not None
        }

    def failed_scale_ups(self) -> dict[str, str]:
        self.gke.world.settle()
        return {pool.name: pool.failed_scale_up for pool in self.gke.pools.values() if pool.failed_scale_up}


@dataclass
class FakeGke:
    """One cluster and its service."""

    world: World
    where: Where = field(default_factory=lambda: Where("my-project", "us-east5", "nanocode"))
    version: str = "1.35.1-gke.1000000"
    account: str = "nanocode-nodes@my-project.iam.gserviceaccount.com"
    operation_seconds: float = 60.0
    boot_seconds: float = 90.0
    """From a node's appearance until it is ready."""
    recreate_seconds: float = 60.0
    """From a preemption until the instance group tries again."""
    addresses_left: bool = True
    enabled: bool = True
    """The API, for this project."""
    serves: bool = True
    """On loopback."""

    def __post_init__(self) -> None:
        self.pools: dict[str, FakePool] = {}
        self.operations: dict[str, v1.Operation] = {}
        self.view = View(self)
        self._numbers = itertools.count(1)
        if not self.serves:
            return
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4))
        handlers = {name: self._handler(name, *types) for name, types in METHODS.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def client(self) -> v1.ClusterManagerClient:
        """The real one."""
        return v1.ClusterManagerClient(transport=ClusterManagerGrpcTransport(channel=self._channel))

    def direct(self) -> "Direct":
        """A stand-in for the client that calls the service in this process: for schedules by the thousand."""
        return Direct(self)

    def close(self) -> None:
        self._channel.close()
        self._server.stop(None).wait()

    # -- pods, which the cluster's scheduler would bring ---------------------------------------------------------------

    def wait_for(self, name: str) -> None:
        """A pod needs a node of this pool, from now until `leave`."""
        pool = self.pools[name]
        pool.pods += 1
        self.world.after(LOOK_SECONDS, lambda: self._scale_up(pool))

    def leave(self, name: str) -> None:
        pool = self.pools.get(name)
        if pool is None:
            return
        pool.pods = max(0, pool.pods - 1)
        pool.failed_scale_up, pool.idle_since = "", self.world.now
        self.world.after(UNNEEDED_SECONDS, lambda: self._scale_down(pool))

    def is_ready(self, name: str) -> bool:
        """Whether a pod could run on it."""
        nodes = self.view.nodes().get(name)
        return nodes is not None and nodes.ready > 0

    def _scale_up(self, pool: FakePool) -> None:
        autoscaling = pool.shown.autoscaling
        if pool.gone or not pool.pods or pool.size or not autoscaling.enabled or not autoscaling.total_max_node_count:
            return
        if pool.shown.status != Status.RUNNING:
            self.world.after(LOOK_SECONDS, lambda: self._scale_up(pool))
            return
        refused = self._grow(pool, 1)
        pool.failed_scale_up = ""
        if refused is not None:
            wording = {"GCE_STOCKOUT": "GCE out of resources", "GCE_QUOTA_EXCEEDED": "GCE quota exceeded"}
            why = wording.get(refused[0], "IP space exhausted")
            text = f"Node scale up in zones {pool.zone} associated with this pod failed: {why}. "
            pool.failed_scale_up = text + "Pod is at risk of not being scheduled."
            self.world.after(BACKOFF_SECONDS, lambda: self._scale_up(pool))

    def _scale_down(self, pool: FakePool) -> None:
        if not pool.gone and not pool.pods and self.world.now - pool.idle_since >= UNNEEDED_SECONDS:
            self._shrink(pool)

    # -- machines ------------------------------------------------------------------------------------------------------

    def _grow(self, pool: FakePool, size: int) -> tuple[str, str] | None:
        """Have so many nodes; None, or condition and message of why there are none."""
        chips = size * pool.each
        if not self.addresses_left:
            subnet = f"projects/{self.where.project}/regions/{self.where.region}/subnetworks/default"
            return "UNKNOWN", f"[IP_SPACE_EXHAUSTED]: Instance creation failed: IP space of '{subnet}' is exhausted."
        if not self.world.reserve(pool.name, pool.zone, chips):
            return "GCE_QUOTA_EXCEEDED", "Quota 'TPUS_PER_TPU_FAMILY' exceeded. Limit: 0.0 in region us-east5."
        pool.holding = self.world.take(pool.name, pool.zone, chips, lambda: self._taken(pool), pool.shown.config.spot)
        if pool.holding is None:
            self.world.unreserve(pool.name)
            return "GCE_STOCKOUT", (
                f"Not all instances running in IGM after 14.691006793s. Expected {size}, running 0, transitioning {size}. "
                f"Current errors: [GCE_STOCKOUT]: Instance creation failed: The zone 'projects/{self.where.project}/zones/"
                f"{pool.zone}' does not have enough resources available to fulfill the request."
            )
        pool.size, pool.ready_at = size, self.world.now + self.boot_seconds
        return None

    def _shrink(self, pool: FakePool) -> None:
        pool.size = 0
        if pool.holding is not None:
            holding, pool.holding = pool.holding, None
            self.world.unreserve(pool.name)
            self.world.give_back(holding)

    def _taken(self, pool: FakePool) -> None:
        size = pool.size
        self._shrink(pool)
        if size > 1:
            pool.shown.status = Status.RECONCILING
        self.world.after(self.recreate_seconds, lambda: self.world.wait(pool.zone, lambda: self._recreate(pool, size)))

    def _recreate(self, pool: FakePool, size: int) -> bool:
        if pool.gone or pool.shown.status == Status.STOPPING or pool.size:
            return True
        if self._grow(pool, size) is not None:
            return False
        pool.shown.status = Status.RUNNING
        return True

    # -- the service ---------------------------------------------------------------------------------------------------

    def _handler(self, name: str, request: Any, response: Any) -> grpc.RpcMethodHandler:
        method: Callable[[Any], Any] = getattr(self, f"_{_snake(name)}")

        def answer(message: Any, context: grpc.ServicerContext) -> Any:
            try:
                return self.world.call(name, lambda: method(message))
            except Refusal as no:
                status = status_pb2.Status(code=no.code.value[0], message=no.message)
                if no.info is not None:
                    reason, domain, metadata = no.info
                    status.details.add().Pack(
                        error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)
                    )
                context.abort_with_status(rpc_status.to_status(status))

        return grpc.unary_unary_rpc_method_handler(answer, request.deserialize, response.serialize)

    def _get_cluster(self, request: Any) -> v1.Cluster:
        self._my_cluster(request.name)
        first = v1.NodePool(
            name="default-pool", config={"service_account": self.account, "gcfs_config": {"enabled": True}}
        )
        identity = {"workload_pool": f"{self.where.project}.svc.id.goog"}
        return v1.Cluster(
            name=self.where.cluster,
            current_master_version=self.version,
            node_pools=[first],
            workload_identity_config=identity,
            locations=list(self.world.zones),
        )

    def _get_server_config(self, request: Any) -> v1.ServerConfig:
        return v1.ServerConfig(default_cluster_version=self.version, valid_node_versions=[self.version])

    def _list_node_pools(self, request: Any) -> v1.ListNodePoolsResponse:
        self._my_cluster(request.parent)
        return v1.ListNodePoolsResponse(node_pools=[pool.shown for pool in self.pools.values()])

    def _get_node_pool(self, request: Any) -> v1.NodePool:
        return self._pool(request.name).shown

    def _create_node_pool(self, request: Any) -> v1.Operation:
        self._my_cluster(request.parent)
        wanted = request.node_pool
        if wanted.name in self.pools:
            raise Refusal(Code.ALREADY_EXISTS, f"Already exists: {request.parent}/nodePools/{wanted.name}.")
        zone = next(iter(wanted.locations), "")
        if zone not in self.world.zones:
            raise Refusal(
                Code.INVALID_ARGUMENT, f'Location "{zone}" is not within cluster region "{self.where.region}".'
            )
        if "v6e" not in self.world.zones[zone].generations:
            machine = wanted.config.machine_type
            raise Refusal(Code.INVALID_ARGUMENT, f"Machine type {machine} does not exist in zone {zone}.")
        pool = FakePool(v1.NodePool(wanted))
        chips = wanted.initial_node_count * pool.each
        quota = self.world.zones[zone].quota
        if chips and quota is not None and chips > quota:
            raise Refusal(
                Code.PERMISSION_DENIED,
                f'Insufficient regional quota to satisfy request: resource "TPUS_PER_TPU_FAMILY": request requires '
                f"'{chips}.0' and is short '{chips - quota}.0'.",
            )
        pool.shown.status, pool.shown.etag = Status.PROVISIONING, self._number()
        self.pools[wanted.name] = pool

        def made() -> tuple[str, str] | None:
            refused = self._grow(pool, wanted.initial_node_count) if wanted.initial_node_count else None
            pool.shown.status = Status.RUNNING if refused is None else Status.ERROR
            if refused is not None:
                pool.shown.conditions = [_condition(*refused)]
            return refused

        return self._begin(Kind.CREATE_NODE_POOL, pool, made)

    def _delete_node_pool(self, request: Any) -> v1.Operation:
        pool = self._free_pool(request.name)
        pool.shown.status = Status.STOPPING

        def deleted() -> None:
            pool.gone = True
            self._shrink(pool)
            del self.pools[pool.name]

        return self._begin(Kind.DELETE_NODE_POOL, pool, deleted)

    def _set_node_pool_size(self, request: Any) -> v1.Operation:
        pool = self._free_pool(request.name)
        pool.shown.status = Status.RECONCILING

        def sized() -> tuple[str, str] | None:
            refused = None
            if not request.node_count:
                self._shrink(pool)
            elif not pool.size:
                refused = self._grow(pool, request.node_count)
            pool.shown.status = Status.RUNNING if refused is None else Status.RUNNING_WITH_ERROR
            pool.shown.conditions = [] if refused is None else [_condition(*refused)]
            return refused

        return self._begin(Kind.SET_NODE_POOL_SIZE, pool, sized)

    def _set_node_pool_autoscaling(self, request: Any) -> v1.Operation:
        pool = self._free_pool(request.name)
        pool.shown.autoscaling = request.autoscaling
        return self._begin(Kind.UPDATE_CLUSTER, pool, lambda: None)

    def _update_node_pool(self, request: Any) -> v1.Operation:
        pool = self._free_pool(request.name)
        if request.etag and request.etag != pool.shown.etag:
            raise Refusal(Code.FAILED_PRECONDITION, f"etag {request.etag} does not match {pool.shown.etag}.")
        pool.shown.config.resource_labels = dict(request.resource_labels.labels)
        return self._begin(Kind.UPGRADE_NODES, pool, lambda: None)

    def _list_operations(self, request: Any) -> v1.ListOperationsResponse:
        return v1.ListOperationsResponse(operations=list(self.operations.values()))

    def _get_operation(self, request: Any) -> v1.Operation:
        parent, _, name = request.name.rpartition("/")
        if parent != f"projects/{self.where.project}/locations/{self.where.location}/operations":
            raise Refusal(Code.INVALID_ARGUMENT, f"{request.name} is no operation's full name")
        if name not in self.operations:
            raise Refusal(Code.NOT_FOUND, f"Not found: {request.name}.")
        return self.operations[name]

    # -- its parts -----------------------------------------------------------------------------------------------------

    def _begin(self, kind: Any, pool: FakePool, act: Callable[[], tuple[str, str] | None]) -> v1.Operation:
        name = f"operation-{self._number()}"
        pool.operation, pool.shown.etag = name, self._number()
        link = f"https://container.googleapis.com/v1/projects/{NUMBER}/locations/{self.where.location}"
        operation = v1.Operation(
            name=name,
            operation_type=kind,
            status=v1.Operation.Status.RUNNING,
            target_link=f"{link}/clusters/{self.where.cluster}/nodePools/{pool.name}",
            self_link=f"{link}/operations/{name}",
            location=self.where.location,
            start_time=_time(self.world.now),
        )
        self.operations[name] = operation

        def done() -> None:
            refused = act()
            pool.operation = None
            operation.status, operation.end_time = v1.Operation.Status.DONE, _time(self.world.now)
            if refused is not None:
                operation.error = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message=refused[1])
                operation.nodepool_conditions = [_condition(*refused)]

        self.world.after(self.operation_seconds, done)
        return operation

    def _my_cluster(self, parent: str) -> None:
        project = parent.split("/")[1]
        if project != self.where.project:
            info = ("CONSUMER_INVALID", "googleapis.com", {"consumer": f"projects/{project}"})
            raise Refusal(Code.PERMISSION_DENIED, f"Permission denied on resource project {project}.", info)
        if not self.enabled:
            info = ("SERVICE_DISABLED", "googleapis.com", {"service": "container.googleapis.com"})
            said = f"Kubernetes Engine API has not been used in project {project} before or it is disabled."
            raise Refusal(Code.PERMISSION_DENIED, said, info)
        if parent != self.where.parent:
            raise Refusal(Code.NOT_FOUND, f"Not found: {parent}.")

    def _pool(self, path: str) -> FakePool:
        parent, _, name = path.partition("/nodePools/")
        self._my_cluster(parent)
        if name not in self.pools:
            raise Refusal(Code.NOT_FOUND, f"Not found: {path}.")
        return self.pools[name]

    def _free_pool(self, path: str) -> FakePool:
        pool = self._pool(path)
        if pool.operation is not None:
            raise Refusal(Code.FAILED_PRECONDITION, f"Cluster is running incompatible operation {pool.operation}.")
        return pool

    def _number(self) -> str:
        return f"{1_700_000_000_000 + next(self._numbers)}"


class Direct:
    """Answers and refuses as the client does, without a wire in between."""

    def __init__(self, gke: FakeGke) -> None:
        self._gke = gke

    def __getattr__(self, method: str) -> Callable[..., Any]:
        name = method.title().replace("_", "")
        act: Callable[[Any], Any] = getattr(self._gke, f"_{method}")

        def call(request: dict[str, Any], timeout: float, retry: None) -> Any:
            try:
                answer = self._gke.world.call(name, lambda: act(METHODS[name][0](request)))
            except Refusal as no:
                raise from_grpc_status(no.code, no.message) from no
            return type(answer).deserialize(type(answer).serialize(answer))  # what is answered does not change later

        return call


def _condition(code: str, message: str) -> v1.StatusCondition:
    canonical = {"GCE_QUOTA_EXCEEDED": code_pb2.RESOURCE_EXHAUSTED, "GCE_STOCKOUT": code_pb2.RESOURCE_EXHAUSTED}
    return v1.StatusCondition(
        code=code, message=message, canonical_code=canonical.get(code, code_pb2.FAILED_PRECONDITION)
    )


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
