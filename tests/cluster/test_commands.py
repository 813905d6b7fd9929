"""What a user may do to a run in mid-training, and what becomes of it."""

import re
import threading
from collections.abc import Iterator

import pytest

from tests.cluster.access import Json
from tests.cluster.cluster import Cluster
from tests.cluster.processes import wait_until
from tests.cluster.releases import RUN, Release, refusal, seed

pytestmark = pytest.mark.cluster

LONG = {"settings": {"pretrain": {"steps": 100_000}}}
"""So long that whatever happens meets it in mid-training."""


@pytest.fixture
def release(cluster: Cluster, quiet: Release, values: Json, request: pytest.FixtureRequest) -> Iterator[Release]:
    """A run with tokenizer, corpus and synth done; what the test leaves of it goes."""
    name = re.sub(r"[^a-z]+", "-", request.node.name.removeprefix("test_"))[:20].strip("-")
    made = Release(cluster, quiet.namespace, name, values)
    seed(made, quiet, "tokenizer", "corpus", "synth")
    yield made
    if made.training_run():
        made.uninstall()


def living(release: Release) -> list[str]:
    return [
        pod["metadata"]["name"] for pod in release.objects("pods") if pod["status"]["phase"] in ("Pending", "Running")
    ]


def everything(release: Release) -> set[str]:
    """Kind and name of all that carries the run's label, in whatever namespace."""
    kinds = (
        "deployments,pods,jobs,services,configmaps,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings"
    )
    found = release.cluster.kubectl("get", kinds, "-A", "-l", f"{RUN}={release.name}", "-o", "name")
    return set(found.split())


def test_suspended_it_saves_and_leaves_resumed_it_goes_on_cancelled_it_ends(release: Release) -> None:
    release.install(**LONG)
    release.wait_for_checkpoint("pretrain")
    release.patch(suspend=True)
    status = release.wait_for("Suspended")
    wait_until("nothing runs", lambda: not living(release))
    assert (status["message"], status["failures"]) == ("the user suspended the run", 0)

    release.patch(suspend=False)
    release.wait_for_checkpoint("pretrain", attempt=2)
    resumed = re.search(r'"step": (\d+).*"event": "resumed"', release.kubectl("logs", f"job/{release.name}-pretrain-2"))
    assert resumed is not None and int(resumed[1]) > 0

    release.patch(cancel=True)
    assert release.wait_for("Cancelled")["message"] == "the user cancelled the run"
    wait_until("nothing runs", lambda: not living(release))
    assert release.directory.done("pretrain") is None
    wait_until("its Service is gone", lambda: not release.objects("services"))


def test_an_upgrade_in_flight_changes_nothing_for_the_attempt_that_runs(release: Release) -> None:
    release.install()
    before = release.training_run()["spec"]["templates"]
    running = release.wait_for_pod("pretrain")
    release.upgrade(terminationGraceSeconds=20)
    after = release.training_run()["spec"]["templates"]
    assert after != before
    assert release.wait_until_done("pretrain").attempt == 1
    evaluated = release.wait_for_pod("base-eval")
    grace = "terminationGracePeriodSeconds"
    assert (running["spec"][grace], evaluated["spec"][grace]) == (30, 20)
    assert "a run keeps its preset: another preset is another release" in refusal(lambda: release.upgrade(preset="d12"))
    assert release.status()["failures"] == 0


def test_deleted_in_mid_run_it_takes_its_jobs_along_and_leaves_its_data(release: Release) -> None:
    release.install(**LONG)
    release.wait_for_checkpoint("pretrain")
    release.kubectl("delete", "trainingrun", release.name, "--timeout=100s")
    wait_until("its Jobs go", lambda: not release.objects("jobs") and not living(release))
    wait_until("its Service is gone", lambda: not release.objects("services"))
    assert any(name.endswith(".json") for name in release.directory.store.children("pretrain/attempts/1/checkpoints"))
    (controller,) = release.controller_pods()
    assert controller["status"]["phase"] == "Running"
    release.uninstall()


def test_uninstalled_in_mid_run_it_ends_the_run_before_its_controller_goes_and_says_where_the_data_is(
    release: Release,
) -> None:
    release.install(**LONG)
    release.wait_for_checkpoint("pretrain")
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        """How many controllers there are as long as pods of the stage run."""
        while not over.wait(0.3):
            if living(release):
                seen.append(len(release.controller_pods()))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    said = release.uninstall()
    over.set()
    looking.join()
    assert seen and set(seen) == {1}
    assert f"what it made stays in {release.location}" in said
    wait_until("nothing is left", lambda: not everything(release))
    assert not release.training_run()
    assert release.directory.store.exists("pretrain/attempts/1/END.json")
