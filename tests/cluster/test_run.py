"""Whole runs on the real control plane: the chart from helm, the images from our Dockerfiles, the stages' real processes."""

import re
import time
from collections import Counter

import pytest

from nanocode.run.graph import STAGES, order
from tests.cluster.access import Json
from tests.cluster.cluster import Cluster
from tests.cluster.node import v6e_node
from tests.cluster.outcomes import assert_same_ending
from tests.cluster.processes import wait_until
from tests.cluster.releases import SETTINGS, STAGE, Release

pytestmark = pytest.mark.cluster


def kind_of(cluster: Cluster, pod: Json) -> str:
    labels = cluster.api.get(f"/api/v1/nodes/{pod['spec']['nodeName']}")["metadata"]["labels"]
    return "accelerator" if "cloud.google.com/gke-tpu-accelerator" in labels else "cpu"


def test_every_stage_is_a_job_on_its_kind_of_node_and_the_run_succeeds(quiet: Release) -> None:
    assert "condition met" in quiet.kubectl("wait", "trainingrun/quiet", "--for=condition=Succeeded", "--timeout=5s")
    jobs = {one["metadata"]["labels"][STAGE]: one for one in quiet.objects("jobs")}
    assert {stage: job["metadata"]["name"] for stage, job in jobs.items()} == {
        stage: f"quiet-{stage}-1" for stage in order()
    }
    for stage in order():
        pods = quiet.pods(stage)
        assert len(pods) == (2 if STAGES[stage].split else 1)
        assert {kind_of(quiet.cluster, pod) for pod in pods} == {STAGES[stage].machine}
    (trained,) = quiet.pods("pretrain")
    assert re.fullmatch(r"localhost/nanocode/cpu@sha256:[0-9a-f]{64}", trained["spec"]["containers"][0]["image"])
    assert not quiet.objects("services"), "nobody looks for hosts of attempts that have ended"


def test_kubectl_shows_what_a_user_wants_to_see(quiet: Release) -> None:
    header, *lines = quiet.told.splitlines()
    assert header.split() == ["NAME", "PRESET", "PHASE", "STAGE", "STEP", "LOSS", "MFU", "PREEMPTIONS", "COST", "AGE"]
    trained = [line.split() for line in lines if re.search(r"Running +(pretrain|sft) +\d+ ", line)]
    assert any(float(loss) > 0 and float(mfu) > 0 for *_, loss, mfu, _, _, _ in trained), quiet.told
    (now,) = quiet.kubectl("get", "tr", "quiet", "--no-headers").splitlines()
    assert now.split()[:4] == ["quiet", "demo", "Succeeded", "report"]
    status = quiet.status()
    assert {one["name"]: one.get("step") for one in status["stages"]}["pretrain"] == SETTINGS["pretrain"]["steps"]
    assert (status["preemptions"], status["failures"], status["attempts"]) == (0, 0, len(order()))
    assert status["costDollars"] > 0
    assert '"event": "done"' in quiet.kubectl("logs", "job/quiet-pretrain-1")


def test_events_and_metrics_tell_the_same_story(quiet: Release) -> None:
    told = quiet.kubectl("events", "--for", "trainingrun/quiet")
    assert re.search(r"Begin +TrainingRun/quiet +attempt 1 of pretrain begins on pool", told)
    assert len(re.findall(r"Normal +Done ", told)) == len(order())
    assert re.search(r"Succeeded +TrainingRun/quiet +the run is done", told)
    metrics = quiet.metrics()
    assert f'nanocode_stage_step{{run="{quiet.location}",stage="sft"}} {float(SETTINGS["sft"]["steps"])}' in metrics
    assert f'nanocode_run_state{{run="{quiet.location}",state="done"}} 1.0' in metrics
    assert re.search(r'nanocode_controller_actions_total\{kind="Begin"\} 9.0', metrics)


def test_helm_test_finds_everything_in_order(quiet: Release) -> None:
    said = quiet.cluster.command("helm", "test", "quiet", "-n", quiet.namespace, "--logs")
    answers = re.findall(r"^(ok|FAIL) +([a-z]+):", said, re.MULTILINE)
    assert answers == [("ok", what) for what in ("permissions", "templates", "bucket", "nodes", "nodes", "image")]


def test_taken_away_again_and_again_it_ends_as_if_nothing_had_happened(
    cluster: Cluster, quiet: Release, runs: str, values: Json
) -> None:
    release = Release(cluster, runs, "troubled", values)
    release.install()
    release.wait_for_pod("corpus")
    cluster.control_plane.restart_api_server()

    release.wait_for_checkpoint("pretrain")
    cluster.preempt(release.wait_for_pod("pretrain")["spec"]["nodeName"])
    cluster.add(v6e_node("v6e-1"))
    release.wait_for_checkpoint("pretrain", attempt=2)
    (controller,) = release.controller_pods()
    release.kubectl("delete", "pod", controller["metadata"]["name"], "--force", "--grace-period=0")

    release.wait_for_checkpoint("sft")
    lost = release.wait_for_pod("sft")
    cluster.vanish(lost["spec"]["nodeName"])
    time.sleep(3)
    cluster.add(v6e_node("v6e-2"))
    release.wait_for_pod("sft", attempt=2)
    cluster.control_plane.restart_api_server()

    cluster.preempt(release.wait_for_pod("agent-eval")["spec"]["nodeName"], seconds=5)
    cluster.add(v6e_node("v6e-3"))
    status = release.wait_for("Succeeded")

    assert_same_ending(release, quiet)
    assert (status["preemptions"], status["failures"], status["attempts"]) == (3, 0, len(order()) + 3)
    kept = Counter(job["metadata"]["labels"][STAGE] for job in release.objects("jobs"))
    # The lost attempt's is not: deleting a Job is how its pods are told to end.
    assert kept == Counter(order()) + Counter(["pretrain", "agent-eval"])
    wait_until("the last Service is gone", lambda: not release.objects("services"))
    # Its node never came back to say that it has ended: the controller does, by force.
    wait_until("the lost pod is gone", lambda: lost["metadata"]["name"] not in names(release), 180)
    assert {pod["status"]["phase"] for pod in release.objects("pods")} <= {"Succeeded", "Failed"}
    cluster.forget(lost["spec"]["nodeName"])

    said = release.uninstall()
    for kind in ("pods", "jobs", "services"):
        wait_until(f"no {kind} are left", lambda kind=kind: not release.objects(kind))  # type: ignore[misc]
    assert not release.training_run()
    assert release.directory.done("report") is not None, said


def names(release: Release) -> set[str]:
    return {pod["metadata"]["name"] for pod in release.objects("pods")}
