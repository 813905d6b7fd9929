"""An attempt's Job and headless Service, made from the chart's template of its stage. Pure.

The chart owns every line; added is what only the controller knows: names, the attempt's label and number, the owner,
the image by its digest, the address of the first host, and the node pool.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from nanocode.run.exits import ConfigurationError

Object = dict[str, Any]

RUN, STAGE, ATTEMPT = "nanocode.dev/run", "nanocode.dev/stage", "nanocode.dev/attempt"
"""Labels."""
IMAGE, TEMPLATES = "nanocode.dev/image", "nanocode.dev/templates"
"""Annotations of a Job: the image as the TrainingRun names it, and the ConfigMap that its template is from."""
NODE_POOL = "cloud.google.com/gke-nodepool"
CONTAINER = "stage"
COORDINATOR_PORT = 8482
LONGEST_NAME = 63
"""Of a pod, which is its Job's, the index, and a suffix of six."""


@dataclass(frozen=True)
class Making:
    """What the attempts of one run have in common at a moment."""

    run: str
    namespace: str
    owner: Object
    """The TrainingRun's reference."""
    templates: str
    """Name of the ConfigMap."""
    image: str
    """As the TrainingRun names it."""
    pinned: str
    """The same by digest, where that is known."""


def job_name(run: str, stage: str, attempt: int) -> str:
    return f"{run}-{stage}-{attempt}"


def attempt_of(one: Object) -> tuple[str, int] | None:
    """Stage and number from the labels of a Job, pod or Service of ours."""
    labels = one["metadata"].get("labels") or {}
    number = labels.get(ATTEMPT, "")
    return (labels[STAGE], int(number)) if STAGE in labels and number.isdecimal() else None


def reference(training_run: Object) -> Object:
    """What its Jobs and Services name as their owner, so that they go when it goes."""
    return {
        "apiVersion": training_run["apiVersion"],
        "kind": training_run["kind"],
        "name": training_run["metadata"]["name"],
        "uid": training_run["metadata"]["uid"],
        "controller": True,
    }


def is_ours(one: Object, owner: Object) -> bool:
    """Whether an object belongs to exactly this TrainingRun, not to an earlier one of its name."""
    return any(other.get("uid") == owner["uid"] for other in one["metadata"].get("ownerReferences") or ())


def objects(text: str, making: Making, stage: str, attempt: int, node_pool: str | None = None) -> tuple[Object, Object]:
    """Job and Service of this attempt; `ConfigurationError` for a template that is none."""
    job, service = _documents(text, making.templates, stage)
    for one in (job, service):
        _name(one, making, stage, attempt)
    annotations = {IMAGE: making.image, TEMPLATES: making.templates}
    job["metadata"]["annotations"] = {**job["metadata"].get("annotations", {}), **annotations}
    service["spec"]["selector"] = {**service["spec"].get("selector", {}), **_labels(making.run, stage, attempt)}
    _fill(job, making, stage, attempt, node_pool)
    return job, service


def bridge(text: str, making: Making, stage: str, attempt: int) -> Object:
    """The Job that mirrors the log of an attempt on TPU VMs, under the name that the attempt's own Job would have."""
    try:
        job: Object = copy.deepcopy(yaml.safe_load(text))
        template = job["spec"]["template"]
        container = template["spec"]["containers"][0]
    except (yaml.YAMLError, KeyError, TypeError, IndexError) as error:
        raise ConfigurationError(
            f"ConfigMap {making.templates} has no Job for the bridge ({type(error).__name__}): install the chart again"
        ) from error
    _name(job, making, stage, attempt)
    _label(template, making, stage, attempt)
    _add_environment(container, {"NANOCODE_STAGE": stage, "NANOCODE_ATTEMPT": str(attempt)})
    return job


def _name(one: Object, making: Making, stage: str, attempt: int) -> None:
    """As an object of this attempt, which goes when the TrainingRun goes."""
    _label(one, making, stage, attempt)
    name = job_name(making.run, stage, attempt)
    one["metadata"] |= {"name": name, "namespace": making.namespace, "ownerReferences": [dict(making.owner)]}


def _label(one: Object, making: Making, stage: str, attempt: int) -> None:
    metadata = one.setdefault("metadata", {})
    metadata["labels"] = {**metadata.get("labels", {}), **_labels(making.run, stage, attempt)}


def _add_environment(container: Object, added: Mapping[str, str]) -> None:
    kept = [one for one in container.get("env", []) if one["name"] not in added]
    container["env"] = [*kept, *({"name": key, "value": value} for key, value in added.items())]


def _fill(job: Object, making: Making, stage: str, attempt: int, node_pool: str | None) -> None:
    name, pods = job["metadata"]["name"], hosts(job)
    if len(f"{name}-{pods - 1}-abcde") > LONGEST_NAME:
        raise ConfigurationError(f"the pods of {name} would have names longer than {LONGEST_NAME} characters")
    template = job["spec"]["template"]
    _label(template, making, stage, attempt)
    spec = template["spec"]
    spec["subdomain"] = name
    if node_pool is not None:
        spec["nodeSelector"] = {**spec.get("nodeSelector", {}), NODE_POOL: node_pool}
    container = next(one for one in spec["containers"] if one["name"] == CONTAINER)
    container["image"] = making.pinned
    added = {"NANOCODE_ATTEMPT": str(attempt)}
    if pods > 1:
        added["JAX_COORDINATOR_ADDRESS"] = f"{name}-0.{name}:{COORDINATOR_PORT}"
    _add_environment(container, added)


def hosts(job: Object) -> int:
    """How many pods run side by side, or share the work."""
    return int(job["spec"].get("completions") or 1)


def is_split(job: Object) -> bool:
    """Whether its pods share work piece by piece, and are begun again one by one."""
    return job["spec"].get("backoffLimitPerIndex") is not None


def _labels(run: str, stage: str, attempt: int) -> dict[str, str]:
    return {RUN: run, STAGE: stage, ATTEMPT: str(attempt)}


def _documents(text: str, origin: str, stage: str) -> tuple[Object, Object]:
    try:
        found = {one["kind"]: copy.deepcopy(one) for one in yaml.safe_load_all(text) if one}
        job, service = found["Job"], found["Service"]
        containers = job["spec"]["template"]["spec"]["containers"]
        if not any(one["name"] == CONTAINER for one in containers) or service["spec"] is None:
            raise KeyError(CONTAINER)
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"ConfigMap {origin} has no Job and Service for {stage} ({type(error).__name__}): install the chart again"
        ) from error
    return job, service


# -- images ------------------------------------------------------------------------------------------------------------


def repository(image: str) -> str:
    """`registry:5000/a/b:tag@sha256:...` without tag and digest."""
    name = image.partition("@")[0]
    return name if ":" not in name.rpartition("/")[2] else name.rpartition(":")[0]


def digest_in(image_id: str) -> str | None:
    """The digest that a container's `imageID` ends with; a bare id of an image that was never pulled has none."""
    name, at, digest = image_id.rpartition("@")
    return digest if at and name and digest.startswith("sha256:") else None


def by_digest(image: str, recorded: str | None) -> str:
    """The image by the digest that was recorded for exactly this name of it, else as it is."""
    if "@" in image or recorded is None or not recorded.startswith(f"{image}@"):
        return image
    return f"{repository(image)}@{recorded.rpartition('@')[2]}"
