"""Slices from node pools, over the real client and a fake GKE on loopback."""

import time
from collections.abc import Iterator

import pytest
from google.auth.exceptions import DefaultCredentialsError
from google.cloud import container_v1 as v1

from deploy.controller.backend import Unreachable
from deploy.controller.observed import Slice, Trouble
from deploy.provisioners.gke import NodePools
from deploy.provisioners.gke_client import Container
from deploy.provisioners.gke_inventory import NodePoolInventory
from deploy.provisioners.gke_kept import KEPT
from deploy.provisioners.gke_refusals import Where
from deploy.provisioners.labels import EXPIRES, SLICE, name_of, owned
from deploy.provisioners.labels import RUN as RUN_LABEL
from tests.clouds.world import Code
from tests.deploy.provisioners.gke_lab import FOUR_HOSTS, RUN, A, B, C, Lab

POOL = name_of(RUN, "slice-1")
DENIED = (
    'Required "container.clusters.update" permission(s) for "projects/my-project/locations/us-east5/clusters/nanocode".'
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as one:
        yield one


@pytest.fixture
def four() -> Iterator[Lab]:
    """Slices of four hosts."""
    with Lab() as one:
        one.shape(**FOUR_HOSTS)
        yield one


# -- the life of a slice -----------------------------------------------------------------------------------------------


def test_a_slice_of_one_host_can_be_begun_on_when_its_pool_is_there_and_costs_when_its_node_is(lab: Lab) -> None:
    lab.pools.request("slice-1", A)
    assert lab.after(5) == {"slice-1": Slice("slice-1", A, machines=False)}
    assert lab.after(60) == {"slice-1": Slice("slice-1", A, usable=True, machines=False)}
    assert lab.world.ledger == [], "an empty pool costs nothing"
    lab.gke.wait_for(POOL)
    assert lab.after(15) == {"slice-1": Slice("slice-1", A, machines=True, since=lab.now() - 5)}
    assert lab.after(90) == {"slice-1": Slice("slice-1", A, usable=True, machines=True, since=lab.now() - 95)}
    lab.gke.leave(POOL)
    lab.pools.release("slice-1")
    assert not lab.after(5)["slice-1"].usable
    assert lab.after(60) == {}
    assert lab.names == [] and not lab.world.held() and not lab.world.reserved


def test_a_slice_of_several_hosts_is_of_use_once_all_of_them_are_ready(four: Lab) -> None:
    four.pools.request("slice-1", B)
    assert four.after(5) == {"slice-1": Slice("slice-1", B, machines=False)}
    assert four.after(60) == {"slice-1": Slice("slice-1", B, machines=True, since=four.now() - 5)}
    assert four.after(90) == {"slice-1": Slice("slice-1", B, usable=True, machines=True, since=four.now() - 95)}
    shown = four.gke.pools[POOL].shown
    assert shown.placement_policy.type_ == v1.NodePool.PlacementPolicy.Type.COMPACT
    assert (shown.placement_policy.tpu_topology, shown.initial_node_count) == ("4x4", 4)
    assert not shown.autoscaling.enabled
    four.pools.release("slice-1")
    assert four.after(70) == {}


def test_what_is_made_is_spot_labelled_and_has_two_minutes_to_save(lab: Lab) -> None:
    lab.pools.request("slice-1", A)
    config = lab.gke.pools[POOL].shown.config
    one = owned(config.resource_labels)
    assert one is not None
    assert (one.run, one.slice, one.owner, one.expires) == (RUN, "slice-1", "ada", lab.now() + 24 * 3600)
    assert config.spot and config.machine_type == "ct6e-standard-8t"
    assert config.service_account == lab.gke.account, "as the cluster's own pools"
    assert config.kubelet_config.shutdown_grace_period_seconds == 120
    assert config.kubelet_config.shutdown_grace_period_critical_pods_seconds == 15
    assert config.workload_metadata_config.mode == v1.WorkloadMetadataConfig.Mode.GKE_METADATA
    assert lab.gke.pools[POOL].shown.autoscaling.total_max_node_count == 1


def test_the_label_that_lets_anybody_delete_it_moves_on_while_somebody_looks(lab: Lab) -> None:
    lab.pools.request("slice-1", A)
    lab.after(70)
    first = owned(lab.gke.pools[POOL].shown.config.resource_labels)
    lab.after(13 * 3600)
    moved = owned(lab.gke.pools[POOL].shown.config.resource_labels)
    assert first is not None and moved is not None
    assert moved.expires == first.expires + 13 * 3600 + 70
    assert moved.slice == "slice-1"


def test_pools_of_other_runs_and_of_other_people_are_left_alone(lab: Lab) -> None:
    other = lab.another("gs://elsewhere/d24")
    other.request("slice-1", A)
    lab.pools.request("slice-1", A)
    lab.after(70)
    lab.pools.release("slice-1")
    lab.after(70)
    assert lab.names == [name_of(other._run, "slice-1")]
    assert lab.pools.observe() == {} and list(other.observe()) == ["slice-1"]


# -- lost replies and crashes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE, Code.INTERNAL])
def test_a_create_whose_reply_is_lost_makes_one_pool(lab: Lab, code: Code) -> None:
    lab.world.fail("CreateNodePool", code, took_effect=True)
    with pytest.raises(Unreachable, match=code.name):
        lab.pools.request("slice-1", A)
    lab.pools.request("slice-1", A)
    assert list(lab.after(70)) == ["slice-1"]
    assert lab.names == [POOL] and lab.calls("CreateNodePool") == 1


def test_a_create_that_did_not_take_effect_is_made_again(lab: Lab) -> None:
    lab.world.fail("CreateNodePool", Code.DEADLINE_EXCEEDED)
    with pytest.raises(Unreachable):
        lab.pools.request("slice-1", A)
    assert lab.pools.observe() == {}
    lab.pools.request("slice-1", A)
    assert lab.names == [POOL]


def test_a_pool_that_is_there_already_is_ours_by_its_labels_or_is_nobodys_to_take(lab: Lab) -> None:
    lab.pools.request("slice-1", A)
    lab.gke.operations.clear()
    again = lab.another()
    again.request("slice-1", A)
    assert again.observe()["slice-1"].trouble is None, "ALREADY_EXISTS: a controller before us made it"
    lab.gke.pools[POOL].shown.config.resource_labels = {"team": "research"}
    third = lab.another()
    third.request("slice-1", A)
    shown = third.observe()["slice-1"]
    assert shown.trouble is Trouble.PERMISSION and "is not this run's: delete it" in shown.reason
    third.release("slice-1")
    assert third.observe() == {} and lab.names == [POOL]


def test_a_controller_that_ended_between_create_and_look_is_followed_by_one_that_goes_on(four: Lab) -> None:
    four.pools.request("slice-1", A)
    hidden = four.gke.pools.pop(POOL)  # GKE shows it only later
    four.pools = four.another()
    assert four.after(5) == {}
    four.pools.request("slice-1", A)
    assert four.calls("CreateNodePool") == 1, "its operation was found"
    assert four.after(5) == {"slice-1": Slice("slice-1", A, machines=False)}
    four.gke.pools[POOL] = hidden
    assert four.after(150)["slice-1"].usable


def test_a_failed_creation_that_a_controller_before_us_began_is_read_from_its_operation(four: Lab) -> None:
    four.pools.request("slice-1", C)
    four.pools = four.another()
    four.gke.pools[POOL].shown.conditions = []
    shown = four.after(70)["slice-1"]
    assert shown.trouble is Trouble.STOCKOUT and "us-east5-c has no ct6e-standard-4t" in shown.reason


def test_a_delete_whose_reply_is_lost_is_asked_for_until_the_pool_is_gone(lab: Lab) -> None:
    lab.pools.request("slice-1", A)
    lab.after(70)
    lab.world.fail("DeleteNodePool", Code.DEADLINE_EXCEEDED, took_effect=True)
    with pytest.raises(Unreachable):
        lab.pools.release("slice-1")
    lab.pools = lab.another()
    lab.after(5)
    lab.pools.release("slice-1")
    assert lab.calls("DeleteNodePool") == 1, "it is STOPPING: that is seen"
    assert lab.after(70) == {}
    lab.pools.release("slice-1")
    assert lab.names == []


def test_a_pool_that_somebody_else_has_deleted_meanwhile_is_given_back(lab: Lab) -> None:
    lab.pools.request("slice-1", A)
    lab.after(70)
    del lab.gke.pools[POOL]
    lab.pools.release("slice-1")
    assert lab.calls("DeleteNodePool") == 1 and lab.pools.observe() == {}


def test_a_pool_that_is_still_being_made_is_deleted_once_gke_lets_us(lab: Lab) -> None:
    lab.pools.request("slice-1", A)
    with pytest.raises(Unreachable, match="incompatible operation"):
        lab.pools.release("slice-1")
    lab.after(70)
    lab.pools.release("slice-1")
    assert lab.after(70) == {} and lab.names == []


@pytest.mark.parametrize("method", ["ListNodePools", "GetOperation", "ListOperations"])
def test_a_look_that_is_not_answered_says_nothing(four: Lab, method: str) -> None:
    four.pools.request("slice-1", A)
    if method == "ListOperations":
        four.pools = four.another()
    four.world.fail(method, Code.UNAVAILABLE)
    with pytest.raises(Unreachable, match="UNAVAILABLE"):
        four.after(5)
    assert list(four.after(5)) == ["slice-1"]


def test_a_silent_service_does_not_hold_a_round_up(lab: Lab) -> None:
    lab.pools = lab.another(seconds=(0.3, 0.3))
    lab.world.delay("ListNodePools", 3.0)
    began = time.monotonic()
    with pytest.raises(Unreachable, match="DEADLINE_EXCEEDED"):
        lab.pools.observe()
    assert time.monotonic() - began < 2.0


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_stockout_of_several_hosts_is_told_and_leaves_nothing_behind(four: Lab) -> None:
    four.pools.request("slice-1", C)
    shown = four.after(70)["slice-1"]
    assert (shown.trouble, shown.usable, shown.machines) == (Trouble.STOCKOUT, False, False)
    assert "us-east5-c has no ct6e-standard-4t to give now" in shown.reason
    four.pools.release("slice-1")
    assert four.after(70) == {} and four.names == []


def test_a_stockout_of_one_host_is_what_the_autoscaler_says_of_its_pool(lab: Lab) -> None:
    lab.pools.request("slice-1", C)
    lab.pools.request("slice-2", A)
    lab.after(70)
    for name in ("slice-1", "slice-2"):
        lab.gke.wait_for(name_of(RUN, name))
    found = lab.after(15)
    assert found["slice-1"].trouble is Trouble.STOCKOUT and "GCE out of resources" in found["slice-1"].reason
    assert found["slice-2"].trouble is None and found["slice-2"].machines


def test_a_quota_is_told_apart_from_a_stockout(four: Lab) -> None:
    four.world.zones[A].quota = 8
    four.pools.request("slice-1", A)
    shown = four.after(5)["slice-1"]
    assert shown.trouble is Trouble.QUOTA
    assert "no quota for 16 more chips in us-east5" in shown.reason
    assert "`gcloud beta quotas info list --service=compute.googleapis.com --project=my-project`" in shown.reason
    four.pools.request("slice-1", A)
    assert four.calls("CreateNodePool") == 1, "until it is given back it is not asked for again"
    four.pools.release("slice-1")
    assert four.after(5) == {}


def test_a_quota_that_another_slice_has_used_up_is_what_the_autoscaler_says(lab: Lab) -> None:
    lab.world.zones[A].quota = 8
    for number in (1, 2):
        lab.pools.request(f"slice-{number}", A)
    lab.after(70)
    for number in (1, 2):
        lab.gke.wait_for(name_of(RUN, f"slice-{number}"))
    found = lab.after(15)
    assert (found["slice-1"].trouble, found["slice-2"].trouble) == (None, Trouble.QUOTA)


def test_a_lack_of_addresses_names_the_command_that_gives_more(four: Lab) -> None:
    four.gke.addresses_left = False
    four.pools.request("slice-1", A)
    shown = four.after(70)["slice-1"]
    assert shown.trouble is Trouble.QUOTA
    assert "no addresses left" in shown.reason and "--additional-pod-ipv4-ranges=" in shown.reason


def test_a_lack_of_permission_names_the_command_that_grants_it(lab: Lab) -> None:
    lab.world.fail("CreateNodePool", Code.PERMISSION_DENIED, DENIED)
    lab.pools.request("slice-1", A)
    shown = lab.pools.observe()["slice-1"]
    assert shown.trouble is Trouble.PERMISSION
    assert "`gcloud projects add-iam-policy-binding my-project " in shown.reason
    assert "--role=roles/container.clusterAdmin`" in shown.reason


def test_who_may_not_even_look_is_told_so_in_one_sentence(lab: Lab) -> None:
    lab.world.fail("ListNodePools", Code.PERMISSION_DENIED, DENIED.replace("update", "list"))
    with pytest.raises(Unreachable, match=r"gcloud projects add-iam-policy-binding my-project"):
        lab.pools.observe()


def test_without_credentials_the_command_that_makes_them_is_named(lab: Lab) -> None:
    def connect() -> object:
        raise DefaultCredentialsError("Your default credentials were not found.")

    pools = NodePools(Container(lab.gke.where, connect), RUN, "ada", lab.gke.view)
    with pytest.raises(Unreachable, match=r"`gcloud auth application-default login`"):
        pools.observe()


def test_a_disabled_api_names_the_command_that_puts_it_on(lab: Lab) -> None:
    lab.gke.enabled = False
    with pytest.raises(Unreachable, match=r"`gcloud services enable container.googleapis.com --project=my-project`"):
        lab.pools.observe()


def test_a_wrong_project_names_the_command_that_shows_yours(lab: Lab) -> None:
    wrong = Container(Where("somebody-elses", "us-east5", "nanocode"), lab.gke.client)
    with pytest.raises(
        Unreachable, match=r"project somebody-elses is not there, or not yours .*`gcloud projects list`"
    ):
        NodePools(wrong, RUN, "ada", lab.gke.view).observe()


def test_a_quota_of_nothing_is_told_when_a_pool_is_asked_for(four: Lab) -> None:
    four.world.zones[A].quota = 0
    four.pools.request("slice-1", A)
    shown = four.pools.observe()["slice-1"]
    assert shown.trouble is Trouble.QUOTA and "`gcloud beta quotas preferences create`" in shown.reason


def test_a_wrong_cluster_names_the_command_that_shows_the_right_one(lab: Lab) -> None:
    lab.gke.where, right = lab.gke.where.__class__("my-project", "us-east5", "another"), lab.gke.where
    wrong = lab.another()
    lab.gke.where = right
    with pytest.raises(Unreachable, match=r"there is no cluster another.*gcloud container clusters list"):
        wrong.observe()


def test_a_zone_without_v6e_is_refused_with_how_to_find_one_that_has_it(lab: Lab) -> None:
    lab.world.zones[A].generations = ("v5e",)
    lab.pools.request("slice-1", A)
    shown = lab.pools.observe()["slice-1"]
    assert shown.trouble is Trouble.PERMISSION
    assert "gcloud compute machine-types list --filter=name=ct6e-standard-8t" in shown.reason


def test_machines_that_do_not_make_up_the_topology_are_refused_before_anything_is_asked_for(lab: Lab) -> None:
    lab.shape(topology="2x2")
    lab.pools.request("slice-1", A)
    assert "cloud.topology 2x2 has 4 chips" in lab.pools.observe()["slice-1"].reason
    assert lab.calls("CreateNodePool") == 0


def test_too_many_calls_a_minute_are_no_stockout(lab: Lab) -> None:
    lab.world.fail("CreateNodePool", Code.RESOURCE_EXHAUSTED, "RATE_LIMIT_EXCEEDED: Quota exceeded for quota metric")
    with pytest.raises(Unreachable):
        lab.pools.request("slice-1", A)
    assert lab.pools.observe() == {}


# -- preemption --------------------------------------------------------------------------------------------------------


def test_a_slice_that_is_taken_away_has_no_machines_any_more(lab: Lab) -> None:
    lab.pools.request("slice-1", A)
    lab.after(70)
    lab.gke.wait_for(POOL)
    assert lab.after(150)["slice-1"].machines
    lab.world.preempt(A)
    assert not lab.after(5)["slice-1"].machines
    lab.pools = lab.another()
    assert not lab.after(5)["slice-1"].machines, "whoever looks"


def test_a_slice_of_several_hosts_that_is_taken_away_is_not_of_use_until_all_are_back(four: Lab) -> None:
    four.pools.request("slice-1", A)
    assert four.after(160)["slice-1"].usable
    four.world.preempt(A)
    found = four.after(5)["slice-1"]
    assert (found.usable, found.machines) == (False, False)


# -- pools that somebody keeps -----------------------------------------------------------------------------------------


def keep(lab: Lab, zone: str, **shape: int | str) -> str:
    """A pool of the user's, labelled for runs to borrow."""
    name = "kept"
    wanted = v1.NodePool(
        name=name,
        locations=[zone],
        config={
            "machine_type": lab.cloud.machine_type,
            "spot": True,
            "resource_labels": {KEPT: "true", "team": "research"},
        },
    )
    if lab.cloud.topology == "4x4":
        wanted.placement_policy = {"type_": "COMPACT", "tpu_topology": "4x4"}
    lab.gke.client().create_node_pool(parent=lab.gke.where.parent, node_pool=wanted)
    lab.after(70)
    return name


def test_a_kept_pool_is_borrowed_grown_by_the_autoscaler_emptied_and_put_back(lab: Lab) -> None:
    name = keep(lab, A)
    lab.pools.request("slice-1", B)
    assert lab.names == ["kept", POOL], "it is in another zone"
    lab.pools.request("slice-2", A)
    assert lab.names == ["kept", POOL]
    lab.after(130)
    lab.after(70)
    assert lab.pools.pool_of("slice-2") == name
    assert lab.gke.pools[name].shown.autoscaling.total_max_node_count == 1
    lab.gke.wait_for(name)
    assert lab.after(150)["slice-2"] == Slice("slice-2", A, usable=True, machines=True)
    lab.gke.leave(name)
    lab.pools.release("slice-2")
    assert "slice-2" in lab.after(65)
    lab.pools.release("slice-2")
    assert list(lab.after(65)) == ["slice-1"]
    assert dict(lab.gke.pools[name].shown.config.resource_labels) == {KEPT: "true", "team": "research"}
    assert lab.calls("DeleteNodePool") == 0 and not lab.world.held()


def test_a_kept_pool_of_several_hosts_is_given_its_full_size(four: Lab) -> None:
    name = keep(four, A)
    four.pools.request("slice-1", A)
    four.after(70)
    assert four.after(160)["slice-1"].usable
    assert four.gke.pools[name].size == 4 and four.calls("SetNodePoolSize") == 1
    four.pools.release("slice-1")
    four.after(70)
    four.pools.release("slice-1")
    assert four.after(70) == {} and four.gke.pools[name].size == 0


def test_a_kept_pool_that_cannot_be_filled_stops_trying_and_is_put_back(four: Lab) -> None:
    name = keep(four, C)
    four.pools.request("slice-1", C)
    four.after(70)
    assert four.after(70)["slice-1"].trouble is Trouble.STOCKOUT
    for _ in range(2):
        four.pools.release("slice-1")
        four.pools = four.another()
        four.after(70)
    assert four.pools.observe() == {} and four.calls("SetNodePoolSize") == 2
    assert four.gke.pools[name].shown.status == v1.NodePool.Status.RUNNING


def test_of_two_runs_that_want_the_same_kept_pool_one_gets_it(lab: Lab) -> None:
    name = keep(lab, A)
    other = lab.another("gs://elsewhere/d24")
    other.observe()
    lab.pools.request("slice-1", A)
    lab.now.seconds += 70
    other.request("slice-1", A)
    lab.after(70)
    assert lab.pools.pool_of("slice-1") == name
    other.observe()
    assert other.pool_of("slice-1") != name
    labels = lab.gke.pools[name].shown.config.resource_labels
    assert (labels[RUN_LABEL], labels[SLICE], EXPIRES in labels) == (RUN, "slice-1", True)


# -- all of it ---------------------------------------------------------------------------------------------------------


def test_everything_that_bears_the_runs_label_can_be_given_back_without_the_run_directory(lab: Lab) -> None:
    for number, zone in enumerate((A, B), 1):
        lab.pools.request(f"slice-{number}", zone)
    lab.after(70)
    lab.pools = lab.another()
    assert not lab.pools.release_all()
    lab.now.seconds += 70
    assert lab.pools.release_all()
    assert lab.names == []


def test_the_janitor_sees_what_runs_have_made_and_deletes_it(lab: Lab) -> None:
    lab.pools.request("slice-1", A)
    lab.another("gs://elsewhere/d24").request("slice-1", B)
    keep(lab, A)
    inventory = NodePoolInventory(Container(lab.gke.where, lab.gke.client))
    found = {one.zone: one for one in inventory.list()}
    assert set(found) == {A, B}, "a pool that nobody has borrowed is not ours"
    one = found[A]
    assert (one.kind, one.chips, one.accelerator, one.spot, one.owner) == ("node pool", 8, "v6e", True, "ada")
    assert (one.run, one.slice, one.expires) == (RUN, "slice-1", lab.now() - 70 + 24 * 3600)
    lab.world.fail("DeleteNodePool", Code.DEADLINE_EXCEEDED, took_effect=True)
    with pytest.raises(Unreachable):
        inventory.delete(one)
    inventory.delete(one)
    assert next(each for each in inventory.list() if each.zone == A).leaving
    assert list(lab.after(70)) == []
    inventory.delete(one)
    assert lab.calls("DeleteNodePool") == 1
