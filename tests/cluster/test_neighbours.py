"""Runs side by side, two of them in one namespace and one in another, do not touch each other."""

import re

import pytest

from nanocode.run.graph import order
from tests.cluster.access import Json
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import make_namespace
from tests.cluster.node import v6e_node
from tests.cluster.outcomes import results
from tests.cluster.releases import RUN, Release, seed

pytestmark = pytest.mark.cluster

DONE = ("tokenizer", "corpus", "synth", "pretrain", "sft", "preference")


def test_three_runs_end_each_by_itself(cluster: Cluster, quiet: Release, runs: str, values: Json) -> None:
    cluster.add(*(v6e_node(f"more-{number}") for number in range(2)))
    elsewhere = make_namespace(cluster, "elsewhere")
    # One's name is the beginning of another's, and the third has the name of the first.
    places = ((runs, "side"), (runs, "side-by"), (elsewhere, "side"))
    neighbours = [Release(cluster, place, name, values | {"runPath": f"{place}/{name}"}) for place, name in places]
    first, second, third = neighbours
    seed(first, quiet, "tokenizer", "corpus", "synth")
    for release in (second, third):
        seed(release, quiet, *DONE)
    first.install(settings={"pretrain": {"steps": 100_000}})
    second.install()
    third.install()
    for release in (second, third):
        status = release.wait_for("Succeeded")
        assert (status["preemptions"], status["failures"], status["attempts"]) == (0, 0, len(order()))
        assert {job["metadata"]["labels"][RUN] for job in release.objects("jobs")} == {release.name}
        assert results(release) == results(quiet)
    first.wait_for_checkpoint("pretrain")
    assert len(first.directory.attempts("pretrain")) == 1, "it trained on all the while"
    first.uninstall()
    assert second.status()["phase"] == third.status()["phase"] == "Succeeded"
    assert len(second.objects("jobs")) == len(third.objects("jobs")) == len(order()) - len(DONE)
    for release in neighbours:
        user = f"system:serviceaccount:{release.namespace}:{release.name}-controller"
        asked = list(cluster.control_plane.audit(user))
        assert {one.namespace for one in asked if one.resource != "nodes"} == {release.namespace}
        mine = re.compile(
            rf"{release.name}(-controller|-templates-[0-9a-f]+|\.[0-9a-f]+|-({'|'.join(order())})-\d+(-\d.*)?)?"
        )
        named = {one.name for one in asked if one.name and one.resource != "nodes"}
        assert named and all(mine.fullmatch(name) for name in named), named
        assert {one.code for one in asked if one.verb == "delete"} <= {200, 404}, "or it is gone already"
    second.uninstall()
    third.uninstall()
