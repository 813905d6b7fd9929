"""A TrainingRun whose slices are queued resources, and one whose provisioner changes while it holds a slice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from deploy.controller.backend import Unreachable
from deploy.kubernetes import queued_slices
from deploy.kubernetes import run as run_module
from deploy.kubernetes.client import Cluster
from deploy.local import keeper
from deploy.provisioners import auto, regions
from deploy.provisioners.gke_client import Container
from deploy.provisioners.labels import name_of, run_label
from deploy.provisioners.queued import Connection, QueuedResources
from deploy.provisioners.vm import assignments
from deploy.provisioners.vm.assignments import WorkerNote
from nanocode.run.attempts import Ending, ExitRecord
from nanocode.run.exits import Exit
from nanocode.storage.objects import LocalStore, StorageError
from tests.clouds.gke import FakeGke
from tests.clouds.tpu import InProcess, TpuService
from tests.clouds.world import World as Clouds
from tests.clouds.world import Zone
from tests.deploy.kubernetes.api_server import ApiServer
from tests.deploy.kubernetes.releases import TEMPLATES
from tests.deploy.kubernetes.world import World

pytestmark = pytest.mark.slow

A, B = "us-east5-a", "us-east5-b"
IMAGE = "us-docker.pkg.dev/lab/nanocode/jobs@sha256:" + "0" * 64
PRETRAIN = ("pretrain", 1)


class Run(World):
    """A TrainingRun in a cluster, with both clouds beside it."""

    def __init__(
        self, server: ApiServer, cluster: Cluster, folder: Path, patch: pytest.MonkeyPatch, **spec: Any
    ) -> None:
        zones = {"zones": [A, B], "dollarsPerSliceHour": {A: 4.0, B: 5.0}}
        settings = {"cloud.image": IMAGE, **spec.pop("settings", {})}
        super().__init__(server, cluster, folder, **zones, settings=settings, **spec)
        self.clouds, self.pools = Clouds(lambda: self.now), Clouds(lambda: self.now)
        for world in (self.clouds, self.pools):
            world.zones = {A: Zone(capacity=8), B: Zone(capacity=8)}
        self.tpu, self.gke = TpuService(self.clouds), FakeGke(self.pools, serves=False)
        patch.setattr(queued_slices, "connect", lambda cloud: Connection(InProcess(self.tpu), "lab"))
        patch.setattr(run_module.gke_client, "connect", lambda cloud: Container(self.gke.where, self.gke.direct))

    def until_pretrain(self) -> None:
        self.rounds()
        for stage in ("tokenizer", "synth", "corpus"):
            self.done(stage)
            self.rounds(2)

    @property
    def queued(self) -> dict[str, str]:
        """Queued resources, and their states."""
        self.clouds.settle()
        return {name.rpartition("/")[2]: one.state.name for name, one in self.tpu.all.items()}

    def called(self, number: int) -> str:
        return name_of(run_label(self.directory.store.url), f"slice-{number}")

    def vm_says(self, slice: str = "slice-1") -> None:
        """Its VM has taken up the attempt, and begun it."""
        note = WorkerNote(of=1, at=self.now).model_dump_json().encode()
        self.directory.store.write(f"{assignments.folder(slice)}/worker-0.json", note)
        self.directory.store.create(f"{self.directory.attempt_folder(*PRETRAIN)}/{keeper.NAME}", b"{}")

    def done_on_vms(self) -> None:
        """The stage has published its marker, and its container ends."""
        self.publish("pretrain")
        self.container_ends(Exit.DONE)

    def container_ends(self, code: int, key: tuple[str, int] = PRETRAIN) -> None:
        end = ExitRecord(code=code, at=self.now, reason="").model_dump_json().encode()
        self.directory.store.create(assignments.exit_name(self.directory, key, 0), end)


MakeRun = Callable[..., Run]


@pytest.fixture
def make(
    server: ApiServer, cluster: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> MakeRun:
    return lambda **spec: Run(server, cluster(timeout=(1.0, 1.0)), tmp_path, monkeypatch, **spec)


def test_a_stage_trains_on_the_vms_of_a_slice_and_the_others_are_jobs(make: MakeRun) -> None:
    run = make(provisioner="queued-resource")
    run.until_pretrain()
    assert list(run.queued) == [run.called(1)]
    run.rounds(8)
    assigned = assignments.assignment(run.directory, "slice-1", PRETRAIN)
    assert assigned is not None and assigned.image == IMAGE
    assert "r-corpus-1" in run.jobs
    assert "start up" in run.status["message"]
    run.vm_says()
    run.rounds(2)
    run.directory.store.create("pretrain/attempts/1/metrics/0-0.jsonl", b"{}\n")
    at = run.now
    run.change(cancel=True)
    run.rounds(2)
    assert "STOP.json" in run.directory.store.children("pretrain/attempts/1")
    run.container_ends(Exit.PREEMPTED)
    run.rounds(8)
    end = run.end_of("pretrain")
    assert end is not None and end.ending is Ending.STOPPED
    assert run.status["phase"] == "Cancelled" and run.queued == {}
    (holding,) = run.clouds.ledger
    assert holding.end is not None and holding.end >= at
    theirs = run.clouds.bill({A: 0.5, B: 0.0})
    assert theirs <= run.status["costDollars"] + 0.01 <= theirs + 0.05


def test_a_slice_that_is_taken_away_costs_an_attempt_and_the_next_zone_is_asked(make: MakeRun) -> None:
    run = make(provisioner="queued-resource")
    run.until_pretrain()
    run.rounds(8)
    run.vm_says()
    run.rounds()
    assert run.clouds.preempt(A) is not None
    run.rounds(12)
    end = run.end_of("pretrain")
    assert end is not None and end.ending is Ending.PREEMPTED
    assert [holding.zone for holding in run.clouds.ledger] == [A, B]
    assert run.queued == {run.called(2): "ACTIVE"}, "what was suspended is deleted"
    assert (run.status["preemptions"], run.status["failures"]) == (1, 0)


def test_auto_is_the_api_in_which_the_project_has_quota(make: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    found = auto.Quotas(tpu=64, compute=0)
    monkeypatch.setattr(auto, "read", lambda project, zones, cloud, fetch: found)
    run = make(provisioner="auto")
    run.until_pretrain()
    assert list(run.queued) == [run.called(1)] and run.gke.pools == {}


def test_auto_without_any_quota_is_a_sentence_and_nothing_is_asked_for(
    make: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "read", lambda project, zones, cloud, fetch: auto.Quotas(tpu=0, compute=4))
    run = make(provisioner="auto")
    run.until_pretrain()
    assert run.queued == {} and run.gke.pools == {}
    assert "r-pretrain-1" not in run.jobs, "nor does it go to nodes that happen to be there"
    assert any("v6e-8 needs 8" in said for said in run.events("Refused"))


def test_quotas_that_cannot_be_read_are_no_outage_of_the_bucket(make: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*asked: object) -> auto.Quotas:
        raise Unreachable("the quotas cannot be read: HTTP 503")

    monkeypatch.setattr(auto, "read", unavailable)
    run = make(provisioner="auto", settings={"controller.mistake_minutes": 0.5})
    run.rounds(6)
    assert (run.status["phase"], run.status["message"]) == ("Waiting", "the quotas cannot be read: HTTP 503")
    conditions = {one["type"]: one["status"] for one in run.status["conditions"]}
    assert (conditions["Reachable"], conditions["Failed"]) == ("True", "False")
    monkeypatch.setattr(auto, "read", lambda project, zones, cloud, fetch: auto.Quotas(tpu=64, compute=0))
    run.until_pretrain()
    assert list(run.queued) == [run.called(1)]


def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run directory gives no answer any more."""

    def silent(self: LocalStore, folder: str = "") -> tuple[str, ...]:
        raise StorageError("timed out")

    monkeypatch.setattr(LocalStore, "children", silent)


@pytest.mark.parametrize("quotas", [auto.Quotas(tpu=64, compute=0), auto.Quotas(tpu=0, compute=64)], ids=["tpu", "gke"])
def test_a_controller_that_never_read_who_made_the_slices_asks_everybody_for_what_is_left(
    make: MakeRun, monkeypatch: pytest.MonkeyPatch, quotas: auto.Quotas
) -> None:
    monkeypatch.setattr(auto, "read", lambda project, zones, cloud, fetch: quotas)
    run = make(provisioner="auto", settings={"cloud.cluster": "c"})
    run.until_pretrain()
    run.rounds(6)
    assert [*run.queued, *run.gke.pools] == [run.called(1)]
    silence(monkeypatch)
    run.controller = run.another_controller()
    run.cluster.delete("trainingruns", "r")
    run.rounds(10)
    assert run.status["phase"] == "Releasing" and [*run.queued, *run.gke.pools] == [run.called(1)], "it may answer yet"
    run.rounds(20)
    assert (run.queued, run.gke.pools, run.jobs) == ({}, {}, [])
    assert ("trainingruns", "r") not in run.server.objects and run.events("NotAsked") == []


def test_a_run_that_never_began_is_let_go_at_once_and_nobody_is_asked(
    make: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(cloud: object) -> Container:
        raise Unreachable("no cluster to make node pools in")

    run = make(provisioner="auto", settings={"pretrain.stepz": 1})
    monkeypatch.setattr(run_module.gke_client, "connect", nowhere)
    run.rounds(2)
    assert run.status["phase"] == "Failed"
    run.cluster.delete("trainingruns", "r")
    run.rounds()
    assert ("trainingruns", "r") not in run.server.objects and run.events("NotAsked") == []


@pytest.mark.parametrize("read_before", [True, False], ids=["known to have made one", "only guessed"])
def test_who_gives_no_answer_is_let_be_after_a_while_unless_it_has_made_a_slice(
    make: MakeRun, monkeypatch: pytest.MonkeyPatch, read_before: bool
) -> None:
    run = make(provisioner="queued-resource")
    run.until_pretrain()
    run.rounds(6)
    silence(monkeypatch)
    if not read_before:
        run.controller = run.another_controller()
    nobody = "there are no credentials of Google Cloud"

    def refuse(self: QueuedResources, zones: object) -> bool:
        raise Unreachable(nobody)

    monkeypatch.setattr(QueuedResources, "release_all", refuse)
    run.cluster.delete("trainingruns", "r")
    run.rounds(14)
    assert run.jobs == [] and nobody in run.status["message"]
    run.rounds(40)
    assert (("trainingruns", "r") in run.server.objects) is read_before
    if read_before:
        assert run.events("NotAsked") == []
    else:
        (said,) = run.events("NotAsked")
        assert said.startswith(f"provisioner queued-resource was not asked for slices: {nobody}; `nanocode slices ")


def test_a_refused_change_leaves_everything_as_it_was(make: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "read", lambda project, zones, cloud, fetch: auto.Quotas(tpu=64, compute=0))
    run = make(provisioner="auto")
    run.until_pretrain()
    run.rounds(8)
    run.vm_says()
    run.change(image="localhost/other:1", settings={"cloud.image": IMAGE, "pretrain.stepz": 1})
    run.rounds(2)
    assert "did you mean pretrain.steps" in run.status["message"]
    assert run.clouds.preempt(A) is not None
    run.rounds(12)
    assert run.called(2) in run.queued, "another slice is asked of the same API"
    assert assignments.assignment(run.directory, "slice-2", ("pretrain", 2)) is not None


def test_a_controller_that_has_only_seen_a_refused_spec_asks_whoever_made_the_last_slice(make: MakeRun) -> None:
    run = make(provisioner="queued-resource")
    run.until_pretrain()
    run.rounds(8)
    run.vm_says()
    run.change(provisioner="gke", settings={"pretrain.stepz": 1})
    run.controller = run.another_controller()
    run.rounds(2)
    assert run.clouds.preempt(A) is not None
    run.rounds(12)
    assert run.called(2) in run.queued and run.gke.pools == {}


@pytest.mark.parametrize(("before", "after"), [("queued-resource", "gke"), ("gke", "queued-resource")])
def test_a_slice_stays_with_who_made_it_when_the_spec_names_another_provisioner(
    make: MakeRun, before: str, after: str
) -> None:
    run = make(provisioner=before)
    run.until_pretrain()
    run.rounds(8)
    there = [*run.queued, *run.gke.pools]
    assert there == [run.called(1)]
    run.change(provisioner=after)
    run.controller = run.another_controller()
    run.rounds(3)
    assert [*run.queued, *run.gke.pools] == there, "it is of use as it is"
    assert run.events("Preempted") == []
    run.change(cancel=True)
    run.rounds(3)
    if before == "queued-resource":
        run.container_ends(Exit.PREEMPTED)
    else:
        run.server.objects.pop(("pods", "r-pretrain-1-0-abcde"), None)
    run.rounds(20)
    assert run.status["phase"] == "Cancelled"
    assert run.queued == {} and run.gke.pools == {}, "nothing is left behind"


def test_the_next_slice_is_asked_of_the_provisioner_that_the_spec_names_by_then(make: MakeRun) -> None:
    run = make(provisioner="queued-resource")
    run.until_pretrain()
    run.rounds(8)
    run.vm_says()
    run.change(provisioner="gke")
    run.rounds(2)
    assert run.clouds.preempt(A) is not None
    run.rounds(12)
    assert run.queued == {} and list(run.gke.pools) == [run.called(2)]
    assert [one.maker for one in run.controller._run.journal.slices] == ["queued-resource", "gke"]  # type: ignore[union-attr]


def test_deleting_a_run_after_such_a_change_leaves_nothing_in_either_cloud(make: MakeRun) -> None:
    run = make(provisioner="queued-resource")
    run.until_pretrain()
    run.rounds(8)
    run.change(provisioner="existing")
    run.rounds(2)
    run.cluster.delete("trainingruns", "r")
    run.rounds(3)
    run.container_ends(Exit.PREEMPTED)
    run.rounds(20)
    assert ("trainingruns", "r") not in run.server.objects
    assert run.queued == {}


@pytest.mark.parametrize(("provisioner", "runs"), [("queued-resource", True), ("gke", False), ("auto", False)])
def test_a_bucket_in_the_region_of_the_zones_is_for_slices_of_the_cloud_tpu_api(
    make: MakeRun, monkeypatch: pytest.MonkeyPatch, provisioner: str, runs: bool
) -> None:
    """`auto` is `gke` here."""
    monkeypatch.setattr(auto, "read", lambda project, zones, cloud, fetch: auto.Quotas(tpu=64, compute=64))
    monkeypatch.setattr(
        run_module,
        "refuse_elsewhere",
        lambda url, settings, second: regions.refuse_elsewhere("gs://mine/d24", settings, second),
    )
    places = {"gs://mine/d24": ("europe-west4",), "gs://theirs": ("us-east5",)}
    monkeypatch.setattr(regions, "bucket_places", places.__getitem__)
    buckets = {"us-east5": "gs://theirs"}
    settings = {"cloud.buckets": buckets, "cloud.cluster": "c", "cloud.cluster_location": A}
    run = make(provisioner=provisioner, settings=settings)
    run.rounds(3)
    assert bool(run.jobs) is runs
    if runs:
        run.until_pretrain()
        wish = json.loads(run.directory.store.read("slices/slice-1/REQUEST.json"))
        assert wish["near"] == f"gs://theirs{run.directory.store.url}"
    else:
        assert "begin a run in a bucket there" in run.status["message"]


def test_zones_elsewhere_are_refused_before_anything_begins(make: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        run_module,
        "refuse_elsewhere",
        lambda url, settings, second: regions.refuse_elsewhere("gs://mine/d24", settings, second),
    )
    monkeypatch.setattr(regions, "bucket_places", lambda url: ("europe-west4",))
    run = make(provisioner="queued-resource")
    run.rounds(3)
    assert run.jobs == [] and run.queued == {}
    assert "gcloud storage buckets create gs://mine-us-east5 --location=us-east5" in run.status["message"]
    monkeypatch.setattr(regions, "bucket_places", lambda url: ("us",))
    run.change(spot=True)
    run.controller = run.another_controller()
    run.rounds(2)
    assert run.jobs


def test_a_pod_mirrors_the_log_and_whatever_happens_to_it_the_attempt_goes_on(make: MakeRun) -> None:
    run = make(provisioner="queued-resource")
    run.until_pretrain()
    run.rounds(8)
    job = run.server.objects["jobs", "r-pretrain-1"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["name"] == "bridge"
    assert {one["name"]: one["value"] for one in container["env"]} == {
        "NANOCODE_STAGE": "pretrain", "NANOCODE_ATTEMPT": "1"
    }  # fmt: skip
    run.vm_says()
    run.rounds()
    run.pod("r-pretrain-1", {"terminated": {"exitCode": 137}})
    run.ended("r-pretrain-1", "Failed", "BackoffLimitExceeded")
    run.rounds(2)
    run.cluster.delete("jobs", "r-pretrain-1")
    run.rounds(3)
    assert run.end_of("pretrain") is None and run.status["failures"] == 0 and list(run.queued) == [run.called(1)]
    run.done_on_vms()
    run.rounds(2)
    end = run.end_of("pretrain")
    assert end is not None and end.ending is Ending.DONE


def test_an_api_server_that_gives_no_answer_delays_the_mirror_and_is_told_once(make: MakeRun) -> None:
    run = make(provisioner="queued-resource")
    run.until_pretrain()
    run.server.trouble = lambda verb, resource: 503 if (verb, resource) == ("create", "jobs") else None
    with capture_logs() as told:
        run.rounds(8)
    assert "r-pretrain-1" not in run.jobs
    assert [one["event"] for one in told].count("the log is in the bucket only") == 1
    run.server.trouble = lambda verb, resource: None
    run.rounds()
    assert "r-pretrain-1" in run.jobs


def test_a_chart_without_a_bridge_costs_the_mirror_and_nothing_else(make: MakeRun) -> None:
    run = make(provisioner="queued-resource")
    del run.server.objects["configmaps", TEMPLATES]["data"]["bridge.yaml"]
    run.until_pretrain()
    run.rounds(8)
    assert assignments.assignment(run.directory, "slice-1", PRETRAIN) is not None
    assert "r-pretrain-1" not in run.jobs and run.events("Unreachable") == []
