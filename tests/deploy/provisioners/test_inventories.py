"""What the janitor finds in both clouds, over the real clients and the fakes on loopback."""

from collections.abc import Iterator

import pytest

from deploy.controller.observed import Slice
from deploy.provisioners.gke_client import Container
from deploy.provisioners.gke_inventory import NodePoolInventory
from deploy.provisioners.gke_kept import KEPT
from deploy.provisioners.inventories import inventories
from deploy.provisioners.janitor import survey, sweep
from deploy.provisioners.labels import run_label
from deploy.provisioners.queued import Connection, QueuedResources
from deploy.provisioners.queued_inventory import QueuedInventory
from nanocode.config.settings import Cloud, load
from nanocode.run.exits import ConfigurationError
from tests.clouds.fixtures import Now
from tests.clouds.tpu import TpuServer
from tests.clouds.world import Code, World
from tests.deploy.provisioners.gke_lab import URL, A, B, Lab

TPU_ZONE, ELSEWHERE = "us-east5-b", "europe-west4-a"
IMAGE = "us-docker.pkg.dev/lab/nanocode/jobs@sha256:" + "0" * 64
LONG = 30 * 3600.0
"""Past the expiry label of a day, and the bound."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def resources(tpu: TpuServer, now: Now) -> QueuedResources:
    cloud = Cloud(image=IMAGE, owner="ada", queue_minutes=1e6)
    recorded = [Slice("slice-1", TPU_ZONE, requested=now())]
    return QueuedResources(Connection(tpu.client(), "lab"), URL, lambda: cloud, lambda: recorded, now)


def test_a_queued_resource_says_whose_it_is_and_what_it_is(resources: QueuedResources, now: Now) -> None:
    resources.request("slice-1", TPU_ZONE)
    began = now()
    now.seconds += 500
    (found,) = QueuedInventory(resources, TPU_ZONE).list()
    assert (found.run, found.slice, found.owner, found.url) == (run_label(URL), "slice-1", "ada", URL)
    assert (found.kind, found.zone, found.chips, found.accelerator, found.spot) == (
        "queued resource", TPU_ZONE, 8, "v6e", True,
    )  # fmt: skip
    assert (found.created, found.expires) == (pytest.approx(began, abs=1), pytest.approx(began + 24 * 3600, abs=1))
    assert (found.state, found.costs) == ("ACTIVE", True)


def test_the_janitor_takes_a_queued_resource_that_nobody_knows(
    resources: QueuedResources, now: Now, clouds: World
) -> None:
    resources.request("slice-1", TPU_ZONE)
    now.seconds += LONG
    shelves = [QueuedInventory(resources, zone) for zone in (TPU_ZONE, ELSEWHERE)]
    (verdict,) = sweep(survey(shelves), lambda found: None, now)
    assert verdict.deleted
    now.seconds += 60
    assert survey(shelves).things == ()
    assert not clouds.held()


def test_a_zone_that_refuses_is_told_and_hides_nothing(resources: QueuedResources, now: Now, clouds: World) -> None:
    resources.request("slice-1", TPU_ZONE)
    message = "Cloud TPU API has not been used in project lab before or it is disabled."
    clouds.fail("ListQueuedResources", Code.PERMISSION_DENIED, message)
    seen = survey([QueuedInventory(resources, ELSEWHERE), QueuedInventory(resources, TPU_ZONE)])
    assert len(seen.things) == 1
    assert "gcloud services enable tpu.googleapis.com" in seen.refusals[0]


def shelf(lab: Lab) -> NodePoolInventory:
    def wait(seconds: float) -> None:
        lab.now.seconds += 60

    return NodePoolInventory(Container(lab.gke.where, lab.gke.client, (5.0, 5.0)), wait)


def test_a_node_pool_says_whose_it_is_and_what_it_is(lab: Lab) -> None:
    lab.pools.request("slice-1", B)
    lab.after(300)
    (found,) = shelf(lab).list()
    assert (found.run, found.slice, found.owner) == (run_label(URL), "slice-1", "ada")
    assert (found.kind, found.zone, found.chips, found.accelerator) == ("node pool", B, 8, "v6e")
    assert (found.spot, found.costs, found.leaving) == (True, True, False)


def test_the_janitor_takes_a_node_pool_that_nobody_knows_and_no_other(lab: Lab) -> None:
    lab.pools.request("slice-1", A)
    lab.after(300)
    others = [name for name in lab.names if "slice-1" not in name]
    lab.now.seconds += LONG
    (verdict,) = sweep(survey([shelf(lab)]), lambda found: None, lab.now)
    assert verdict.deleted
    lab.now.seconds += 900
    assert lab.names == others


def test_a_pool_that_somebody_keeps_is_emptied_and_stays(lab: Lab) -> None:
    lab.pools.request("slice-1", A)
    lab.after(300)
    (name,) = [one for one in lab.names if "slice-1" in one]
    container = Container(lab.gke.where, lab.gke.client, (5.0, 5.0))
    pool = container.pool(name)
    assert pool is not None
    container.relabel(pool, {**pool.labels, KEPT: "true"})
    lab.now.seconds += LONG
    (verdict,) = sweep(survey([shelf(lab)]), lambda found: None, lab.now)
    assert (verdict.deleted, verdict.trouble) == (True, "")
    lab.now.seconds += 900
    assert name in lab.names
    left = container.pool(name)
    assert left is not None
    assert dict(left.labels) == {KEPT: "true"}
    assert survey([shelf(lab)]).things == ()


def test_where_to_look_has_to_be_said() -> None:
    with pytest.raises(ConfigurationError, match="name a run directory, or say --set 'controller.zones="):
        inventories(load("demo", environment={}))
