"""Small objects for the harness's own tests."""

from typing import Any

from tests.cluster.access import Json

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def container(script: str, **more: Any) -> Json:
    """A shell script in the image of host tools."""
    return {"name": "main", "image": "tools:1", "args": [script], "securityContext": RESTRICTED} | more


def pod_spec(*containers: Json, **more: Any) -> Json:
    """Admitted by the restricted standard."""
    context = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    return {"containers": list(containers), "securityContext": context, "restartPolicy": "Never"} | more


def pod(namespace: str, name: str, spec: Json) -> Json:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def indexed_job(namespace: str, name: str, spec: Json, hosts: int = 1, **more: Any) -> Json:
    """A gang: one pod a host, none is started again."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "completionMode": "Indexed",
            "completions": hosts,
            "parallelism": hosts,
            "backoffLimit": 0,
            "template": {"metadata": {"labels": {"gang": name}}, "spec": spec},
        }
        | more,
    }


def headless_service(namespace: str, name: str, gang: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"gang": gang}},
    }


def on(node: str, spot: bool = True) -> Json:
    """A pod's fields that put it on one simulated accelerator node."""
    tolerations = [{"key": "cloud.google.com/gke-spot", "operator": "Exists"}] if spot else []
    return {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "tolerations": [*tolerations, {"key": "google.com/tpu", "operator": "Exists"}],
    }
