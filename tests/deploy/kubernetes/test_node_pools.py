"""What the Kubernetes API says of node pools, and a run whose slices are node pools of a fake GKE."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.kubernetes import run as run_module
from deploy.kubernetes.client import Cluster
from deploy.kubernetes.node_pools import MACHINE_TYPE, NodePoolView, failed_scale_ups
from deploy.kubernetes.templates import NODE_POOL, RUN
from deploy.kubernetes.trainingrun import timestamp
from deploy.provisioners.gke_client import Container
from deploy.provisioners.gke_pools import Nodes
from deploy.provisioners.labels import name_of, run_label
from tests.clouds.gke import FakeGke
from tests.clouds.world import World as Clouds
from tests.clouds.world import Zone
from tests.deploy.kubernetes.api_server import ApiServer
from tests.deploy.kubernetes.objects import NOW, at, condition, homeless, pod
from tests.deploy.kubernetes.world import World

pytestmark = pytest.mark.slow

Object = dict[str, Any]
MACHINE = "ct6e-standard-8t"
A, B = "us-east5-a", "us-east5-b"
STOCKOUT = "Node scale up in zones us-east5-a associated with this pod failed: GCE out of resources. Pod is at risk of not being scheduled."


def node(name: str, pool: str, status: str = "True", ago: float = 600, machine: str = MACHINE) -> Object:
    labels = {NODE_POOL: pool, MACHINE_TYPE: machine}
    return {
        "metadata": {"name": name, "labels": labels, "creationTimestamp": at(ago)},
        "status": {"conditions": [condition("Ready", status=status, ago=ago)]},
    }


def waiting(pool: str | None, uid: str = "pod-0", node: str | None = None) -> Object:
    one = pod(0, None, homeless(60), node=node)
    one["metadata"] |= {"uid": uid, "name": uid, "labels": {RUN: "r"}}
    one["spec"]["nodeSelector"] = {NODE_POOL: pool} if pool else {}
    return one


def event(uid: str, message: str, ago: float = 10, reason: str = "FailedScaleUp") -> Object:
    about = {"kind": "Pod", "uid": uid, "name": uid}
    metadata = {"name": f"{uid}.{ago:g}.{reason}"}
    return {
        "metadata": metadata,
        "involvedObject": about,
        "reason": reason,
        "message": message,
        "lastTimestamp": at(ago),
    }


def view(cluster: Callable[..., Cluster]) -> NodePoolView:
    return NodePoolView(cluster(), "r", lambda: MACHINE, lambda: NOW)


def test_nodes_are_counted_by_pool_and_those_that_are_silent_for_long_are_gone(
    server: ApiServer, cluster: Callable[..., Cluster]
) -> None:
    for one in (
        node("a", "p"),
        node("b", "p", "False", ago=300),
        node("c", "p", "Unknown", ago=30),
        node("d", "p", "Unknown", ago=300),
        node("e", "q"),
        node("f", "q", machine="e2-standard-8"),
    ):
        server.put("nodes", one)
    assert view(cluster).nodes() == {"p": Nodes(3, 1, NOW - 600), "q": Nodes(1, 1, NOW - 600)}


def test_what_the_autoscaler_said_last_counts_for_the_pool_that_a_pod_waits_for(
    server: ApiServer, cluster: Callable[..., Cluster]
) -> None:
    for one in (waiting("p"), waiting("q", "pod-1"), waiting(None, "pod-2"), waiting("s", "pod-3", node="n")):
        server.put("pods", one)
    for said in (
        event("pod-0", STOCKOUT, ago=10),
        event("pod-0", "an earlier word", ago=90),
        event("pod-1", "pod triggered scale-up", reason="TriggeredScaleUp"),
        event("pod-2", STOCKOUT),
        event("pod-3", STOCKOUT),
        event("a pod of an earlier attempt", STOCKOUT),
    ):
        server.put("events", said)
    assert view(cluster).failed_scale_ups() == {"p": STOCKOUT}


def test_nobody_asks_for_events_while_no_pod_waits(server: ApiServer, cluster: Callable[..., Cluster]) -> None:
    assert view(cluster).failed_scale_ups() == {}
    assert ("list", "events") not in server.requests
    assert failed_scale_ups([], [event("pod-0", STOCKOUT)]) == {}


# -- a run -------------------------------------------------------------------------------------------------------------


class Run(World):
    """A TrainingRun in a cluster with one zone that has no slices and one that has."""

    def __init__(self, server: ApiServer, cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        zones = {"zones": [A, B], "dollarsPerSliceHour": {A: 4.0, B: 5.0}}
        super().__init__(server, cluster, folder, provisioner="gke", **zones)
        clouds = Clouds(lambda: self.now)
        clouds.zones = {A: Zone(capacity=0), B: Zone(capacity=8)}
        self.gke = FakeGke(clouds)
        monkeypatch.setattr(run_module.gke_client, "connect", lambda cloud: Container(self.gke.where, self.gke.client))

    def pool(self, number: int) -> str:
        return name_of(run_label(self.directory.store.url), f"slice-{number}")

    def until_pretrain(self) -> None:
        self.rounds()
        for stage in ("tokenizer", "synth", "corpus"):
            self.done(stage)
            self.rounds(2)

    def homeless(self, job: str) -> Object:
        """Its pod finds no node."""
        found = self.pod(job, {}, 0, "", {**homeless(0), "lastTransitionTime": timestamp(self.now)})
        del found["spec"]["nodeName"]
        return found


@pytest.fixture
def run(
    server: ApiServer, cluster: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    one = Run(server, cluster(timeout=(1.0, 1.0)), tmp_path, monkeypatch)
    yield one
    one.gke.close()


def selector(run: Run, job: str) -> Object:
    found: Object = run.server.objects["jobs", job]["spec"]["template"]["spec"]["nodeSelector"]
    return found


def test_a_stage_goes_to_its_slices_pool_and_where_the_autoscaler_finds_nothing_on_to_the_next_zone(run: Run) -> None:
    run.until_pretrain()
    assert sorted(run.gke.pools) == [run.pool(1)] and run.jobs[-1] != "r-pretrain-1"
    run.rounds(6)
    assert selector(run, "r-pretrain-1")[NODE_POOL] == run.pool(1)
    assert NODE_POOL not in selector(run, "r-tokenizer-1")
    one = run.homeless("r-pretrain-1")
    run.rounds()
    assert "it waits for a node with" in run.status["message"]
    run.server.put("events", event(one["metadata"]["uid"], STOCKOUT))
    run.rounds()
    assert any(
        "given back: stockout: us-east5-a has no ct6e-standard-8t to give now" in said for said in run.events("Release")
    )
    run.server.objects.pop(("pods", one["metadata"]["name"]))
    run.rounds(20)
    assert sorted(run.gke.pools) == [run.pool(2)], "the first one is deleted"
    assert selector(run, "r-pretrain-2")[NODE_POOL] == run.pool(2)
    assert run.status["failures"] == 0 and run.status["preemptions"] == 0
    assert run.status["costDollars"] == 0, "there was no node yet"


def test_where_no_zone_has_anything_the_status_says_why_and_what_to_do(run: Run) -> None:
    run.gke.world.zones[B].generations = run.gke.world.zones[A].generations = ("v5e",)
    run.until_pretrain()
    run.rounds(8)
    assert run.status["phase"] == "Provisioning"
    assert (
        "pretrain: no slice lately in us-east5-a, us-east5-b: there is no ct6e-standard-8t in" in run.status["message"]
    )
    assert "gcloud compute machine-types list" in run.status["message"]


def test_deleting_a_run_gives_its_slice_back_before_it_goes(run: Run) -> None:
    run.until_pretrain()
    run.rounds(6)
    assert "r-pretrain-1" in run.jobs
    run.cluster.delete("trainingruns", "r")
    run.rounds(2)
    run.server.objects.pop(("pods", "r-pretrain-1-0-abcde"), None)
    assert run.status["phase"] == "Releasing"
    run.rounds(12)
    assert ("trainingruns", "r") not in run.server.objects
    assert run.gke.pools == {}


def test_a_slice_is_given_back_by_who_made_it_though_the_spec_names_another_provisioner_by_now(run: Run) -> None:
    run.until_pretrain()
    run.rounds(6)
    assert list(run.gke.pools) == [run.pool(1)]
    run.change(provisioner="existing", cancel=True)
    run.controller = run.another_controller()
    run.rounds(12)
    assert run.status["phase"] == "Cancelled" and run.gke.pools == {}


def test_an_attempt_whose_slice_has_gone_before_it_began_is_lost_and_not_begun_anywhere(run: Run) -> None:
    run.until_pretrain()
    run.server.trouble = lambda verb, what: 500 if (verb, what) == ("create", "jobs") else None
    run.rounds(7)
    assert run.directory.attempts("pretrain") and "r-pretrain-1" not in run.jobs
    run.gke.pools.clear()
    run.server.trouble = lambda verb, what: None
    run.controller = run.another_controller()
    run.rounds()
    assert "r-pretrain-1" not in run.jobs
    assert run.events("Preempted") == ["attempt 1 of pretrain: slice-1 is gone"]
