"""Whatever is wrong, somebody is told in one sentence, with the next move, and nothing goes on for ever."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests import gcs
from tests.clouds.permissions import ACCOUNT, refusing
from tests.cluster.access import Json, Refused
from tests.cluster.cluster import Cluster
from tests.cluster.processes import wait_until
from tests.cluster.releases import Release, merged, refusal, seed

pytestmark = pytest.mark.cluster

DEADLINES = {"controller": {"mistake_minutes": 0.2, "provision_minutes": 0.2, "failures": 2}}


@dataclass(frozen=True)
class Mistake:
    """What is wrong, and what the TrainingRun says."""

    name: str
    values: Json
    phase: str
    message: str
    done: tuple[str, ...] = ()
    """Stages to begin with, so that the mistake is met at once."""
    attempts: int = 1
    """Of each stage that meets it."""
    lacking: tuple[str, ...] = ()
    """The permissions that nobody has on its bucket."""


MISTAKES = (
    Mistake(
        "unknown-setting",
        {"settings": {"pretrain": {"stepz": 3}}},
        "Failed",
        "no setting is called pretrain.stepz: did you mean pretrain.steps?",
        attempts=0,
    ),
    Mistake(
        "bad-image",
        {"image": {"repository": "localhost/nanocode/typo"}},
        "Failed",
        "image localhost/nanocode/typo:test cannot be pulled",
    ),
    Mistake(
        "no-secret",
        {"secrets": {"teacherKey": "nobody-made-it"}},
        "Failed",
        "Secret nobody-made-it is not there: `kubectl create secret generic nobody-made-it",
        done=("tokenizer", "corpus"),
    ),
    Mistake(
        "no-such-node",
        {"tpu": {"topology": "8x8", "machineType": "ct6e-standard-4t"}},
        "Failed",
        "there is no node with cloud.google.com/gke-spot=true, cloud.google.com/gke-tpu-accelerator=tpu-v6e-slice",
        done=("tokenizer", "corpus", "synth"),
    ),
    Mistake(
        "too-large",
        {"stages": {"pretrain": {"resources": {"requests": {"memory": "2Ti"}, "limits": {"memory": "2Ti"}}}}},
        "Failed",
        "is large enough for",
        done=("tokenizer", "corpus", "synth"),
    ),
    Mistake(
        "crash-loop",
        {"extraEnv": {"JAX_PLATFORMS": "nonsense"}},
        "Failed",
        "stage pretrain: ",
        done=("tokenizer", "corpus", "synth"),
        attempts=2,
    ),
    Mistake(
        "no-bucket",
        {"bucket": "gs://nobody-made-it"},
        "Failed",
        "bucket gs://nobody-made-it does not exist: create it (`gcloud storage buckets create gs://nobody-made-it ",
        attempts=0,
    ),
    Mistake(
        "no-permission",
        {"bucket": "gs://not-ours"},
        "Failed",
        f"{ACCOUNT} lacks the permission storage.objects.list: grant it (`gcloud storage buckets add-iam-policy-binding "
        "gs://not-ours ",
        attempts=0,
        lacking=("storage.objects.list",),
    ),
)


@pytest.fixture(scope="module")
def mistaken(cluster: Cluster, quiet: Release, values: Json) -> Iterator[dict[str, Release]]:
    """A release for each, all waiting at once."""
    found = {}
    lacking = {one.values["bucket"].removeprefix("gs://"): set(one.lacking) for one in MISTAKES if one.lacking}
    with refusing(gcs.server(), lacking) as door:
        for one in MISTAKES:
            wrong = merged(merged(values, {"settings": DEADLINES}), one.values)
            if one.lacking:
                wrong = merged(wrong, {"extraEnv": {"STORAGE_EMULATOR_HOST": door.address}})
            found[one.name] = Release(cluster, quiet.namespace, one.name, wrong)
            if one.done:
                seed(found[one.name], quiet, *one.done)
            found[one.name].install()
        yield found
        for release in found.values():
            release.kubectl("delete", "deployment", f"{release.name}-controller")


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_the_run_says_what_is_wrong(mistaken: dict[str, Release], mistake: Mistake) -> None:
    release = mistaken[mistake.name]

    def told() -> Any:
        status = release.status()
        return mistake.message in (status.get("message") or "") and status["phase"] == mistake.phase and status

    try:
        status = wait_until(f"it says {mistake.message!r}", told, 240, every=0.5)
    except TimeoutError as problem:
        raise AssertionError(f"{problem}, but {release.status()}") from None
    assert "\n" not in status["message"] and len(status["message"]) < 700
    (failed,) = [one for one in status["conditions"] if one["type"] == "Failed"]
    assert failed["status"] == ("True" if mistake.phase == "Failed" else "False")
    assert failed["message"] == status["message"]
    tried = {one.get("attempt") for one in status.get("stages") or () if one["state"] == "failed"}
    assert tried == ({mistake.attempts} if mistake.attempts else set())


def test_nothing_goes_on_once_a_run_has_failed(mistaken: dict[str, Release]) -> None:
    def jobs_and_pods() -> dict[str, set[str]]:
        return {
            name: {one["metadata"]["name"] for kind in ("jobs", "pods") for one in release.objects(kind)}
            for name, release in mistaken.items()
        }

    def at_work() -> list[str]:
        return [
            pod["metadata"]["name"]
            for release in mistaken.values()
            for pod in release.objects("pods")
            if pod["status"]["phase"] in ("Pending", "Running")
        ]

    before = jobs_and_pods()
    # A stage that has nothing to do with the one that failed may end what it is doing; no other begins.
    wait_until("every pod has ended", lambda: not at_work(), 240, every=1)
    time.sleep(5)
    assert (jobs_and_pods(), at_work()) == (before, [])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"preset": "d13"}, "value must be one of 'demo'"),
        ({"budgetDolars": 5}, "additional properties 'budgetDolars' not allowed"),
        ({"bucket": "my-bucket"}, "does not match pattern"),
        ({"bucket": ""}, "bucket is not set: give --set bucket=gs://NAME"),
        ({"tpu": {"topology": "2x2", "machineType": "ct6e-standard-8t"}}, "which machines of 8"),
    ],
    ids=["preset", "unknown value", "bucket's name", "no bucket", "topology"],
)
def test_helm_refuses_what_the_chart_can_see(quiet: Release, wrong: Json, sentence: str) -> None:
    release = Release(quiet.cluster, quiet.namespace, "refused", quiet.values)
    assert sentence in refusal(lambda: release.install(**wrong))
    assert not release.training_run()


def test_the_api_server_refuses_a_run_that_would_have_slices_it_does_not_use(quiet: Release) -> None:
    path = f"/apis/nanocode.dev/v1alpha1/namespaces/{quiet.namespace}/trainingruns"
    spec = {"preset": "demo", "runDirectory": "gs://bucket/refused", "image": "jobs:1", "templates": "none"}
    run = {"apiVersion": "nanocode.dev/v1alpha1", "kind": "TrainingRun", "metadata": {"name": "refused"}}
    for accelerator in ("none", "nvidia"):
        asked = {**spec, "accelerator": accelerator, "provisioner": "queued-resource"}
        with pytest.raises(Refused, match="asks for TPU slices, set accelerator to tpu, or provisioner to existing"):
            quiet.cluster.api.create(path, {**run, "spec": asked})
