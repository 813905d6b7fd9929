"""`make gcp-setup`: what a project needs before the first run. Every step looks first, and none deletes anything."""

from deploy.gcp import slices
from deploy.gcp.deployment import Deployment
from deploy.gcp.steps import Step

APIS = (
    "artifactregistry",
    "cloudbuild",
    "compute",
    "container",
    "containerfilesystem",  # image streaming
    "iam",
    "iamcredentials",  # Workload Identity
    "secretmanager",  # where TPU VMs read secrets
    "serviceusage",  # quotas, for provisioner auto
    "storage",
    "tpu",
)
ORDINARY_MACHINE = "e2-standard-8"
MOST_ORDINARY_NODES = 8
"""16 workers of the corpus stage, two a node."""
POOL_ROLE = "nanocodeNodePools"
POOL_PERMISSIONS = (
    "container.clusters.get",
    "container.clusters.update",  # of node pools too: they have no permissions of their own
    "container.operations.get",
    "container.operations.list",
)
SLICES = 1
"""Slices that the autoscaler may hold at once."""


def steps(to: Deployment) -> list[Step]:
    """All of it, in order."""
    needed = [*_project(to), *_buckets(to), *_registry(to)]
    if not to.has_cluster:
        return [*needed, *slices.steps(to)]
    return [*needed, *_accounts(to), *slices.steps(to), *_cluster(to)]


def _project(to: Deployment) -> list[Step]:
    names = [f"{name}.googleapis.com" for name in APIS]
    return [Step("the APIs are on", ("gcloud", "services", "enable", *names, *_in(to)))]


def _buckets(to: Deployment) -> list[Step]:
    found = []
    for region, bucket in to.all_buckets.items():
        create: tuple[str, ...] = ("gcloud", "storage", "buckets", "create", bucket, f"--location={region}")
        # Soft delete keeps deleted checkpoints for seven days, and bills them: d24's have 11.3 GB.
        create += ("--uniform-bucket-level-access", "--public-access-prevention", "--soft-delete-duration=0s")
        there = ("gcloud", "storage", "buckets", "describe", bucket, *_in(to))
        found.append(Step(f"the bucket in {region}", (*create, *_in(to)), unless=there))
    return found


def _registry(to: Deployment) -> list[Step]:
    base = ("gcloud", "artifacts", "repositories")
    where = (to.repository, f"--location={to.region}", *_in(to))
    create = (*base, "create", *where, "--repository-format=docker")
    return [
        Step("the registry of the images", create, unless=(*base, "describe", *where)),
        Step(
            "docker, podman and buildah push there as gcloud's user",
            ("gcloud", "auth", "configure-docker", to.registry_host, "--quiet"),
        ),
    ]


def _accounts(to: Deployment) -> list[Step]:
    found = []
    for role in ("controller", "trainer", "nodes"):
        account = to.service_account(role)
        create = ("gcloud", "iam", "service-accounts", "create", f"nanocode-{role}", *_in(to))
        there = ("gcloud", "iam", "service-accounts", "describe", account, *_in(to))
        found.append(Step(f"the service account of {role}", create, unless=there))
    for role in ("controller", "trainer"):
        write = ("gcloud", "storage", "buckets", "add-iam-policy-binding", to.bucket)
        argv = (*write, *_member(to, role, "storage.objectUser"))
        found.append(Step(f"{role} reads and writes objects of the bucket", argv))
    for bucket in to.buckets.values():
        weigh = ("gcloud", "storage", "buckets", "add-iam-policy-binding", bucket)
        argv = (*weigh, *_member(to, "controller", "storage.objectViewer"))
        found.append(Step(f"the controller sees how much is in {bucket}", argv))
    for role in ("controller", "nodes"):
        where = (to.repository, f"--location={to.region}", *_in(to))
        read = ("gcloud", "artifacts", "repositories", "add-iam-policy-binding", *where)
        found.append(
            Step(f"images are there for {role} to read", (*read, *_member(to, role, "artifactregistry.reader")))
        )
    report = ("gcloud", "projects", "add-iam-policy-binding", to.project, "--condition=None")
    nodes = (*report, *_member(to, "nodes", "container.defaultNodeServiceAccount"))
    found.append(Step("nodes write logs and metrics", nodes))
    if to.provisioner in ("gke", "auto"):
        found += _pool_maker(to)
    if to.provisioner == "auto":
        look = (*report, *_member(to, "controller", "servicemanagement.quotaViewer"))
        found.append(Step("the controller sees which API has quota", look))
    return found


def _pool_maker(to: Deployment) -> list[Step]:
    """The controller makes node pools, and no more than that."""
    roles = ("gcloud", "iam", "roles")
    create = (*roles, "create", POOL_ROLE, f"--permissions={','.join(POOL_PERMISSIONS)}", "--stage=GA", *_in(to))
    role = f"--role=projects/{to.project}/roles/{POOL_ROLE}"
    member = f"--member=serviceAccount:{to.service_account('controller')}"
    bind = ("gcloud", "projects", "add-iam-policy-binding", to.project, "--condition=None", member, role)
    act = ("gcloud", "iam", "service-accounts", "add-iam-policy-binding", to.service_account("nodes"), *_in(to))
    return [
        Step("a role for making node pools", create, unless=(*roles, "describe", POOL_ROLE, *_in(to))),
        Step("the controller makes node pools", bind),
        Step("whose nodes run as nodes do", (*act, *_member(to, "controller", "iam.serviceAccountUser"))),
    ]


def _cluster(to: Deployment) -> list[Step]:
    cluster = ("gcloud", "container", "clusters")
    where = (to.cluster, f"--location={to.location}", *_in(to))
    create: tuple[str, ...] = (
        *cluster,
        "create",
        *where,
        "--release-channel=regular",
        f"--workload-pool={to.project}.svc.id.goog",
    )
    create += ("--enable-image-streaming", "--machine-type=e2-standard-4", "--num-nodes=1", *_node_identity(to))
    found = [
        Step("the cluster", create, unless=(*cluster, "describe", *where)),
        _pool(to, "workers", "nodes for the CPU stages, none while there is nothing to do", _ordinary()),
    ]
    if to.accelerator != "none" and to.provisioner == "existing":
        what = "nodes for the training stages, none while there is nothing to do"
        found.append(_pool(to, to.node_pool, what, _accelerated(to)))
    if to.kube_context is None:
        found.append(Step("kubectl knows the cluster", (*cluster, "get-credentials", *where)))
    return found


def _pool(to: Deployment, name: str, what: str, machines: tuple[str, ...]) -> Step:
    pools = ("gcloud", "container", "node-pools")
    where = (name, f"--cluster={to.cluster}", f"--location={to.location}", *_in(to))
    create = (*pools, "create", *where, "--num-nodes=0", "--enable-autoscaling", *machines, *_node_identity(to))
    return Step(what, create, unless=(*pools, "describe", *where))


def _ordinary() -> tuple[str, ...]:
    return (f"--machine-type={ORDINARY_MACHINE}", "--total-min-nodes=0", f"--total-max-nodes={MOST_ORDINARY_NODES}")


def _accelerated(to: Deployment) -> tuple[str, ...]:
    spot = ("--spot",) if to.spot else ()
    if to.accelerator == "nvidia":
        gpus = f"--accelerator=type={to.gpu_type},count={to.gpus},gpu-driver-version=latest"
        zones = f"--node-locations={','.join(to.zones)}"
        size = ("--total-min-nodes=0", f"--total-max-nodes={SLICES}", "--location-policy=ANY")
        return (f"--machine-type={to.machine_type}", gpus, zones, *size, *spot)
    chips, each = to.chips
    if chips == each:
        size = ("--total-min-nodes=0", f"--total-max-nodes={SLICES}", "--location-policy=ANY")
        return (f"--machine-type={to.machine_type}", f"--node-locations={','.join(to.zones)}", *size, *spot)
    # A slice of several hosts is one pool in one zone, and comes and goes as a whole.
    hosts = chips // each
    size = (f"--tpu-topology={to.topology}", "--min-nodes=0", f"--max-nodes={hosts}")
    return (f"--machine-type={to.machine_type}", f"--node-locations={to.zones[0]}", *size, *spot)


def _node_identity(to: Deployment) -> tuple[str, ...]:
    """Pods reach Google's metadata server only as their own service account."""
    account = f"--service-account={to.service_account('nodes')}"
    return (account, "--workload-metadata=GKE_METADATA", "--scopes=cloud-platform")


def _member(to: Deployment, role: str, grant: str) -> tuple[str, ...]:
    account = f"nanocode-{role}@{to.project}.iam.gserviceaccount.com"
    return (f"--member=serviceAccount:{account}", f"--role=roles/{grant}")


def _in(to: Deployment) -> tuple[str, ...]:
    return (f"--project={to.project}", "--quiet")
