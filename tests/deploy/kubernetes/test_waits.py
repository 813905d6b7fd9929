"""Which nodes a pod may go to, as the scheduler sees it, and what is said where there is none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes import waits
from deploy.kubernetes.check import check
from deploy.kubernetes.client import Cluster
from deploy.kubernetes.trainingrun import timestamp
from nanocode.run.attempts import Ending
from tests.deploy.kubernetes.api_server import ApiServer
from tests.deploy.kubernetes.objects import homeless
from tests.deploy.kubernetes.releases import TEMPLATES
from tests.deploy.kubernetes.world import World

SPOT, TPU = "cloud.google.com/gke-spot", "cloud.google.com/gke-tpu-accelerator"
LARGE = {"cpu": "180", "memory": "1400Gi", "google.com/tpu": "8"}


def required(*terms: list[dict[str, Any]]) -> dict[str, Any]:
    selected = {"nodeSelectorTerms": [{"matchExpressions": term} for term in terms]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": selected}}}


def label(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def tolerating(key: str | None, operator: str = "Exists", **more: str) -> dict[str, Any]:
    return {"tolerations": [{**({"key": key} if key else {}), "operator": operator, **more}]}


def node(name: str = "node", taints: tuple[tuple[str, str, str], ...] = (), **labels: str) -> dict[str, Any]:
    found = [{"key": key, "value": value, "effect": effect} for key, value, effect in taints]
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": found},
        "status": {"allocatable": LARGE, "conditions": []},
    }


GREEN, PLAIN = node(color="green"), node()
ON_TPU = node(taints=(("google.com/tpu", "present", "NoSchedule"),))


@pytest.mark.parametrize(
    ("why", "spec", "there", "allowed"),
    [
        ("nothing is required", {}, GREEN, True),
        ("a value that is listed", required([label("color", "In", "red", "green")]), GREEN, True),
        ("a value that is not listed", required([label("color", "In", "red")]), GREEN, False),
        ("a listed value where there is no label", required([label("color", "In", "red")]), PLAIN, False),
        ("a value that is ruled out", required([label("color", "NotIn", "green")]), GREEN, False),
        ("no label, and a value ruled out", required([label("color", "NotIn", "green")]), PLAIN, True),
        ("a label that has to be there is", required([label("color", "Exists")]), GREEN, True),
        ("a label that has to be there is not", required([label("color", "Exists")]), PLAIN, False),
        ("a label that must not be there is", required([label("color", "DoesNotExist")]), GREEN, False),
        ("a label that must not be there is not", required([label("color", "DoesNotExist")]), PLAIN, True),
        ("one of a term's expressions fails",
         required([label("color", "Exists"), label("color", "NotIn", "green")]), GREEN, False),
        ("one of two terms holds",
         required([label("color", "In", "red")], [label("color", "In", "green")]), GREEN, True),
        ("what the scheduler alone can say", required([label("generation", "Gt", "5")]), GREEN, True),
        ("an accelerator's taint", {}, ON_TPU, False),
        ("it is tolerated", tolerating("google.com/tpu", effect="NoSchedule"), ON_TPU, True),
        ("it is tolerated by its value", tolerating("google.com/tpu", "Equal", value="present"), ON_TPU, True),
        ("another value is tolerated", tolerating("google.com/tpu", "Equal", value="x"), ON_TPU, False),
        ("another effect is tolerated", tolerating("google.com/tpu", effect="NoExecute"), ON_TPU, False),
        ("another taint is tolerated", tolerating("nvidia.com/gpu"), ON_TPU, False),
        ("everything is tolerated", tolerating(None), ON_TPU, True),
        ("a wish that it went elsewhere", {}, node(taints=((SPOT, "true", "PreferNoSchedule"),)), True),
        ("a drain, which ends", {}, node(taints=(("node.kubernetes.io/unschedulable", "", "NoSchedule"),)), True),
    ],
)  # fmt: skip
def test_a_pod_may_go_to_the_nodes_that_the_scheduler_would_let_it(
    why: str, spec: dict[str, Any], there: dict[str, Any], allowed: bool
) -> None:
    assert waits.allowed({"spec": spec}, there) is allowed, why


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "of any kind"),
        ({"nodeSelector": {"b": "2", "a": "1"}}, "with a=1, b=2"),
        ({"nodeSelector": {"a": "1"}, **required([label(SPOT, "DoesNotExist")])}, f"with a=1, without {SPOT}"),
        (required([label("a", "In", "1", "2"), label("b", "NotIn", "3")]), "with a=1|2, without b=3"),
    ],
)
def test_the_nodes_that_a_pod_may_go_to_are_described(spec: dict[str, Any], words: str) -> None:
    assert waits.described({"spec": spec}) == words


@pytest.fixture
def world(server: ApiServer, cluster: Callable[..., Cluster], tmp_path: Path) -> World:
    return World(server, cluster(timeout=(1.0, 1.0)), tmp_path)


def require(world: World, stage: str, requests: dict[str, str], spec: dict[str, Any]) -> None:
    """As the chart writes it into the template of a stage."""
    data = world.server.objects["configmaps", TEMPLATES]["data"]
    job, service = yaml.safe_load_all(data[f"{stage}.yaml"])
    pod = job["spec"]["template"]["spec"]
    pod |= spec
    pod["containers"][0]["resources"] = {"requests": requests}
    data[f"{stage}.yaml"] = yaml.safe_dump_all([job, service])


@pytest.mark.parametrize(
    ("requests", "spec", "there", "sentence"),
    [
        ({"google.com/tpu": "8"}, required([label(SPOT, "DoesNotExist")]), node(**{SPOT: "true"}),
         f"there is no node without {SPOT} (0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector): "
         "add such a node pool, or correct accelerator, tpu and spot in the values"),
        ({"memory": "900Gi"}, required([label(TPU, "DoesNotExist")]), node(**{TPU: "tpu-v6e-slice"}),
         f"there is no node without {TPU} (0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector): "
         "add such a node pool, or correct ordinaryNodes in the values"),
    ],
    ids=["on demand, and the pool is spot", "a CPU stage, and a TPU's node alone is large enough"],
)  # fmt: skip
def test_nodes_that_a_pod_may_not_go_to_are_none_to_wait_for(
    world: World, requests: dict[str, str], spec: dict[str, Any], there: dict[str, Any], sentence: str
) -> None:
    require(world, "tokenizer", requests, spec)
    world.server.put("nodes", there)
    world.rounds()
    since = {"lastTransitionTime": timestamp(world.now)}
    pod = world.pod("r-tokenizer-1", {}, 0, "", homeless(0) | since)
    del pod["spec"]["nodeName"]
    world.rounds()
    assert world.status["stages"][0]["reason"] == sentence
    world.rounds(seconds=4000)
    end = world.end_of("tokenizer")
    assert end is not None and (end.ending, end.reason) == (Ending.CONFIGURATION, sentence)


def test_helm_test_counts_no_node_that_the_pods_may_not_go_to(world: World) -> None:
    require(world, "tokenizer", {"cpu": "2"}, required([label(TPU, "DoesNotExist")]))
    world.server.put("nodes", node("tpu", **{TPU: "tpu-v6e-slice"}))
    world.rounds()

    def told() -> str:
        return next(line for _, line in check(world.cluster, "r") if line.startswith("nodes:") and "cpu stages" in line)

    assert told() == f"nodes: none now for cpu stages (without {TPU}); an autoscaler has to add one"
    world.server.put("nodes", node("ordinary"))
    assert told() == f"nodes: 1 of 1 without {TPU} are large enough for cpu stages"
