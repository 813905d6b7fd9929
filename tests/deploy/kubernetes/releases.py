"""What the chart installs, as far as the controller sees it: a TrainingRun, and a ConfigMap with a template per stage."""

from typing import Any

import yaml

from nanocode.run.graph import STAGES, order
from tests.deploy.kubernetes.api_server import ApiServer

Object = dict[str, Any]
RUN = "r"
IMAGE = "registry:5000/nanocode:1"
TEMPLATES = "r-templates-0badcafe"
DIGEST = "sha256:" + "a" * 64


def template(stage: str, hosts: int = 1) -> str:
    """Job and Service of a stage, shorter than the chart's."""
    labels = {"nanocode.dev/run": RUN, "nanocode.dev/stage": stage}
    selector = {"pool": "tpu"} if STAGES[stage].machine == "accelerator" else {}
    container = {"name": "stage", "image": IMAGE, "args": ["python"], "env": [{"name": "HOME", "value": "/tmp"}]}
    spec: Object = {"completionMode": "Indexed", "completions": hosts, "parallelism": hosts, "backoffLimit": 0}
    if STAGES[stage].split:
        spec = {**spec, "backoffLimitPerIndex": 2}
    pod = {"restartPolicy": "Never", "subdomain": f"{RUN}-{stage}", "nodeSelector": selector, "containers": [container]}
    spec["template"] = {"metadata": {"labels": dict(labels)}, "spec": pod}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{RUN}-{stage}", "labels": labels},
        "spec": spec,
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{RUN}-{stage}", "labels": dict(labels)},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": dict(labels)},
    }
    return yaml.safe_dump_all([job, service])


def training_run(directory: str, **spec: Any) -> Object:
    settings = {"corpus.sources": [{"location": "gs://elsewhere/text"}], **spec.pop("settings", {})}
    spec = {
        "preset": "demo",
        "runDirectory": directory,
        "image": IMAGE,
        "templates": TEMPLATES,
        "accelerator": "none",
        **spec,
    }
    return {
        "apiVersion": "nanocode.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": RUN, "namespace": "ns", "generation": 1, "uid": "the-run"},
        "spec": {**spec, "settings": settings},
    }


def install(server: ApiServer, directory: str, hosts: int = 1, **spec: Any) -> Object:
    put_templates(server, TEMPLATES, hosts)
    return server.put("trainingruns", training_run(directory, **spec))


def put_templates(server: ApiServer, name: str, hosts: int = 1) -> Object:
    data = {
        f"{stage}.yaml": template(stage, hosts if STAGES[stage].machine == "accelerator" else 1) for stage in order()
    }
    container = {
        "name": "bridge",
        "image": "registry:5000/controller:1",
        "args": ["python", "-m", "deploy.kubernetes.bridge"],
    }
    pod = {"restartPolicy": "OnFailure", "containers": [container]}
    mirror = {"apiVersion": "batch/v1", "kind": "Job", "spec": {"backoffLimit": 100, "template": {"spec": pod}}}
    data["bridge.yaml"] = yaml.safe_dump(mirror)
    return server.put("configmaps", {"metadata": {"name": name}, "data": data})
