"""What the controller adds to the chart's templates, and that it adds nothing else."""

import copy
from typing import Any

import pytest
import yaml

from deploy.kubernetes import templates
from deploy.kubernetes.templates import Making
from nanocode.run.exits import ConfigurationError
from tests.deploy.kubernetes.releases import DIGEST, IMAGE, RUN, TEMPLATES, template, training_run

OWNER = templates.reference(training_run("gs://b/r"))
MAKING = Making(RUN, "ns", OWNER, TEMPLATES, IMAGE, f"registry:5000/nanocode@{DIGEST}")


def made(stage: str = "pretrain", attempt: int = 3, hosts: int = 1, node_pool: str | None = None) -> Any:
    return templates.objects(template(stage, hosts), MAKING, stage, attempt, node_pool)


def difference(before: Any, after: Any, path: str = "") -> dict[str, Any]:
    """Path -> the new value, of all that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        found: dict[str, Any] = {}
        for key in {**before, **after}:
            found |= difference(before.get(key), after.get(key), f"{path}.{key}" if path else key)
        return found
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return {k: v for i in range(len(before)) for k, v in difference(before[i], after[i], f"{path}.{i}").items()}
    return {} if before == after else {path: after}


def test_an_attempt_differs_from_its_template_by_what_only_the_controller_knows() -> None:
    before_job, before_service = yaml.safe_load_all(template("pretrain", 2))
    job, service = made(hosts=2)
    container = "spec.template.spec.containers.0"
    assert difference(before_job, job) == {
        "metadata.name": "r-pretrain-3",
        "metadata.namespace": "ns",
        "metadata.ownerReferences": [OWNER],
        "metadata.labels.nanocode.dev/attempt": "3",
        "metadata.annotations": {"nanocode.dev/image": IMAGE, "nanocode.dev/templates": TEMPLATES},
        "spec.template.metadata.labels.nanocode.dev/attempt": "3",
        "spec.template.spec.subdomain": "r-pretrain-3",
        f"{container}.image": f"registry:5000/nanocode@{DIGEST}",
        f"{container}.env": [
            {"name": "HOME", "value": "/tmp"},
            {"name": "NANOCODE_ATTEMPT", "value": "3"},
            {"name": "JAX_COORDINATOR_ADDRESS", "value": "r-pretrain-3-0.r-pretrain-3:8482"},
        ],
    }
    assert difference(before_service, service) == {
        "metadata.name": "r-pretrain-3",
        "metadata.namespace": "ns",
        "metadata.ownerReferences": [OWNER],
        "metadata.labels.nanocode.dev/attempt": "3",
        "spec.selector.nanocode.dev/attempt": "3",
    }


def test_one_host_needs_no_coordinator() -> None:
    job, _ = made()
    names = [one["name"] for one in job["spec"]["template"]["spec"]["containers"][0]["env"]]
    assert names == ["HOME", "NANOCODE_ATTEMPT"]


def test_a_named_node_pool_narrows_the_selector() -> None:
    job, _ = made(node_pool="slice-1")
    assert job["spec"]["template"]["spec"]["nodeSelector"] == {
        "pool": "tpu",
        "cloud.google.com/gke-nodepool": "slice-1",
    }


def test_the_same_text_makes_every_attempt() -> None:
    first = copy.deepcopy(made(attempt=1))
    made(attempt=2)
    assert made(attempt=1) == first


@pytest.mark.parametrize(
    "text", ["", "kind: Job", "- a list", "kind: [", "kind: Job\nspec: {}\n---\nkind: Service\nspec: {}"]
)
def test_a_template_that_is_none_says_what_to_do(text: str) -> None:
    with pytest.raises(ConfigurationError, match="has no Job and Service for sft .*: install the chart again"):
        templates.objects(text, MAKING, "sft", 1)


def test_names_that_would_be_too_long_are_refused_before_anything_is_made() -> None:
    long = Making("r" * 60, "ns", OWNER, TEMPLATES, IMAGE, IMAGE)
    with pytest.raises(ConfigurationError, match="names longer than 63 characters"):
        templates.objects(template("pretrain"), long, "pretrain", 1)


@pytest.mark.parametrize(
    ("image", "recorded", "runs"),
    [
        (IMAGE, None, IMAGE),
        (IMAGE, f"{IMAGE}@{DIGEST}", f"registry:5000/nanocode@{DIGEST}"),
        ("registry:5000/nanocode:2", f"{IMAGE}@{DIGEST}", "registry:5000/nanocode:2"),
        ("nanocode", f"nanocode@{DIGEST}", f"nanocode@{DIGEST}"),
        (f"a/b@{DIGEST}", "a/b@sha256:" + "b" * 64, f"a/b@{DIGEST}"),
    ],
)
def test_an_image_is_pinned_by_the_digest_of_exactly_its_name(image: str, recorded: str | None, runs: str) -> None:
    assert templates.by_digest(image, recorded) == runs


def test_an_image_id_without_a_repository_is_no_digest_to_pull_by() -> None:
    assert templates.digest_in(DIGEST) is None
    assert templates.digest_in(f"docker-pullable://registry/nanocode@{DIGEST}") == DIGEST
