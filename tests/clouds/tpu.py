"""A Cloud TPU API v2 of our own, on loopback and spoken to by the real client, over a scripted `World`.

What it does, and where the real one is documented (nothing here was read off the real one):
- States of a queued resource and what they mean: `google.cloud.tpu_v2.types.QueuedResourceState`, and
  docs.cloud.google.com/tpu/docs/queued-resources. A spot node that is preempted leaves its queued resource SUSPENDED
  with initiator SERVICE; somebody who deletes the node, with initiator USER. It gets nothing again, and counts against
  the quota until it is deleted.
- `force`: cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources/delete.
- `request_id`: "idempotent request UUID"; google.aip.dev/155: the same one is answered with the first answer.
- Operations, with target, verb, and when they began and ended: `google.cloud.tpu_v2.types.OperationMetadata`, and
  cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.operations/list. Verbs are our reading.
- Money: cloud.google.com/tpu/pricing: a node costs while it is READY.
- Words of refusals: stockout (google.rpc code 8) as in github.com/GoogleCloudPlatform/magic-modules/pull/7297, quota
  as in github.com/marin-community/marin/issues/3200, a zone without the accelerator as in
  github.com/skypilot-org/skypilot/issues/3840, a disabled API and a foreign project as Service Usage words them
  (cloud.google.com/service-usage/docs/troubleshooting).
"""

import re
import threading
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import grpc
from google.api_core import exceptions
from google.cloud import tpu_v2
from google.longrunning import operations_pb2
from google.protobuf import any_pb2, empty_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from tests.clouds.world import Code, Holding, Refusal, World

State = tpu_v2.QueuedResourceState.State
Initiator = tpu_v2.QueuedResourceState.StateInitiator
SERVICE = "google.cloud.tpu.v2.Tpu"
STOCKOUT = 'There is no more capacity in the zone "{}"; you can try in another zone where Cloud TPU Nodes are offered'


@dataclass
class Queued:
    """A queued resource, its node, and what it holds."""

    resource: Any
    zone: str
    chips: int
    node: Any = None
    holding: Holding | None = None

    @property
    def name(self) -> str:
        return str(self.resource.name)

    @property
    def state(self) -> Any:
        return self.resource.state.state

    def become(self, state: Any, initiator: Any = Initiator.STATE_INITIATOR_UNSPECIFIED, **data: Any) -> None:
        self.resource.state = tpu_v2.QueuedResourceState(state=state, state_initiator=initiator, **data)


@dataclass
class Times:
    """How long things take, in seconds of the world's clock."""

    accept: float = 1.0
    provision: float = 60.0
    suspend: float = 30.0
    delete: float = 20.0


@dataclass
class TpuService:
    """The service, as methods that take requests and give answers or raise `Refusal`."""

    world: World
    project: str = "lab"
    times: Times = field(default_factory=Times)
    enabled: bool = True
    denied: set[str] = field(default_factory=set)
    """Permissions that the caller lacks, such as `tpu.queuedResources.create`."""
    never_provisioned: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Zone -> google.rpc code and message with which the next request that is provisioned there fails."""
    booted: Callable[[Queued], object] = lambda queued: None
    """Called when a node is READY."""
    ended: Callable[[Queued], object] = lambda queued: None
    """Called when a node stops to be."""
    deleted: Callable[[Queued], object] = lambda queued: None
    """Called when nothing is left of it."""
    all: dict[str, Queued] = field(default_factory=dict)
    operations: dict[str, Any] = field(default_factory=dict)
    answered: dict[str, Any] = field(default_factory=dict)
    """`request_id` -> the operation that was the answer."""

    # -- methods -------------------------------------------------------------------------------------------------------

    def create_queued_resource(self, request: Any) -> Any:
        zone = self._check(request.parent, "tpu.queuedResources.create")
        if request.request_id in self.answered:
            return self.answered[request.request_id]
        name = f"{request.parent}/queuedResources/{request.queued_resource_id}"
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", request.queued_resource_id):
            raise Refusal(Code.INVALID_ARGUMENT, f"Invalid queued resource ID {request.queued_resource_id!r}.")
        if name in self.all:
            raise Refusal(Code.ALREADY_EXISTS, f"Resource '{name}' already exists")
        spec = request.queued_resource.tpu.node_spec[0]
        kind, _, chips = spec.node.accelerator_type.partition("-")
        if kind not in self.world.zones[zone].generations:
            raise Refusal(
                Code.INVALID_ARGUMENT,
                f"Cloud TPU received a bad request. the accelerator {kind}-{chips} was not found in zone {zone}",
            )
        if not self.world.reserve(name, zone, int(chips)):
            limit = f"TPU{kind.upper()}PreemptiblePerProjectPerZoneForTPUAPI"
            raise Refusal(
                Code.RESOURCE_EXHAUSTED,
                f"Quota limit '{limit}' has been exceeded. Limit: {self.world.zones[zone].quota} in zone {zone}.",
                ("RATE_LIMIT_EXCEEDED", "googleapis.com", {"quota_limit": limit}),
            )
        resource = tpu_v2.QueuedResource(request.queued_resource)
        resource.name = name
        resource.create_time = self._timestamp()
        queued = self.all[name] = Queued(resource, zone, int(chips))
        queued.become(State.ACCEPTED)
        operation = self._operation(name, "create")
        self.world.after(self.times.accept, lambda: self._accepted(queued, operation))
        limit_at = resource.queueing_policy.valid_until_duration
        if limit_at:
            self.world.after(limit_at.total_seconds(), lambda: self._expire(queued))
        if request.request_id:
            self.answered[request.request_id] = operation
        return operation

    def get_queued_resource(self, request: Any) -> Any:
        self._check(request.name, "tpu.queuedResources.get")
        return self._found(request.name).resource

    def list_queued_resources(self, request: Any) -> Any:
        self._check(request.parent, "tpu.queuedResources.list")
        mine = [one for name, one in sorted(self.all.items()) if name.startswith(f"{request.parent}/")]
        start, size = int(request.page_token or 0), request.page_size or 500
        more = str(start + size) if start + size < len(mine) else ""
        return tpu_v2.ListQueuedResourcesResponse(
            queued_resources=[one.resource for one in mine[start : start + size]], next_page_token=more
        )

    def delete_queued_resource(self, request: Any) -> Any:
        self._check(request.name, "tpu.queuedResources.delete")
        if request.request_id in self.answered:
            return self.answered[request.request_id]
        queued = self._found(request.name)
        idle = (State.ACCEPTED, State.FAILED, State.SUSPENDED)
        if not request.force and queued.state not in idle:
            raise Refusal(Code.FAILED_PRECONDITION, f"{request.name} is {queued.state.name}: delete its nodes first")
        operation = self._operation(queued.name, "delete")
        if queued.state is not State.DELETING:
            queued.become(State.DELETING)
            self._end_node(queued)
        self.world.after(self.times.delete, lambda: self._deleted(queued, operation))
        if request.request_id:
            self.answered[request.request_id] = operation
        return operation

    def reset_queued_resource(self, request: Any) -> Any:
        zone = self._check(request.name, "tpu.queuedResources.update")
        queued = self._found(request.name)
        if queued.state is not State.SUSPENDED:
            raise Refusal(Code.FAILED_PRECONDITION, f"{request.name} is {queued.state.name}, not SUSPENDED")
        queued.become(State.WAITING_FOR_RESOURCES)
        self.world.wait(zone, lambda: self._provision(queued))
        return self._operation(queued.name, "reset", done=True)

    def list_nodes(self, request: Any) -> Any:
        zone = self._check(request.parent, "tpu.nodes.list")
        nodes = [one.node for one in self.all.values() if one.zone == zone and one.node is not None]
        return tpu_v2.ListNodesResponse(nodes=nodes)

    def delete_node(self, request: Any) -> Any:
        """Somebody deletes the machines and leaves the request."""
        self._check(request.name, "tpu.nodes.delete")
        for queued in self.all.values():
            if queued.node is not None and queued.node.name == request.name:
                self.suspend(queued, Initiator.USER)
                return self._operation(request.name, "delete", done=True)
        raise Refusal(Code.NOT_FOUND, f"Resource '{request.name}' was not found")

    def get_operation(self, request: Any) -> Any:
        if request.name not in self.operations:
            raise Refusal(Code.NOT_FOUND, f"Operation {request.name} was not found")
        return self.operations[request.name]

    def list_operations(self, request: Any) -> Any:
        self._check(request.name, "tpu.operations.list")
        mine = [one for name, one in self.operations.items() if name.startswith(f"{request.name}/operations/")]
        start, size = int(request.page_token or 0), request.page_size or 500
        more = str(start + size) if start + size < len(mine) else ""
        return operations_pb2.ListOperationsResponse(operations=mine[start : start + size], next_page_token=more)

    # -- what happens by itself ----------------------------------------------------------------------------------------

    def suspend(self, queued: Queued, initiator: Any = Initiator.SERVICE) -> None:
        """Its machines go: a preemption, or somebody's own doing."""
        if queued.state not in (State.ACTIVE, State.PROVISIONING):
            return
        queued.become(State.SUSPENDING, initiator)
        self._end_node(queued, tpu_v2.Node.State.PREEMPTED)

        def gone() -> None:
            if queued.state is State.SUSPENDING:
                queued.node = None
                queued.become(State.SUSPENDED, initiator)

        self.world.after(self.times.suspend, gone)

    def _accepted(self, queued: Queued, operation: Any) -> None:
        self._done(operation, tpu_v2.QueuedResource.pb(queued.resource))
        if queued.state is State.ACCEPTED:
            queued.become(State.WAITING_FOR_RESOURCES)
            self.world.wait(queued.zone, lambda: self._provision(queued))

    def _provision(self, queued: Queued) -> bool:
        """Whether it need not be tried any more."""
        if queued.state is not State.WAITING_FOR_RESOURCES:
            return True
        if queued.zone in self.never_provisioned:
            code, message = self.never_provisioned.pop(queued.zone)
            self._fail(queued, code, message)
            return True
        ready = self.world.now + self.times.provision
        spot = "spot" in queued.resource
        queued.holding = self.world.take(
            queued.name, queued.zone, queued.chips, lambda: self.suspend(queued), spot, begin=ready
        )
        if queued.holding is None:
            return False
        queued.become(State.PROVISIONING)
        spec = queued.resource.tpu.node_spec[0]
        queued.node = tpu_v2.Node(spec.node)
        queued.node.name = f"{spec.parent}/nodes/{spec.node_id}"
        queued.node.queued_resource = queued.name
        queued.node.state = tpu_v2.Node.State.CREATING
        self.world.at(ready, lambda: self._ready(queued))
        return True

    def _ready(self, queued: Queued) -> None:
        if queued.state is State.PROVISIONING:
            queued.become(State.ACTIVE)
            queued.node.state = tpu_v2.Node.State.READY
            self.booted(queued)

    def _expire(self, queued: Queued) -> None:
        if queued.state in (State.ACCEPTED, State.WAITING_FOR_RESOURCES):
            self._fail(queued, 4, "The queued resource request expired before it could be provisioned.")

    def _fail(self, queued: Queued, code: int, message: str) -> None:
        error = status_pb2.Status(code=code, message=message)
        queued.become(State.FAILED, failed_data=tpu_v2.QueuedResourceState.FailedData(error=error))

    def _end_node(self, queued: Queued, state: Any = tpu_v2.Node.State.DELETING) -> None:
        if queued.holding is not None:
            holding, queued.holding = queued.holding, None
            self.world.give_back(holding)
        if queued.node is not None:
            queued.node.state = state
            self.ended(queued)

    def _deleted(self, queued: Queued, operation: Any) -> None:
        self._done(operation, empty_pb2.Empty())
        if self.all.get(queued.name) is queued:
            del self.all[queued.name]
            self.world.unreserve(queued.name)
            self.deleted(queued)

    # -- all of them ---------------------------------------------------------------------------------------------------

    def _check(self, name: str, permission: str) -> str:
        """The zone of a name; `Refusal` where the caller may not, or it is not there."""
        found = re.match(r"projects/([^/]+)/locations/([^/]+)", name)
        if found is None:
            raise Refusal(Code.INVALID_ARGUMENT, f"Malformed name: '{name}'")
        project, zone = found.groups()
        if project != self.project:
            raise Refusal(
                Code.PERMISSION_DENIED,
                f"Permission denied on resource project {project}.",
                ("CONSUMER_INVALID", "googleapis.com", {"consumer": f"projects/{project}"}),
            )
        if not self.enabled:
            raise Refusal(
                Code.PERMISSION_DENIED,
                f"Cloud TPU API has not been used in project {project} before or it is disabled. Enable it, then retry.",
                ("SERVICE_DISABLED", "googleapis.com", {"service": "tpu.googleapis.com"}),
            )
        if permission in self.denied:
            raise Refusal(
                Code.PERMISSION_DENIED,
                f"Permission '{permission}' denied on 'projects/{project}/locations/{zone}'",
                ("IAM_PERMISSION_DENIED", "iam.googleapis.com", {"permission": permission}),
            )
        if zone not in self.world.zones:
            raise Refusal(Code.PERMISSION_DENIED, f"Permission denied on 'locations/{zone}' (or it may not exist).")
        return zone

    def _found(self, name: str) -> Queued:
        if name not in self.all:
            raise Refusal(Code.NOT_FOUND, f"Resource '{name}' was not found")
        return self.all[name]

    def _operation(self, target: str, verb: str, done: bool = False) -> Any:
        place = "/".join(target.split("/")[:4])
        name = f"{place}/operations/operation-{len(self.operations) + 1}"
        operation = self.operations[name] = operations_pb2.Operation(name=name)
        told = tpu_v2.OperationMetadata(target=target, verb=verb, create_time=self._timestamp(), api_version="v2")
        operation.metadata.Pack(tpu_v2.OperationMetadata.pb(told))
        if done:
            self._done(operation)
        return operation

    def _done(self, operation: Any, answer: Any = None) -> None:
        told = tpu_v2.OperationMetadata.pb(tpu_v2.OperationMetadata())
        operation.metadata.Unpack(told)
        told.end_time.CopyFrom(self._timestamp())
        operation.metadata.Pack(told)
        operation.done = True
        if answer is not None:
            operation.response.Pack(answer)

    def _timestamp(self) -> Any:
        from google.protobuf import timestamp_pb2

        stamp = timestamp_pb2.Timestamp()
        stamp.FromNanoseconds(int(self.world.now * 1e9))
        return stamp


# -- over the network, and without ---------------------------------------------------------------------------------------

METHODS: dict[str, tuple[str, Any, Any]] = {
    "CreateQueuedResource": ("create_queued_resource", tpu_v2.CreateQueuedResourceRequest, None),
    "GetQueuedResource": ("get_queued_resource", tpu_v2.GetQueuedResourceRequest, tpu_v2.QueuedResource),
    "ListQueuedResources": (
        "list_queued_resources",
        tpu_v2.ListQueuedResourcesRequest,
        tpu_v2.ListQueuedResourcesResponse,
    ),
    "DeleteQueuedResource": ("delete_queued_resource", tpu_v2.DeleteQueuedResourceRequest, None),
    "ResetQueuedResource": ("reset_queued_resource", tpu_v2.ResetQueuedResourceRequest, None),
    "ListNodes": ("list_nodes", tpu_v2.ListNodesRequest, tpu_v2.ListNodesResponse),
    "DeleteNode": ("delete_node", tpu_v2.DeleteNodeRequest, None),
}
"""Name in the protocol -> name here, kind of request, kind of answer; None: a long-running operation."""


class TpuServer:
    """The service on loopback."""

    def __init__(self, service: TpuService) -> None:
        self.service = service
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
        handlers = {name: self._handler(name, *how) for name, how in METHODS.items()}
        get = grpc.unary_unary_rpc_method_handler(
            self._answering("GetOperation", service.get_operation),
            operations_pb2.GetOperationRequest.FromString,
            operations_pb2.Operation.SerializeToString,
        )
        of_all = grpc.unary_unary_rpc_method_handler(
            self._answering("ListOperations", service.list_operations),
            operations_pb2.ListOperationsRequest.FromString,
            operations_pb2.ListOperationsResponse.SerializeToString,
        )
        longrunning = {"GetOperation": get, "ListOperations": of_all}
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, handlers),
                grpc.method_handlers_generic_handler("google.longrunning.Operations", longrunning),
            )
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        self._channels: list[grpc.Channel] = []

    def client(self) -> tpu_v2.TpuClient:
        """The real one, connected to this."""
        from google.cloud.tpu_v2.services.tpu.transports import TpuGrpcTransport

        channel = grpc.insecure_channel(self.address)
        self._channels.append(channel)
        return tpu_v2.TpuClient(transport=TpuGrpcTransport(channel=channel))

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self._server.stop(None).wait()

    def _handler(self, name: str, method: str, request: Any, answer: Any) -> grpc.RpcMethodHandler:
        serialize = answer.serialize if answer is not None else operations_pb2.Operation.SerializeToString
        act = self._answering(name, getattr(self.service, method))
        return grpc.unary_unary_rpc_method_handler(act, request.deserialize, serialize)

    def _answering(self, name: str, act: Callable[[Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return self.service.world.call(name, lambda: act(request))
            except Refusal as refusal:
                context.abort_with_status(rpc_status.to_status(_status(refusal)))

        return answer


def _status(refusal: Refusal) -> status_pb2.Status:
    status = status_pb2.Status(code=refusal.code.value[0], message=refusal.message)
    if refusal.info is not None:
        reason, domain, metadata = refusal.info
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata))
        status.details.append(detail)
    return status


class InProcess:
    """The same service behind the same method calls, without a network between: for schedules by the thousand."""

    def __init__(self, service: TpuService) -> None:
        self._service, self._lock = service, threading.RLock()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        name = "".join(part.capitalize() for part in method.split("_"))
        act = getattr(self._service, method)

        def ask(request: Any = None, *, timeout: float, retry: Any = None) -> Any:
            if name in METHODS:
                request = METHODS[name][1](request)
            try:
                found = self._service.world.call(name, lambda: act(request))
            except Refusal as refusal:
                raise exceptions.from_grpc_status(refusal.code, refusal.message) from refusal
            return SimpleNamespace(pages=[found]) if name in METHODS and method.startswith("list_") else found

        return ask
