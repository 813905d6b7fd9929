"""One run as a Helm release: what is applied, in what order, and with which values."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.gcp import slices
from deploy.gcp.deployment import ASK_THE_TPU_API, Deployment
from deploy.gcp.steps import Step
from nanocode.config.refusals import cause
from nanocode.run.exits import ConfigurationError, UsageError

CHART = Path("charts/nanocode")
CRD = CHART / "crds/trainingrun.yaml"
PRESETS = ("demo", "d12", "d20", "d24")
LONGEST_NAME = 24
END_MINUTES = 10
"""The pre-delete hook waits nine for attempts to save and slices to go."""


@dataclass(frozen=True)
class Release:
    """One release as the command line and the registry say it; the rest is in the deployment."""

    name: str
    preset: str
    tag: str
    """Of both images."""
    digest: str = ""
    """Of the jobs' image, where the registry was asked."""
    accept_stale: bool = False
    """Stages that a changed setting or SOUL makes stale may run again."""


def values(to: Deployment, release: Release) -> dict[str, Any]:
    """The chart's values that `deploy.env` decides."""
    jobs = {"repository": f"{to.registry}/jobs-{to.target}", "tag": release.tag, "digest": release.digest}
    found: dict[str, Any] = {
        "bucket": to.bucket,
        "accelerator": to.accelerator,
        "spot": to.spot,
        "provisioner": to.provisioner,
        "zones": list(to.zones),
        "acceptStale": release.accept_stale,
        "image": {**jobs, "controllerRepository": f"{to.registry}/controller"},
        "secrets": {"teacherKey": to.teacher_secret, "hfToken": to.hf_secret},
        "serviceAccounts": {
            "controller": {"googleServiceAccount": to.service_account("controller")},
            "trainer": {"googleServiceAccount": to.service_account("trainer")},
        },
    }
    if to.accelerator == "tpu":
        found["tpu"] = {"topology": to.topology, "machineType": to.machine_type}
    if to.accelerator == "nvidia":
        found["nvidia"] = {"gpus": to.gpus, "nodeSelector": {"cloud.google.com/gke-accelerator": to.gpu_type}}
    if to.provisioner in ASK_THE_TPU_API:
        account = to.service_account(slices.ACCOUNT)
        found["settings"] = {"cloud.project": to.project, "cloud.service_account": account}
        found["settings"] |= {"cloud.buckets": to.buckets} if to.buckets else {}
    if to.budget_dollars is not None:
        found["budgetDollars"] = to.budget_dollars
    if to.dollars_per_slice_hour is not None:
        where = ("pool",) if to.provisioner == "existing" else to.zones
        uses_none = to.accelerator == "none"  # then it runs on nodes that are there for other stages as well
        found["dollarsPerSliceHour"] = dict.fromkeys(where, 0.0 if uses_none else to.dollars_per_slice_hour)
    if to.soul is not None:
        found["soul"] = read_text(to.soul, "SOUL")
    return found


def read_text(path: Path, key: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {key}={path} ({cause(error)}): correct the path") from None


def chosen(to: Deployment, release: Release) -> tuple[tuple[str, ...], str]:
    """Chart and values as arguments of helm, and what it reads on its standard input."""
    files = [str(CHART / f"values-{release.preset}.yaml"), "-", *to.values]
    for file in to.values:
        if not Path(file).is_file():
            raise ConfigurationError(f"VALUES names {file}, which is not there: correct the path")
    arguments = [part for file in files for part in ("--values", file)]
    text = yaml.safe_dump(values(to, release), sort_keys=False, allow_unicode=True)
    return (release.name, str(CHART), f"--namespace={to.namespace}", *arguments), text


def checked_name(name: str) -> str:
    """A release's name; `UsageError` where pods could not be called after it."""
    if len(name) > LONGEST_NAME or not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise UsageError(
            f"NAME={name}: give lower-case letters, digits and dashes, a letter first, at most {LONGEST_NAME}"
        )
    return name


def deploy_steps(to: Deployment, release: Release) -> list[Step]:
    """What `make deploy-*` does once the checks have passed; doing it again changes nothing."""
    kubectl = ("kubectl", f"--context={to.context}")
    apply = (*kubectl, "apply", "--server-side", "--force-conflicts", "--filename")
    arguments, text = chosen(to, release)
    name = release.name
    helm = ("helm", "upgrade", "--install", *arguments, f"--kube-context={to.context}", "--skip-crds")
    rollout = (*kubectl, "rollout", "status", f"deployment/{name}-controller", f"--namespace={to.namespace}")
    return [
        # Helm installs a definition once and never changes it again.
        Step("the definition of TrainingRun, as this checkout has it", (*apply, str(CRD))),
        Step("the namespace, under the restricted Pod Security Standard", (*apply, "-"), stdin=namespace(to)),
        *[_identity(to, name, role) for role in ("controller", "trainer")],
        Step(f"release {name}", helm, stdin=text),
        Step("its controller runs", (*rollout, "--timeout=5m")),
    ]


def namespace(to: Deployment) -> str:
    level = "pod-security.kubernetes.io"
    labels = {f"{level}/enforce": "restricted", f"{level}/warn": "restricted"}
    return json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": to.namespace, "labels": labels}})


def template_command(to: Deployment, release: Release) -> tuple[tuple[str, ...], str]:
    """What prints everything that would be applied, and asks no cluster."""
    arguments, text = chosen(to, release)
    return ("helm", "template", *arguments, "--include-crds"), text


def undeploy_steps(to: Deployment, name: str) -> list[Step]:
    """The run ends saved, its slices go, then the release; nothing in the bucket is touched."""
    where = (f"--namespace={to.namespace}", f"--kube-context={to.context}", f"--timeout={END_MINUTES}m")
    return [Step(f"release {name} is gone, its slices before it", ("helm", "uninstall", name, *where))]


def wish_steps(to: Deployment, name: str, wish: str) -> list[Step]:
    """Patch what the user wants into the TrainingRun."""
    changes = {"suspend": {"suspend": True}, "resume": {"suspend": False}, "cancel": {"cancel": True}}
    words = {"suspend": "saves and stops", "resume": "goes on", "cancel": "saves and stops for good"}
    patch = json.dumps({"spec": changes[wish]})
    where = (f"--context={to.context}", f"--namespace={to.namespace}")
    argv = ("kubectl", *where, "patch", "trainingrun", name, "--type=merge", f"--patch={patch}")
    return [Step(f"run {name} {words[wish]}", argv)]


def _identity(to: Deployment, name: str, role: str) -> Step:
    """Kubernetes' service account may act as Google's."""
    account = f"nanocode-{role}@{to.project}.iam.gserviceaccount.com"
    member = f"serviceAccount:{to.project}.svc.id.goog[{to.namespace}/{name}-{role}]"
    argv: tuple[str, ...] = (
        "gcloud",
        "iam",
        "service-accounts",
        "add-iam-policy-binding",
        account,
        f"--member={member}",
    )
    argv += ("--role=roles/iam.workloadIdentityUser", f"--project={to.project}", "--quiet")
    return Step(f"the {role}'s pods act as {account}", argv)
