"""A slice of two machines: one Indexed Job of two pods, which train together by jax.distributed, on CPUs over gloo."""

import numpy as np
import pytest

from nanocode.run.segments import read_segments
from tests.cluster.access import Json
from tests.cluster.cluster import Cluster
from tests.cluster.node import Node, v6e_node
from tests.cluster.outcomes import assert_same_weights
from tests.cluster.processes import wait_until
from tests.cluster.releases import ATTEMPT, Release, seed

pytestmark = pytest.mark.cluster

MACHINE = "ct6e-standard-4t"
SLICE = {"tpu": {"topology": "2x4", "machineType": MACHINE}}


def host(name: str) -> Node:
    return v6e_node(name, topology="2x4", machine=MACHINE, pool="two-hosts")


def losses(release: Release) -> list[tuple[int, float]]:
    """Of every step; what a later attempt did again replaces what an earlier one did."""
    records = read_segments(release.directory.store, "pretrain", "metrics")
    found = {int(one["step"]): float(one["loss"]) for one in records if one["kind"] == "step"}
    return sorted(found.items())


def test_a_gang_that_loses_a_host_goes_on_as_one_to_the_same_bits(
    cluster: Cluster, quiet: Release, runs: str, values: Json
) -> None:
    cluster.add(host("pair-0"), host("pair-1"))
    whole, broken = Release(cluster, runs, "two-whole", values), Release(cluster, runs, "two-broken", values)
    for release in (whole, broken):
        seed(release, quiet, "tokenizer", "corpus", "synth")
    whole.install(**SLICE)
    whole.wait_until_done("pretrain")
    pods = whole.pods("pretrain")
    index = "batch.kubernetes.io/job-completion-index"
    assert sorted(pod["metadata"]["annotations"][index] for pod in pods) == ["0", "1"]
    assert {pod["spec"]["nodeName"] for pod in pods} == {"pair-0", "pair-1"}
    whole.uninstall()

    broken.install(**SLICE)
    broken.wait_for_checkpoint("pretrain")
    cluster.vanish("pair-1")
    cluster.add(host("pair-2"))
    broken.wait_for_pod("pretrain", attempt=2)
    status = broken.wait_until("it is counted", lambda: broken.status() if broken.status()["preemptions"] else None)
    assert (status["preemptions"], status["failures"]) == (1, 0)
    marker = broken.wait_until_done("pretrain")
    assert (marker.attempt, marker.metrics["devices"]) == (2, 2)
    second = [pod for pod in broken.pods("pretrain") if pod["metadata"]["labels"][ATTEMPT] == "2"]
    assert {pod["spec"]["nodeName"] for pod in second} == {"pair-0", "pair-2"}
    broken.uninstall()
    cluster.forget("pair-1")
    wait_until("nothing is left", lambda: not broken.objects("pods"))

    assert losses(broken) == losses(whole)
    assert_same_weights(broken, whole, "pretrain")
    together, alone = losses(whole), losses(quiet)
    assert [step for step, _ in together] == [step for step, _ in alone]
    np.testing.assert_allclose([loss for _, loss in together[:50]], [loss for _, loss in alone[:50]], rtol=1e-3)
