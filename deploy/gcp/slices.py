"""What provisioner `queued-resource` needs: who asks for slices, and who their VMs are; two roles, as small as may be.

A VM of a slice is the service account `nanocode-slices`: it reads the image, reads and writes the bucket, and deletes
queued resources, because a slice whose controller is gone deletes itself. Secrets are granted one by one, by hand:
`gcloud secrets add-iam-policy-binding SECRET --member=serviceAccount:nanocode-slices@... --role=
roles/secretmanager.secretAccessor`.
"""

from typing import Literal

from deploy.gcp.deployment import ASK_THE_TPU_API, Deployment
from deploy.gcp.steps import Step

MAKER, ITSELF = "nanocodeSlices", "nanocodeSliceItself"
PERMISSIONS = {
    MAKER: (
        "tpu.nodes.create",
        "tpu.nodes.delete",
        "tpu.nodes.get",
        "tpu.nodes.list",
        "tpu.operations.get",
        "tpu.operations.list",
        "tpu.queuedResources.create",
        "tpu.queuedResources.delete",
        "tpu.queuedResources.get",
        "tpu.queuedResources.list",
    ),
    ITSELF: ("tpu.nodes.delete", "tpu.queuedResources.delete", "tpu.queuedResources.get"),
}
ACCOUNT: Literal["slices"] = "slices"


def steps(to: Deployment) -> list[Step]:
    """All of it; nothing where slices come from elsewhere."""
    if to.provisioner not in ASK_THE_TPU_API:
        return []
    here = f"--project={to.project}"
    accounts = ("gcloud", "iam", "service-accounts")
    account = to.service_account(ACCOUNT)
    create = (*accounts, "create", f"nanocode-{ACCOUNT}", here)
    grant, user = ("gcloud", "storage", "buckets", "add-iam-policy-binding"), "--role=roles/storage.objectUser"
    buckets = (to.bucket, *to.buckets.values())
    where = (to.repository, f"--location={to.region}", here)
    images = ("gcloud", "artifacts", "repositories", "add-iam-policy-binding", *where, _member(to, ACCOUNT))
    act = (*accounts, "add-iam-policy-binding", account, here, _member(to, "controller"))
    asker = (
        *_role(to, MAKER, "controller", "the controller asks for slices"),
        Step("whose VMs run as slices do", (*act, "--role=roles/iam.serviceAccountUser")),
    )
    return [
        *_networks(to),
        Step("the service account of slices", create, unless=(*accounts, "describe", account, here)),
        *(
            Step(f"slices read and write objects of {bucket}", (*grant, bucket, _member(to, ACCOUNT), user))
            for bucket in buckets
        ),
        Step("images are there for slices to read", (*images, "--role=roles/artifactregistry.reader")),
        *_role(to, ITSELF, ACCOUNT, "a slice deletes itself"),
        *(asker if to.has_cluster else ()),  # without one, whoever runs `nanocode run` asks
    ]


def _networks(to: Deployment) -> list[Step]:
    """VMs of slices have no external addresses (`cloud.external_ips`): without this they reach no bucket and no image.

    cloud.google.com/vpc/docs/private-google-access; it is off where nobody has turned it on.
    """
    update = ("gcloud", "compute", "networks", "subnets", "update", "default", "--enable-private-ip-google-access")
    return [
        Step(
            f"VMs without an external address reach Google's services from {region}",
            (*update, f"--region={region}", f"--project={to.project}", "--quiet"),
        )
        for region in to.regions
    ]


def _role(to: Deployment, role: str, who: Literal["controller", "slices"], what: str) -> list[Step]:
    here = f"--project={to.project}"
    roles = ("gcloud", "iam", "roles")
    permissions = f"--permissions={','.join(PERMISSIONS[role])}"
    create = (*roles, "create", role, permissions, "--stage=GA", here)
    bind = ("gcloud", "projects", "add-iam-policy-binding", to.project, "--condition=None", _member(to, who))
    return [
        Step(f"a role: {what}", create, unless=(*roles, "describe", role, here)),
        Step(what, (*bind, f"--role=projects/{to.project}/roles/{role}")),
    ]


def _member(to: Deployment, who: Literal["controller", "slices"]) -> str:
    return f"--member=serviceAccount:{to.service_account(who)}"
