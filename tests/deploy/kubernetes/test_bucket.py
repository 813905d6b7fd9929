"""A bucket that the controller may not use, or that is not there: what the TrainingRun says, and when it gives up."""

import json
import urllib.request
import uuid
from collections.abc import Callable, Iterator

import pytest

from deploy.controller.backend import Unreachable
from deploy.kubernetes.client import Cluster
from deploy.provisioners import gke_client
from deploy.provisioners.gke_client import Container
from nanocode.config.settings import Cloud
from nanocode.storage.gcs import GcsStore
from nanocode.storage.objects import StorageError
from tests import gcs
from tests.clouds.permissions import ACCOUNT, Door, refusing
from tests.deploy.kubernetes.api_server import ApiServer
from tests.deploy.kubernetes.world import Object, World

pytestmark = pytest.mark.slow

MakeWorld = Callable[..., World]
LIST, CREATE = "storage.objects.list", "storage.objects.create"
MINUTES = {"controller.mistake_minutes": 2}
GOES_ON = "; once that is done, the run goes on by itself"


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    with refusing(gcs.server(), {gcs.BUCKET: set()}) as one:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", one.address)
        yield one


@pytest.fixture
def world(server: ApiServer, cluster: Callable[..., Cluster], door: Door) -> MakeWorld:
    def make(bucket: str = gcs.BUCKET) -> World:
        return World(server, cluster(), f"gs://{bucket}/{uuid.uuid4().hex}", settings=MINUTES)

    return make


def condition(one: World, kind: str) -> Object:
    found: Object = next(each for each in one.status["conditions"] if each["type"] == kind)
    return found


def failed(one: World) -> Object:
    return condition(one, "Failed")


def reachable(one: World) -> str:
    return str(condition(one, "Reachable")["status"])


@pytest.mark.parametrize("permission", [LIST, CREATE])
def test_a_permission_that_lacks_is_said_fails_the_run_after_a_while_and_is_enough_once_it_is_granted(
    world: MakeWorld, door: Door, permission: str
) -> None:
    door.lacking[gcs.BUCKET] = {permission}
    one = world()
    one.rounds()
    assert (one.status["phase"], failed(one)["status"], one.jobs) == ("Unreachable", "False", [])
    said = one.status["message"]
    assert said.startswith(f"not allowed to use {one.directory.store.url}/")
    assert f": {ACCOUNT} lacks the permission {permission}: grant it (`gcloud storage buckets add-iam-policy-" in said
    assert said.endswith(GOES_ON)
    assert one.events("Unreachable") == [said]
    one.rounds(2, seconds=50)
    assert (one.status["phase"], reachable(one)) == ("Unreachable", "False"), "somebody may be about to grant it"
    one.rounds(seconds=50)
    assert (one.status["phase"], one.status["message"]) == ("Failed", said)
    assert (failed(one)["status"], failed(one)["reason"], failed(one)["message"]) == ("True", "Configuration", said)
    door.lacking.clear()
    one.rounds()
    assert (one.status["phase"], failed(one)["status"], reachable(one)) == ("Starting", "False", "True")
    assert one.jobs == ["r-synth-1", "r-tokenizer-1"]
    door.lacking[gcs.BUCKET] = {permission}
    one.rounds()
    assert one.status["phase"] == "Unreachable", "it is waited for anew"


def test_a_controller_that_begins_again_goes_on_waiting_where_the_one_before_it_ended(
    world: MakeWorld, door: Door
) -> None:
    door.lacking[gcs.BUCKET] = {LIST}
    one = world()
    one.rounds(3, seconds=50)
    one.controller = one.another_controller()
    one.rounds(seconds=11)
    assert one.status["phase"] == "Unreachable", "111 seconds of 120"
    one.controller = one.another_controller()
    one.rounds(seconds=11)
    assert one.status["phase"] == "Failed"


def test_a_bucket_that_is_not_there_is_the_same_until_somebody_makes_it(world: MakeWorld) -> None:
    bucket = f"made-late-{uuid.uuid4().hex[:8]}"
    one = world(bucket)
    one.rounds()
    said = one.status["message"]
    assert f": bucket gs://{bucket} does not exist: create it (`gcloud storage buckets create gs://{bucket} " in said
    assert (one.status["phase"], said.endswith(GOES_ON)) == ("Unreachable", True)
    one.rounds(3, seconds=50)
    assert (one.status["phase"], one.status["message"]) == ("Failed", said)
    body, kind = json.dumps({"name": bucket}).encode(), {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{gcs.server()}/storage/v1/b", body, kind), timeout=5).close()
    one.rounds()
    assert one.status["phase"] == "Starting"


@pytest.mark.parametrize("permission", [LIST, CREATE])
def test_a_permission_that_is_taken_away_later_is_said_too(world: MakeWorld, door: Door, permission: str) -> None:
    one = world()
    one.rounds(2)
    door.lacking[gcs.BUCKET] = {permission}
    one.rounds()
    assert (one.status["phase"], permission in one.status["message"]) == ("Unreachable", True)
    one.rounds(12)
    assert one.status["phase"] == "Failed"
    assert one.jobs == ["r-synth-1", "r-tokenizer-1"], "what runs may be able to save"
    door.lacking.clear()
    one.rounds()
    assert one.status["phase"] == "Starting"
    assert len(one.directory.attempts("tokenizer")) == 1


def without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a pod whose service account is no Google service account."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")

    def nowhere(cloud: Cloud) -> Container:
        raise Unreachable("no cluster to make node pools in")

    monkeypatch.setattr(gke_client, "connect", nowhere)


def test_a_pod_without_credentials_is_told_what_a_pod_can_have_and_fails_the_run_after_a_while(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world()
    with monkeypatch.context() as patch:
        without_credentials(patch)
        one.rounds()
        said = one.status["message"]
        assert said.startswith(
            f"gs://{gcs.BUCKET}: no Google Cloud credentials or project found: name a Google service "
        )
        assert "gcloud auth" not in said
        assert (one.status["phase"], reachable(one)) == ("Unreachable", "False")
        one.rounds(3, seconds=50)
        assert (one.status["phase"], one.status["message"]) == ("Failed", said)
    one.rounds()
    assert one.status["phase"] == "Starting"


def test_a_deleted_run_whose_bucket_was_never_opened_is_let_go_and_leaves_no_jobs(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world()
    one.rounds()
    assert one.jobs
    without_credentials(monkeypatch)
    one.controller = one.another_controller()
    one.cluster.delete("trainingruns", "r")
    one.rounds(3, seconds=50)
    assert one.jobs, "it may answer yet"
    one.rounds(2, seconds=50)
    assert (one.jobs, one.server.names("trainingruns")) == ([], ["r"])
    one.rounds(3, seconds=50)
    assert one.server.names("trainingruns") == []
    assert [said.partition(":")[0] for said in one.events("NotAsked")] == [
        "provisioner gke was not asked for slices",
        "provisioner queued-resource was not asked for slices",
    ]


def test_a_directory_with_dots_in_it_fails_the_run_at_once_and_keeps_nobody_from_deleting_it(world: MakeWorld) -> None:
    one = world()
    one.run["spec"]["runDirectory"] = f"gs://{gcs.BUCKET}/a/../b"
    one.rounds()
    said = (
        f"spec.runDirectory cannot be: it has parts that are . or .. (gs://{gcs.BUCKET}/a/../b): uninstall the release"
    )
    assert (one.status["phase"], one.status["message"]) == ("Failed", f"{said}, and choose another runPath")
    assert (failed(one)["reason"], reachable(one)) == ("Configuration", "True")
    one.cluster.delete("trainingruns", "r")
    one.rounds(3, seconds=50)
    one.rounds(seconds=50)
    assert one.server.names("trainingruns") == []


def test_an_outage_never_fails_a_run_not_even_one_that_was_refused_before(
    world: MakeWorld, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world()
    one.rounds()

    def silent(self: GcsStore, folder: str = "") -> tuple[str, ...]:
        raise StorageError(f"cannot use {self.url} (timed out): check the network and try again")

    with monkeypatch.context() as patch:
        patch.setattr(GcsStore, "children", silent)
        one.rounds(9, seconds=600)
        assert (one.status["phase"], failed(one)["status"], reachable(one)) == ("Unreachable", "False", "Unknown")
        assert "the run directory gives no answer: cannot use gs://" in one.status["message"]
    door.lacking[gcs.BUCKET] = {LIST}
    one.rounds()
    assert one.status["phase"] == "Unreachable", "it has not been refused for long"
    monkeypatch.setattr(GcsStore, "children", silent)
    one.rounds(9, seconds=600)
    assert one.status["phase"] == "Unreachable"


def test_a_retry_that_was_wished_for_during_an_outage_is_not_forgotten(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world()
    one.rounds()
    one.done("tokenizer")
    one.rounds(2)

    def silent(self: GcsStore, folder: str = "") -> tuple[str, ...]:
        raise StorageError(f"cannot use {self.url} (timed out): check the network and try again")

    with monkeypatch.context() as patch:
        patch.setattr(GcsStore, "children", silent)
        one.change(retry={"tokenizer": 1})
        one.rounds(2)
        assert one.status["observedGeneration"] == 1
    one.rounds(3)
    assert one.status["observedGeneration"] == 2
    assert "r-tokenizer-2" in one.jobs
