"""Which pool is asked for, which slice a pool is, and what each refusal of GKE's says to whoever can mend it."""

import pytest

from deploy.controller.observed import Slice, Trouble
from deploy.provisioners.gke_pools import Customs, Nodes, Pool, Shape, as_slice, version, wanted
from deploy.provisioners.gke_refusals import Refusal, Where, passes, refusal

ONE_HOST = Shape("ct6e-standard-8t", "2x4")
FOUR_HOSTS = Shape("ct6e-standard-4t", "4x4")
LABELS = {"nanocode-run": "d24-1a2b3c", "nanocode-slice": "slice-1"}
ZONE = "us-east5-b"
NODES_ACCOUNT = "nanocode-nodes@my-project.iam.gserviceaccount.com"
WHERE = Where("my-project", "us-east5", "nanocode", ZONE, "ct6e-standard-8t", 8, NODES_ACCOUNT)


def pool(status: str = "RUNNING", shape: Shape = FOUR_HOSTS) -> Pool:
    return Pool("nanocode-r-slice-1", ZONE, status, LABELS, shape)


@pytest.mark.parametrize(
    ("machine", "topology", "hosts"),
    [
        ("ct6e-standard-1t", "1x1", 1),
        ("ct6e-standard-8t", "2x4", 1),
        ("ct6e-standard-4t", "2x4", 2),
        ("ct6e-standard-4t", "4x8", 8),
    ],
)
def test_topology_and_machine_make_so_many_hosts(machine: str, topology: str, hosts: int) -> None:
    assert Shape(machine, topology).hosts == hosts


@pytest.mark.parametrize("machine", ["ct6e-standard-8t", "e2-standard-8", ""])
def test_machines_that_do_not_make_up_the_topology_are_refused_with_what_to_correct(machine: str) -> None:
    with pytest.raises(ValueError, match=r"topology 2x2 has 4 chips.*correct cloud\.machine_type"):
        _ = Shape(machine, "2x2").hosts


def test_a_pool_of_one_host_begins_empty_and_may_have_one_node_in_its_zone() -> None:
    asked = wanted("p", ZONE, ONE_HOST, LABELS, Customs("1.34.0-gke.1"))
    assert asked["initial_node_count"] == 0
    assert asked["locations"] == [ZONE]
    assert asked["autoscaling"]["enabled"]
    assert (asked["autoscaling"]["total_min_node_count"], asked["autoscaling"]["total_max_node_count"]) == (0, 1)
    assert "placement_policy" not in asked, "GKE refuses a topology on a pool of one host"
    assert asked["config"]["spot"]


def test_a_pool_of_several_hosts_is_made_whole_compact_and_is_not_autoscaled() -> None:
    asked = wanted("p", ZONE, FOUR_HOSTS, LABELS, Customs("1.34.0-gke.1"))
    assert asked["initial_node_count"] == 4
    assert asked["placement_policy"] == {"type_": "COMPACT", "tpu_topology": "4x4"}
    assert "autoscaling" not in asked


def test_a_pool_takes_over_the_clusters_identity_and_image_streaming() -> None:
    customs = Customs("1.34.0-gke.1", NODES_ACCOUNT, workload_identity=True, image_streaming=True)
    config = wanted("p", ZONE, ONE_HOST, LABELS, customs)["config"]
    assert config["service_account"] == NODES_ACCOUNT
    assert config["workload_metadata_config"] == {"mode": "GKE_METADATA"}
    assert config["gcfs_config"] == {"enabled": True}
    assert config["resource_labels"] == LABELS
    plain = wanted("p", ZONE, ONE_HOST, LABELS, Customs("1.34.0-gke.1"))["config"]
    assert "workload_metadata_config" not in plain and "gcfs_config" not in plain


@pytest.mark.parametrize(
    ("cluster", "spot", "grace"),
    [
        ("1.34.9-gke.9999999", True, None),
        ("1.35.0-gke.1170999", True, None),
        ("1.35.0-gke.1171000", True, (120, 15)),
        ("1.35.0-gke.11710000", True, (120, 15)),
        ("1.36.0-gke.1", True, (120, 15)),
        ("1.36.0-gke.1", False, None),
    ],
)
def test_spot_nodes_get_two_minutes_to_save_where_the_cluster_has_that(
    cluster: str, spot: bool, grace: tuple[int, int] | None
) -> None:
    shape = Shape("ct6e-standard-8t", "2x4", spot)
    kubelet = wanted("p", ZONE, shape, LABELS, Customs(cluster))["config"].get("kubelet_config")
    assert (tuple(kubelet.values()) if kubelet else None) == grace


def test_versions_compare_as_numbers() -> None:
    assert version("1.9.0-gke.2") < version("1.35.0-gke.1") < version("1.35.0-gke.10")


STOCKOUT = Refusal(Trouble.STOCKOUT, "none there")
EMPTY = Pool("nanocode-r-slice-1", ZONE, "RUNNING", LABELS, Shape("ct6e-standard-8t", ""))


@pytest.mark.parametrize(
    ("there", "nodes", "failure", "usable", "machines", "trouble"),
    [
        (pool("PROVISIONING"), Nodes(), None, False, False, None),
        (pool("PROVISIONING"), Nodes(4, 0), None, False, True, None),
        (pool(), Nodes(4, 3), None, False, True, None),
        (pool(), Nodes(4, 4), None, True, True, None),
        (pool(), Nodes(3, 3), None, False, False, None),
        (pool("ERROR"), Nodes(), STOCKOUT, False, False, Trouble.STOCKOUT),
        (pool("RUNNING_WITH_ERROR"), Nodes(4, 4), STOCKOUT, True, True, None),
        (pool("RECONCILING"), Nodes(4, 4), None, True, True, None),
        (pool("STOPPING"), Nodes(4, 4), None, False, True, None),
        (pool("STOPPING"), Nodes(), STOCKOUT, False, False, None),
        (EMPTY, Nodes(), None, True, False, None),
        (EMPTY, Nodes(), STOCKOUT, False, False, Trouble.STOCKOUT),
        (EMPTY, Nodes(1, 0), None, False, True, None),
        (EMPTY, Nodes(1, 1), STOCKOUT, True, True, None),
    ],
    ids=lambda one: one.status if isinstance(one, Pool) else str(one),
)
def test_a_pool_with_such_nodes_is_such_a_slice(
    there: Pool, nodes: Nodes, failure: Refusal | None, usable: bool, machines: bool, trouble: Trouble | None
) -> None:
    shown = as_slice("slice-1", there, nodes, failure)
    reason = failure.sentence if failure is not None and trouble is not None else ""
    assert shown == Slice("slice-1", ZONE, usable=usable, machines=machines, trouble=trouble, reason=reason)


ACT_AS = "The user does not have access to service account. Ask a project owner to grant you iam.serviceAccounts.actAs"
REFUSALS: dict[str, tuple[str, str, Trouble, str]] = {
    "an operation that met a stockout": (
        "GCE_STOCKOUT",
        "The zone 'projects/p/zones/us-east5-b' does not have enough resources available to fulfill the request.",
        Trouble.STOCKOUT,
        "us-east5-b has no ct6e-standard-8t to give now",
    ),
    "a stockout without a code": ("RESOURCE_EXHAUSTED", "Requested resource is exhausted.", Trouble.STOCKOUT, "zones"),
    "a stockout in other words": ("UNKNOWN", "lack of capacity", Trouble.STOCKOUT, "controller.zones"),
    "the autoscaler met a stockout": (
        "FailedScaleUp",
        "Node scale up in zones us-east5-b associated with this pod failed: GCE out of resources. Pod is at risk.",
        Trouble.STOCKOUT,
        "other zones are tried",
    ),
    "the autoscaler met a quota": (
        "FailedScaleUp",
        "Node scale up in zones us-east5-b associated with this pod failed: GCE quota exceeded. Pod is at risk.",
        Trouble.QUOTA,
        "`gcloud beta quotas info list --service=compute.googleapis.com --project=my-project`",
    ),
    "a quota that is refused as if it were a permission": (
        "PERMISSION_DENIED",
        'Insufficient regional quota to satisfy request: resource "TPUS_PER_TPU_FAMILY"',
        Trouble.QUOTA,
        "no quota for 8 more chips in us-east5",
    ),
    "a quota in an instance group's words": (
        "UNKNOWN",
        "[GCE_QUOTA_EXCEEDED]: Instance creation failed: Quota 'TPUS_PER_TPU_FAMILY' exceeded.",
        Trouble.QUOTA,
        "provisioner queued-resource",
    ),
    "no addresses": (
        "UNKNOWN",
        "[IP_SPACE_EXHAUSTED]: Instance creation failed: IP space of 'projects/p/.../default' is exhausted.",
        Trouble.QUOTA,
        "`gcloud container clusters update nanocode --location=us-east5 --project=my-project "
        "--additional-pod-ipv4-ranges=RANGE`",
    ),
    "no permission": (
        "PERMISSION_DENIED",
        'Required "container.clusters.update" permission(s) for "projects/my-project".',
        Trouble.PERMISSION,
        "`gcloud projects add-iam-policy-binding my-project --member=serviceAccount:CONTROLLER "
        "--role=roles/container.clusterAdmin`",
    ),
    "no permission to act as the nodes": (
        "PERMISSION_DENIED",
        ACT_AS,
        Trouble.PERMISSION,
        f"`gcloud iam service-accounts add-iam-policy-binding {NODES_ACCOUNT}",
    ),
    "nodes that may do nothing": (
        "NODE_SERVICE_ACCOUNT_MISSING_PERMISSIONS",
        "the account lacks a role",
        Trouble.PERMISSION,
        f"--member=serviceAccount:{NODES_ACCOUNT} --role=roles/container.defaultNodeServiceAccount`",
    ),
    "the API is off": (
        "PERMISSION_DENIED",
        "SERVICE_DISABLED: Kubernetes Engine API has not been used in project my-project before or it is disabled.",
        Trouble.PERMISSION,
        "`gcloud services enable container.googleapis.com --project=my-project`",
    ),
    "the wrong project, or cluster": (
        "NOT_FOUND",
        "Not found: projects/my-project/locations/us-east5/clusters/nanocode.",
        Trouble.PERMISSION,
        "`gcloud container clusters list --project=my-project` shows them",
    ),
    "a zone without v6e": (
        "INVALID_ARGUMENT",
        "Machine type ct6e-standard-8t does not exist in zone us-east5-b.",
        Trouble.PERMISSION,
        "`gcloud compute machine-types list --filter=name=ct6e-standard-8t --project=my-project`",
    ),
    "a zone of another region": (
        "INVALID_ARGUMENT",
        'Location "us-east1-d" is not within cluster region "us-east5".',
        Trouble.PERMISSION,
        "take it out of controller.zones",
    ),
    "no credentials": (
        "UNAUTHENTICATED",
        "Your default credentials were not found.",
        Trouble.PERMISSION,
        "`gcloud auth application-default login`",
    ),
    "something that nobody has seen": ("UNKNOWN", "the moon is full", Trouble.OTHER, "the moon is full"),
}


@pytest.mark.parametrize(("code", "message", "trouble", "part"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_told_apart_and_names_what_mends_it(code: str, message: str, trouble: Trouble, part: str) -> None:
    found = refusal(code, message, WHERE)
    assert found.trouble is trouble
    assert part in found.sentence
    assert "\n" not in found.sentence and len(found.sentence) < 700


@pytest.mark.parametrize(
    ("code", "message", "again"),
    [
        ("UNAVAILABLE", "", True),
        ("DEADLINE_EXCEEDED", "", True),
        ("FAILED_PRECONDITION", "Cluster is running incompatible operation operation-1.", True),
        ("FAILED_PRECONDITION", "Operation o is currently creating cluster c. Please wait and try again.", True),
        ("RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED: Quota exceeded for quota metric 'Read requests'", True),
        ("RESOURCE_EXHAUSTED", "Requested resource is exhausted", False),
        ("PERMISSION_DENIED", "", False),
        ("INVALID_ARGUMENT", "a v6e is currently unavailable there", False),
    ],
)
def test_what_passes_by_itself_is_no_refusal(code: str, message: str, again: bool) -> None:
    assert passes(code, message) is again
