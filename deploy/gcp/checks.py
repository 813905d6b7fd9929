"""What is looked at before anything is deployed: one line each, and what to do about it."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deploy.gcp.deployment import ASK_THE_TPU_API, Deployment
from deploy.gcp.steps import HOW_TO_GET, StepFailed, output, succeeds

OLDEST_HELM = (3, 18)


@dataclass(frozen=True)
class Check:
    """Something that has to hold. `look` says what was found, or raises `Problem`."""

    what: str
    look: Callable[[], str]


class Problem(Exception):
    """What is wrong, and what to do: one line."""


def checks(to: Deployment, tag: str) -> list[Check]:
    """All of them, the ones that others need first."""
    found = [
        Check("helm", _helm),
        Check("cluster", lambda: _cluster(to)),
        *[Check(f"bucket in {region}", _bucket(to, region, bucket)) for region, bucket in to.all_buckets.items()],
        Check("jobs image", lambda: image_digest(to, f"jobs-{to.target}:{tag}")),
        Check("controller image", lambda: image_digest(to, f"controller:{tag}")),
    ]
    if to.accelerator != "none":
        found += [Check("slices", lambda: _slices(to)), Check("quota", lambda: quota_hint(to))]
    return [*found, *[Check(f"secret {name}", _secret(to, name, key)) for name, key in _secrets(to)]]


def passed(all_of_them: list[Check]) -> bool:
    """Look at each and print a line; whether none has a problem."""
    good = True
    for check in all_of_them:
        try:
            print(f"ok    {check.what}: {check.look()}", flush=True)
        except (Problem, StepFailed) as problem:
            good = False
            print(f"WRONG {check.what}: {problem}", flush=True)
    return good


def image_digest(to: Deployment, image: str) -> str:
    """`sha256:...` as the registry says it."""
    look = ("gcloud", "artifacts", "docker", "images", "describe", f"{to.registry}/{image}")
    try:
        said = json.loads(output((*look, "--format=json", f"--project={to.project}", "--quiet")))
        return str(said["image_summary"]["digest"])
    except StepFailed:
        push = f'make push IMAGE_REPOSITORY={to.registry} TARGETS="{to.target} controller"'
        raise Problem(f"{to.registry}/{image} is not there: {push}") from None


def quota_hint(to: Deployment) -> str:
    """Nothing can be asked for all kinds of quota: where to look."""
    if to.accelerator == "nvidia":
        return f"GPUs need NVIDIA and, for spot, preemptible GPU quota in {to.region}: console, IAM, Quotas"
    chips = to.chips[0]
    if to.provisioner == "auto":
        return f"provisioner auto looks which API has quota for {chips} chips"
    if to.provisioner in ASK_THE_TPU_API:
        return (
            f"a slice takes {chips} {'spot' if to.spot else 'on-demand'} chips of the Cloud TPU API's quota in its "
            "zone, which is what the TPU Research Cloud grants"
        )
    return (
        f"a slice takes {chips} chips of Compute Engine's {'preemptible ' if to.spot else ''}TPU v6e quota in "
        f"{to.region}; the TPU Research Cloud's is Cloud TPU quota, which node pools cannot use"
    )


def _helm() -> str:
    said = output(("helm", "version", "--template={{.Version}}")).strip()
    version = re.match(r"v(\d+)\.(\d+)", said)
    if version is not None and (int(version[1]), int(version[2])) < OLDEST_HELM:
        raise Problem(f"{said} is too old: {HOW_TO_GET['helm']}")
    return said or "there"


def _cluster(to: Deployment) -> str:
    known = output(("kubectl", "config", "get-contexts", "--output=name")).split()
    if to.context not in known:
        get = f"gcloud container clusters get-credentials {to.cluster} --location={to.location} --project={to.project}"
        raise Problem(f"kubectl knows no context {to.context}: make gcp-setup, {get}, or set KUBE_CONTEXT")
    if not succeeds(("kubectl", f"--context={to.context}", "get", "--raw=/readyz", "--request-timeout=10s")):
        raise Problem(f"{to.context} gives no answer: `kubectl --context={to.context} get nodes` says why")
    return to.context


def _bucket(to: Deployment, region: str, bucket: str) -> Callable[[], str]:
    def look() -> str:
        try:
            describe = ("gcloud", "storage", "buckets", "describe", bucket, "--format=json")
            said = json.loads(output((*describe, f"--project={to.project}", "--quiet")))
        except StepFailed as failure:
            raise Problem(f"{bucket} cannot be reached ({failure}): make gcp-setup makes it") from None
        location = str(said.get("location", "")).lower()
        if location != region:
            raise Problem(
                f"{bucket} is in {location}, the slices in {region}: every checkpoint would cross regions, "
                "which is slow and billed; name a bucket there"
            )
        kept = int(said.get("soft_delete_policy", {}).get("retentionDurationSeconds", 0))
        bills = f"; it keeps, and bills, what is deleted for {kept // 86400} days" if kept else ""
        return f"{bucket} in {location}{bills}"

    return look


def _slices(to: Deployment) -> str:
    """Node pools with these machines, or nodes that are there."""
    if to.provisioner != "existing":
        return f"provisioner {to.provisioner} asks for them"
    labels = f"node.kubernetes.io/instance-type={to.machine_type}"
    labels += ",cloud.google.com/gke-spot=true" if to.spot else ",cloud.google.com/gke-spot!=true"
    look = ("kubectl", f"--context={to.context}", "get", "nodes", f"--selector={labels}", "--output=name")
    if nodes := output((*look, "--request-timeout=30s")).split():
        return f"{len(nodes)} nodes of {to.machine_type}"
    for pool in _pools(to):
        machines = pool.get("config", {})
        fits = machines.get("machineType") == to.machine_type and bool(machines.get("spot")) == to.spot
        if fits and pool.get("autoscaling", {}).get("enabled"):
            return f"node pool {pool['name']} grows when a stage needs it"
    raise Problem(
        f"no {'spot' if to.spot else 'on-demand'} node of {to.machine_type}, and no pool that could grow one: "
        f"make gcp-setup makes pool {to.node_pool}"
    )


def _pools(to: Deployment) -> list[dict[str, Any]]:
    look = ("gcloud", "container", "node-pools", "list", f"--cluster={to.cluster}", f"--location={to.location}")
    try:
        found: list[dict[str, Any]] = json.loads(output((*look, f"--project={to.project}", "--format=json")))
        return found
    except StepFailed:
        return []


def _secrets(to: Deployment) -> list[tuple[str, str]]:
    return [(name, key) for name, key in ((to.teacher_secret, "TEACHER_API_KEY"), (to.hf_secret, "HF_TOKEN")) if name]


def _secret(to: Deployment, name: str, key: str) -> Callable[[], str]:
    def look() -> str:
        where = (f"--context={to.context}", f"--namespace={to.namespace}")
        names_only = "--output=go-template={{range $key, $value := .data}}{{$key}} {{end}}"
        try:
            keys = output(("kubectl", *where, "get", "secret", name, names_only))
        except StepFailed:
            raise Problem(
                f"it is not in namespace {to.namespace}: kubectl {' '.join(where)} create secret generic {name} "
                f"--from-literal={key}=..."
            ) from None
        if key not in keys.split():
            raise Problem(f"it has no key {key}: the chart looks for that one")
        return f"has {key}"

    return look
