"""The fake Cloud TPU API, as the real client finds it."""

from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import tpu_v2

from tests.clouds.fixtures import Now
from tests.clouds.tpu import Initiator, State, TpuServer
from tests.clouds.world import Code, World

PARENT = "projects/lab/locations/us-east5-b"


def request(name: str = "one", request_id: str = "1", parent: str = PARENT, kind: str = "v6e-8") -> Any:
    node = tpu_v2.Node(accelerator_type=kind, runtime_version="v2-alpha-tpuv6e", labels={"nanocode-run": "r"})
    spec = tpu_v2.QueuedResource.Tpu.NodeSpec(parent=parent, node_id=name, node=node)
    resource = tpu_v2.QueuedResource(tpu=tpu_v2.QueuedResource.Tpu(node_spec=[spec]), spot={})
    return tpu_v2.CreateQueuedResourceRequest(
        parent=parent, queued_resource_id=name, queued_resource=resource, request_id=request_id
    )


def state(client: tpu_v2.TpuClient, name: str = "one") -> Any:
    return client.get_queued_resource(name=f"{PARENT}/queuedResources/{name}", timeout=5).state


def test_a_request_waits_comes_is_preempted_and_keeps_its_quota_until_it_is_deleted(
    tpu: TpuServer, clouds: World, now: Now
) -> None:
    client = tpu.client()
    operation = client.create_queued_resource(request(), timeout=5)
    assert state(client).state is State.ACCEPTED
    now.seconds += 2
    assert operation.result(timeout=5).name == f"{PARENT}/queuedResources/one"
    assert state(client).state is State.PROVISIONING
    now.seconds += 60
    assert state(client).state is State.ACTIVE
    (node,) = client.list_nodes(parent=PARENT, timeout=5)
    assert node.state is tpu_v2.Node.State.READY and node.labels["nanocode-run"] == "r"
    now.seconds += 600
    assert clouds.call("", lambda: clouds.preempt("us-east5-b")) is not None
    now.seconds += 30
    assert (state(client).state, state(client).state_initiator) == (State.SUSPENDED, Initiator.SERVICE)
    assert clouds.reserved and clouds.bill({"us-east5-b": 0.5}) == pytest.approx(8 * 0.5 * 601 / 3600)
    client.delete_queued_resource(tpu_v2.DeleteQueuedResourceRequest(name=f"{PARENT}/queuedResources/one"), timeout=5)
    now.seconds += 20
    with pytest.raises(exceptions.NotFound):
        state(client)
    assert not clouds.reserved


def test_asking_again_with_the_same_request_id_makes_nothing_new(tpu: TpuServer, clouds: World) -> None:
    client = tpu.client()
    clouds.fail("CreateQueuedResource", Code.DEADLINE_EXCEEDED, took_effect=True)
    with pytest.raises(exceptions.DeadlineExceeded):
        client.create_queued_resource(request(), timeout=5)
    client.create_queued_resource(request(), timeout=5)
    with pytest.raises(exceptions.AlreadyExists):
        client.create_queued_resource(request(request_id="2"), timeout=5)
    assert len(tpu.service.all) == 1


def test_machines_that_run_are_deleted_only_by_force(tpu: TpuServer, now: Now) -> None:
    client = tpu.client()
    client.create_queued_resource(request(), timeout=5)
    now.seconds += 100
    name = f"{PARENT}/queuedResources/one"
    with pytest.raises(exceptions.FailedPrecondition):
        client.delete_queued_resource(tpu_v2.DeleteQueuedResourceRequest(name=name), timeout=5)
    client.delete_queued_resource(tpu_v2.DeleteQueuedResourceRequest(name=name, force=True), timeout=5)
    assert state(client).state is State.DELETING


def test_whoever_deletes_the_node_is_told_from_the_service(tpu: TpuServer, now: Now) -> None:
    client = tpu.client()
    client.create_queued_resource(request(), timeout=5)
    now.seconds += 100
    client.delete_node(name=f"{PARENT}/nodes/one", timeout=5)
    now.seconds += 30
    assert (state(client).state, state(client).state_initiator) == (State.SUSPENDED, Initiator.USER)


@pytest.mark.parametrize(
    ("how", "kind", "reason"),
    [
        ({"parent": "projects/other/locations/us-east5-b"}, exceptions.PermissionDenied, "CONSUMER_INVALID"),
        ({"parent": "projects/lab/locations/mars-1"}, exceptions.PermissionDenied, None),
        ({"kind": "v4-8"}, exceptions.InvalidArgument, None),
        ({"kind": "v6e-32"}, exceptions.ResourceExhausted, "RATE_LIMIT_EXCEEDED"),
    ],
)
def test_refusals_come_with_their_code_and_reason(
    tpu: TpuServer, how: dict[str, str], kind: type[exceptions.GoogleAPICallError], reason: str | None
) -> None:
    with pytest.raises(kind) as refusal:
        tpu.client().create_queued_resource(request(**how), timeout=5)
    assert refusal.value.reason == reason
