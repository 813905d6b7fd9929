"""What GKE's admission webhook puts into the containers that ask for TPU chips.

cloud.google.com/kubernetes-engine/docs/how-to/tpus, "TPU_WORKER_ID and TPU_WORKER_HOSTNAMES" (quoted in the README of
pkg.go.dev/github.com/abatilo/gke-tpu-env-injector): a mutating webhook injects them "when a Job is created with the
completionMode: Indexed, subdomain, parallelism > 1, and requesting google.com/tpu". Others see a slice of one host.
"""

from tests.cluster.access import Api, Json


def tpu_environment(pod: Json, container: Json, api: Api) -> dict[str, str]:
    """TPU_WORKER_ID and TPU_WORKER_HOSTNAMES; empty for a container that asks for no chips."""
    if "google.com/tpu" not in ((container.get("resources") or {}).get("limits") or {}):
        return {}
    job, subdomain = _job(pod, api), pod["spec"].get("subdomain")
    if job is None or job["spec"].get("completionMode") != "Indexed" or not subdomain:
        return {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}
    workers = int(job["spec"].get("parallelism") or 1)
    if workers == 1:
        return {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}
    name = job["metadata"]["name"]
    return {
        "TPU_WORKER_ID": pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"],
        "TPU_WORKER_HOSTNAMES": ",".join(f"{name}-{index}.{subdomain}" for index in range(workers)),
    }


def _job(pod: Json, api: Api) -> Json | None:
    for owner in pod["metadata"].get("ownerReferences") or ():
        if owner["kind"] == "Job":
            return api.get(f"/apis/batch/v1/namespaces/{pod['metadata']['namespace']}/jobs/{owner['name']}")
    return None
