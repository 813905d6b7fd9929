"""Slices from queued resources, over the real client and a fake Cloud TPU API on loopback."""

from typing import Any

import pytest
from google.api_core.exceptions import ServiceUnavailable
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError
from google.cloud import tpu_v2

from deploy.controller.backend import Unreachable
from deploy.controller.observed import Slice, Trouble
from deploy.provisioners.labels import owned
from deploy.provisioners.queued import Connection, QueuedResources, connect
from deploy.provisioners.queued_states import labels_of
from nanocode.config.settings import Cloud
from nanocode.run.exits import ConfigurationError
from tests.clouds.fixtures import Now
from tests.clouds.tpu import TpuServer
from tests.clouds.world import Code, World

A, B = "us-east5-b", "europe-west4-a"
IMAGE = "us-docker.pkg.dev/lab/nanocode/jobs@sha256:" + "0" * 64


class Run:
    """A provisioner, and the journal that it is shown."""

    def __init__(self, tpu: TpuServer, now: Now, **cloud: Any) -> None:
        self.cloud = Cloud(image=IMAGE, owner="Ada L.", **cloud)
        self.recorded: dict[str, Slice] = {}
        self.now, self.project = now, "lab"
        self.client = tpu.client()

    @property
    def slices(self) -> QueuedResources:
        """A new one at each look: nothing may depend on what another remembered."""
        return self.of(self.project)

    def of(self, project: str) -> QueuedResources:
        connection = Connection(self.client, project)
        return QueuedResources(connection, "gs://bucket/d24", lambda: self.cloud, self.recorded.values, self.now)

    def request(self, slices: QueuedResources, name: str = "slice-1", zone: str = A) -> None:
        self.recorded[name] = Slice(name, zone, requested=self.now())
        slices.request(name, zone)


@pytest.fixture
def run(tpu: TpuServer, now: Now) -> Run:
    return Run(tpu, now)


def test_a_slice_is_of_use_once_its_machines_are_there_and_gone_once_it_is_given_back(
    run: Run, tpu: TpuServer, clouds: World, now: Now
) -> None:
    run.request(run.slices)
    assert run.slices.observe()["slice-1"] == Slice("slice-1", A, usable=False)
    now.seconds += 100
    assert run.slices.observe()["slice-1"].usable
    run.slices.release("slice-1")
    assert not run.slices.observe()["slice-1"].usable
    run.slices.release("slice-1")
    now.seconds += 30
    assert run.slices.observe() == {} and not clouds.reserved and not clouds.held()


def test_what_is_made_says_whose_it_is_and_tells_no_secret(run: Run, tpu: TpuServer, now: Now) -> None:
    run.cloud = run.cloud.model_copy(update={"secrets": {"KEY": "projects/lab/secrets/key/versions/1"}})
    run.request(run.slices)
    (queued,) = tpu.service.all.values()
    whose = owned(labels_of(queued.resource))
    assert whose is not None
    assert (whose.slice, whose.owner, whose.expires) == ("slice-1", "ada-l", now() + 24 * 3600)
    (spec,) = queued.resource.tpu.node_spec
    assert "spot" in queued.resource and spec.node.accelerator_type == "v6e-8"
    assert spec.node.metadata["nanocode-run-dir"] == "gs://bucket/d24"
    assert spec.node.metadata["nanocode-image"] == IMAGE
    assert spec.node.metadata["nanocode-secrets"] == '{"KEY": "projects/lab/secrets/key/versions/1"}'


def test_a_lost_reply_makes_no_second_slice(run: Run, tpu: TpuServer, clouds: World) -> None:
    for code in (Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE):
        clouds.fail("CreateQueuedResource", code, took_effect=True)
        with pytest.raises(Unreachable):
            run.request(run.slices)
    run.request(run.slices)
    assert len(tpu.service.all) == 1


def test_a_preemption_is_told_from_somebody_who_deletes_the_machines(
    run: Run, tpu: TpuServer, clouds: World, now: Now
) -> None:
    run.request(run.slices, "slice-1", A)
    run.request(run.slices, "slice-2", B)
    now.seconds += 100
    run.slices.observe()
    clouds.preempt(A)
    run.client.delete_node(name=next(one.node.name for one in tpu.service.all.values() if one.zone == B), timeout=5)
    for seconds in (0, 60):
        now.seconds += seconds
        found = run.slices.observe()
        assert (found["slice-1"].trouble, found["slice-2"].trouble) == (Trouble.PREEMPTED, Trouble.OTHER)
    for name in ("slice-1", "slice-2"):
        run.slices.release(name)
    now.seconds += 30
    assert run.slices.observe() == {} and not clouds.reserved


def test_a_zone_without_machines_is_given_up_after_a_while(run: Run, clouds: World, now: Now) -> None:
    clouds.zones[A].capacity = 0
    run.request(run.slices)
    now.seconds += 14 * 60
    assert run.slices.observe()["slice-1"].trouble is None
    now.seconds += 2 * 60
    assert run.slices.observe()["slice-1"].trouble is Trouble.STOCKOUT
    run.slices.release("slice-1")
    now.seconds += 30
    assert run.slices.observe() == {}


def test_a_request_that_nobody_gives_up_expires(run: Run, clouds: World, now: Now) -> None:
    clouds.zones[A].capacity = 0
    run.request(run.slices)
    now.seconds += 31 * 60
    clouds.settle()
    clouds.set_capacity(A, 16)
    assert not clouds.held()


@pytest.mark.parametrize(
    ("code", "message", "trouble"),
    [
        (8, 'There is no more capacity in the zone "us-east5-b"; you can try in another zone', Trouble.STOCKOUT),
        (8, "Quota limit 'TPUV6EPreemptiblePerProjectPerZoneForTPUAPI' has been exceeded. Limit: 8", Trouble.QUOTA),
        (13, "an internal error has occurred", Trouble.OTHER),
        (9, "Insufficient reserved capacity. Contact customer support to increase your reservation.", Trouble.STOCKOUT),
    ],
)
def test_a_request_that_failed_says_what_of(
    run: Run, tpu: TpuServer, now: Now, code: int, message: str, trouble: Trouble
) -> None:
    tpu.service.never_provisioned[A] = (code, message)
    run.request(run.slices)
    now.seconds += 5
    assert run.slices.observe()["slice-1"].trouble is trouble


def refuse_permission(run: Run, tpu: TpuServer) -> None:
    tpu.service.denied.add("tpu.queuedResources.create")


def turn_off(run: Run, tpu: TpuServer) -> None:
    tpu.service.enabled = False


def name_another_project(run: Run, tpu: TpuServer) -> None:
    run.project = "somebody-elses"


def take_away_v6e(run: Run, tpu: TpuServer) -> None:
    tpu.service.world.zones[A].generations = ("v5e",)


def take_away_the_zone(run: Run, tpu: TpuServer) -> None:
    del tpu.service.world.zones[A]


def take_away_quota(run: Run, tpu: TpuServer) -> None:
    tpu.service.world.zones[A].quota = 0


@pytest.mark.parametrize(
    ("spoil", "trouble", "command"),
    [
        (refuse_permission, Trouble.PERMISSION, "gcloud projects add-iam-policy-binding lab"),
        (turn_off, Trouble.PERMISSION, "gcloud services enable tpu.googleapis.com --project=lab"),
        (name_another_project, Trouble.PERMISSION, "gcloud projects list"),
        (take_away_v6e, Trouble.PERMISSION, "gcloud compute tpus accelerator-types list --zone=us-east5-b"),
        (take_away_the_zone, Trouble.PERMISSION, "gcloud compute tpus locations list --project=lab"),
        (
            take_away_quota,
            Trouble.QUOTA,
            "`gcloud beta quotas preferences create --service=tpu.googleapis.com "
            "--quota-id=TPUV6EPreemptiblePerProjectPerZoneForTPUAPI --dimensions=zone=us-east5-b --preferred-value=8 "
            "--project=lab`",
        ),
    ],
)
def test_each_refusal_is_one_sentence_with_the_command_that_helps(
    run: Run, tpu: TpuServer, spoil: Any, trouble: Trouble, command: str
) -> None:
    spoil(run, tpu)
    slices = run.slices
    run.request(slices)
    found = slices.observe()["slice-1"]
    assert found.trouble is trouble and command in found.reason and "\n" not in found.reason
    slices.release("slice-1")
    run.recorded["slice-1"] = Slice("slice-1", A, requested=1.0, released=2.0)
    assert slices.observe() == {}, "what was refused is gone once it is given back"


def test_before_anything_begins_it_says_why_nothing_can_be_had(run: Run, tpu: TpuServer) -> None:
    run.slices.check([A, B])
    turn_off(run, tpu)
    with pytest.raises(ConfigurationError, match="gcloud services enable"):
        run.slices.check([A, B])


def test_without_credentials_or_a_project_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPU_EMULATOR_HOST", raising=False)

    def nobody() -> object:
        raise DefaultCredentialsError("Your default credentials were not found.")

    monkeypatch.setattr("google.auth.default", nobody)
    with pytest.raises(ConfigurationError, match="`gcloud auth application-default login`"):
        connect(Cloud())
    monkeypatch.setattr("google.auth.default", lambda: (AnonymousCredentials(), None))
    with pytest.raises(ConfigurationError, match="`gcloud config set project PROJECT`"):
        connect(Cloud())


def test_too_many_calls_a_minute_are_no_lack_of_quota(run: Run, clouds: World) -> None:
    words = "Quota exceeded for quota metric 'Requests' and limit 'Requests per minute' of service 'tpu.googleapis.com'"
    clouds.fail("CreateQueuedResource", Code.RESOURCE_EXHAUSTED, words)
    with pytest.raises(Unreachable):
        run.request(run.slices)


def test_a_zone_that_gives_no_answer_does_not_stop_the_others(run: Run, clouds: World, now: Now) -> None:
    slices = run.slices
    run.request(slices, "slice-1", A)
    run.request(slices, "slice-2", B)
    now.seconds += 100
    assert all(one.usable for one in slices.observe().values())
    clouds.fail("ListQueuedResources", Code.UNAVAILABLE)
    found = slices.observe()
    assert len(found) == 2 and sum(one.usable for one in found.values()) == 1
    clouds.fail("ListQueuedResources", Code.UNAVAILABLE, times=2)
    with pytest.raises(Unreachable):
        slices.observe()


def _silence(run: Run, zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on it answers no list."""
    ask = run.client.list_queued_resources

    def answer(request: tpu_v2.ListQueuedResourcesRequest, **how: Any) -> Any:
        if request.parent.endswith(f"/{zone}"):
            raise ServiceUnavailable(f"{zone} is down")
        return ask(request=request, **how)

    monkeypatch.setattr(run.client, "list_queued_resources", answer)


def test_a_silent_zone_where_all_is_gone_keeps_no_new_controller_from_the_slices_elsewhere(
    run: Run, now: Now, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.request(run.slices, "slice-2", B)
    now.seconds += 100
    run.recorded["slice-1"] = Slice("slice-1", A, requested=1.0, ready=2.0, gone=3.0)
    _silence(run, A, monkeypatch)
    assert run.slices.observe() == {"slice-2": Slice("slice-2", B, usable=True)}
    del run.recorded["slice-2"]
    assert run.slices.observe() == {}, "another may be asked for elsewhere"
    run.recorded["slice-1"] = Slice("slice-1", A, requested=1.0, ready=2.0)
    with pytest.raises(Unreachable, match="down"):
        run.slices.observe()


@pytest.mark.parametrize("silent", [A, B])
def test_a_run_that_ends_gives_back_what_it_has_wherever_somebody_answers(
    run: Run, tpu: TpuServer, now: Now, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    run.request(run.slices, "slice-1", A)
    run.request(run.slices, "slice-2", B)
    now.seconds += 100
    with monkeypatch.context() as outage:
        _silence(run, silent, outage)
        with pytest.raises(Unreachable, match="down"):
            run.slices.release_all([A, B])
    now.seconds += 30
    assert not run.slices.release_all([A, B])
    assert [one.zone for one in tpu.service.all.values()] == [silent]
    now.seconds += 30
    assert run.slices.release_all([A, B])


def test_a_zone_that_refuses_us_and_never_had_a_slice_of_the_run_has_none_left(run: Run, clouds: World) -> None:
    del clouds.zones[B]
    run.request(run.slices)
    assert not run.slices.release_all([A, B])
    run.now.seconds += 60
    assert run.slices.release_all([A, B])
    with pytest.raises(Unreachable):
        run.slices.release_all([B])  # nobody has answered: a run that cannot be read may have had some
    run.recorded["slice-2"] = Slice("slice-2", B, requested=1.0, ready=2.0)
    with pytest.raises(Unreachable):
        run.slices.release_all([A, B])


def test_a_reply_that_does_not_come_holds_nobody_up_for_long(
    run: Run, clouds: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.provisioners.queued.CALL_SECONDS", 0.3)
    clouds.delay("CreateQueuedResource", 2.0)
    with pytest.raises(Unreachable):
        run.request(run.slices)


def test_a_slice_that_was_there_is_not_given_up_because_we_may_not_look(run: Run, tpu: TpuServer, now: Now) -> None:
    run.request(run.slices)
    run.recorded["slice-1"] = Slice("slice-1", A, requested=1.0, ready=2.0)
    tpu.service.denied.add("tpu.queuedResources.list")
    with pytest.raises(Unreachable, match="you may not"):
        run.slices.observe()
