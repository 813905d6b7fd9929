"""The controller against an API server that may fail it: what it makes, what it says, and what it leaves behind."""

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.kubernetes import end
from deploy.kubernetes.check import check
from deploy.kubernetes.client import Cluster
from deploy.kubernetes.metrics import SECONDS_STUCK, Health, serve
from deploy.kubernetes.trainingrun import FINALIZER, timestamp
from nanocode.run.attempts import Ending, ExitRecord, recorded
from nanocode.run.digests import stage_digests
from nanocode.run.graph import order
from nanocode.run.history import stage_ledger
from nanocode.run.segments import SegmentWriter
from nanocode.run.settling import read_settings
from nanocode.run.spans import Kind
from nanocode.storage.objects import LocalStore, StorageError
from tests.deploy.kubernetes.api_server import ApiServer
from tests.deploy.kubernetes.objects import held, homeless, placed, ran, running, taken
from tests.deploy.kubernetes.releases import DIGEST, IMAGE
from tests.deploy.kubernetes.world import World

pytestmark = pytest.mark.slow

MakeWorld = Callable[..., World]


@pytest.fixture
def world(server: ApiServer, cluster: Callable[..., Cluster], tmp_path: Path) -> MakeWorld:
    return lambda **how: World(server, cluster(timeout=(1.0, 1.0)), tmp_path, **how)


def test_a_run_goes_through_its_stages_and_succeeds(world: MakeWorld) -> None:
    one = world()
    one.rounds()
    assert one.run["metadata"]["finalizers"] == [FINALIZER]
    assert one.jobs == ["r-synth-1", "r-tokenizer-1"], "what reads nothing begins at once"
    assert one.server.names("services") == one.jobs
    begun: set[str] = set()
    for _ in order():
        for job in [job for job in one.jobs if job not in begun]:
            begun.add(job)
            one.done(job.removeprefix("r-").removesuffix("-1"))
        one.rounds(2)
    assert one.status["phase"] == "Succeeded"
    assert {each["type"]: each["status"] for each in one.status["conditions"]}["Succeeded"] == "True"
    assert one.status["attempts"] == len(order())
    assert one.server.names("services") == [], "they are of no use to what has ended"
    assert one.events("Succeeded") == ["the run is done"]


def test_a_controller_that_is_killed_at_any_point_leaves_one_job_per_attempt(world: MakeWorld) -> None:
    one = world()
    one.rounds(3)
    for _ in range(3):
        one.controller = one.another_controller()
        one.rounds(2)
    assert one.jobs == ["r-synth-1", "r-tokenizer-1"]
    assert one.events("Begin") == ["attempt 1 of tokenizer begins", "attempt 1 of synth begins"]


@pytest.mark.parametrize("resource", ["services", "jobs"])
def test_a_create_that_was_not_answered_is_made_good_under_the_same_name(world: MakeWorld, resource: str) -> None:
    one = world()
    one.server.trouble = lambda verb, what: 500 if (verb, what) == ("create", resource) else None
    one.rounds()
    assert one.jobs == []
    one.server.trouble = lambda verb, what: None
    one.rounds()
    assert one.jobs == ["r-synth-1", "r-tokenizer-1"]
    assert len(one.directory.attempts("tokenizer")) == 1


def test_what_another_controller_has_claimed_and_not_begun_is_begun(world: MakeWorld) -> None:
    one = world()
    one.server.trouble = lambda verb, what: 500 if (verb, what) == ("create", "jobs") else None
    one.rounds()
    one.server.trouble = lambda verb, what: None
    one.controller = one.another_controller()
    one.rounds()
    assert one.jobs == ["r-synth-1", "r-tokenizer-1"]


def test_a_job_that_somebody_deleted_is_not_made_again_its_attempt_is(world: MakeWorld) -> None:
    one = world()
    one.rounds(2)
    del one.server.objects["jobs", "r-tokenizer-1"]
    one.rounds(2)
    assert one.jobs == ["r-synth-1", "r-tokenizer-2"]
    assert one.events("Preempted") == ["attempt 1 of tokenizer: its Job was deleted"]


def test_a_job_of_that_name_that_is_not_ours_ends_the_run_with_a_sentence(world: MakeWorld) -> None:
    one = world()
    one.server.put("jobs", {"metadata": {"name": "r-tokenizer-1"}, "spec": {}})
    one.rounds(4)
    assert one.status["phase"] == "Failed"
    assert one.status["message"] == (
        "stage tokenizer: jobs/r-tokenizer-1 is there and is not this run's: delete it, or give the release another name"
    )
    assert one.server.objects["jobs", "r-tokenizer-1"]["spec"] == {}


def test_preemptions_are_counted_apart_from_failures_and_keep_the_image(world: MakeWorld) -> None:
    one = world()
    one.rounds()
    one.node()
    one.pod("r-tokenizer-1", ran(137), 0, "node-0", taken())
    one.ended("r-tokenizer-1", reason="PodFailurePolicy")
    one.rounds(2)
    one.pod("r-tokenizer-2", ran(1, "RuntimeError: it broke"))
    one.ended("r-tokenizer-2", reason="BackoffLimitExceeded")
    one.controller = one.another_controller()
    one.rounds()
    assert (one.status["preemptions"], one.status["failures"]) == (1, 1)
    assert one.end_of("tokenizer", 1).ending is Ending.PREEMPTED  # type: ignore[union-attr]
    assert one.status["imageDigest"] == f"{IMAGE}@{DIGEST}"
    second = one.server.objects["jobs", "r-tokenizer-2"]["spec"]["template"]["spec"]["containers"][0]
    assert second["image"] == f"registry:5000/nanocode@{DIGEST}"
    one.change(image="registry:5000/nanocode:2")
    one.rounds(2)
    third = one.server.objects["jobs", "r-tokenizer-3"]["spec"]["template"]["spec"]["containers"][0]
    assert third["image"] == "registry:5000/nanocode:2", "another name is another image"


def test_the_time_from_an_attempts_last_word_to_its_end_is_known(world: MakeWorld) -> None:
    one = world()
    one.rounds()
    one.node()
    with SegmentWriter(one.directory.store, "tokenizer", 1, "events", 0, clock=lambda: one.now) as events:
        events.write({"kind": "start"})
    began, one.now = one.now, one.now + 20
    died = {"exitCode": 1, "finishedAt": timestamp(one.now), "message": "RuntimeError: it broke"}
    one.pod("r-tokenizer-1", {"terminated": died})
    one.ended("r-tokenizer-1", reason="BackoffLimitExceeded")
    one.rounds(2)
    left = recorded(one.directory, "tokenizer", 1, ExitRecord)
    assert left is not None
    assert (left.code, left.reason) == (1, "RuntimeError: it broke")
    a_second = 1.01  # which is what a pod's times are cut to
    assert left.at - began == pytest.approx(20, abs=a_second)
    digest = stage_digests(read_settings(one.directory), one.directory)["tokenizer"]
    spent = stage_ledger(one.directory, "tokenizer", digest, None).seconds
    assert Kind.UNKNOWN not in spent
    assert spent[Kind.CUT_OFF] == pytest.approx(20, abs=a_second)


def test_an_end_that_cannot_be_written_down_yet_is_judged_later(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world()
    one.rounds()
    one.pod("r-tokenizer-1", {"terminated": {"exitCode": 1, "finishedAt": timestamp(one.now)}})
    one.ended("r-tokenizer-1", reason="BackoffLimitExceeded")
    with monkeypatch.context() as patch:

        def refuse(self: LocalStore, name: str, data: bytes) -> None:
            raise StorageError("no answer")

        patch.setattr(LocalStore, "create", refuse)
        one.rounds()
        assert one.end_of("tokenizer") is None
    one.rounds()
    assert one.end_of("tokenizer").ending is Ending.FAILED  # type: ignore[union-attr]
    assert recorded(one.directory, "tokenizer", 1, ExitRecord) is not None


def test_three_finished_attempts_of_a_stage_are_kept(world: MakeWorld) -> None:
    one = world(settings={"controller.failures": 9, "controller.retry_seconds": 0})
    one.rounds()
    for number in range(1, 7):
        one.pod(f"r-tokenizer-{number}", ran(75))
        one.ended(f"r-tokenizer-{number}", reason="PodFailurePolicy")
        one.rounds(2)
    assert [job for job in one.jobs if "tokenizer" in job] == [f"r-tokenizer-{number}" for number in (4, 5, 6, 7)]
    assert [name for name in one.server.names("services") if "tokenizer" in name] == ["r-tokenizer-7"]


def test_a_bad_image_is_said_at_once_and_ends_the_run_after_its_deadline(world: MakeWorld) -> None:
    one = world(settings={"controller.mistake_minutes": 2})
    one.rounds()
    one.node()
    one.pod(
        "r-tokenizer-1",
        held("ImagePullBackOff", "not found"),
        0,
        "node-0",
        placed(0) | {"lastTransitionTime": timestamp(one.now)},
    )
    one.rounds()
    sentence = (
        f"image {IMAGE} cannot be pulled (not found): push it (`make push`), or correct image.repository and image.tag"
    )
    assert f"tokenizer: {sentence}" in one.status["message"]
    assert (one.status["phase"], f"tokenizer: {sentence}" in one.events("Waiting")) == ("Starting", True)
    one.rounds(3, seconds=60)
    assert (one.status["phase"], one.status["message"]) == ("Failed", f"stage tokenizer: {sentence}")
    assert "r-tokenizer-1" not in one.jobs, "nothing is left waiting"
    one.change(image="registry:5000/nanocode:2")
    one.rounds(2)
    assert "r-tokenizer-2" in one.jobs, "a spec that was corrected is tried"


def test_suspending_ends_the_pods_and_resuming_goes_on(world: MakeWorld) -> None:
    one = world()
    one.rounds()
    one.node()
    pod = one.pod("r-tokenizer-1", running())
    one.change(suspend=True)
    one.rounds()
    assert one.jobs == []
    pod["metadata"]["deletionTimestamp"] = timestamp(one.now)
    one.rounds()
    assert one.end_of("tokenizer") is None, "its pod still saves"
    assert recorded(one.directory, "tokenizer", 1, ExitRecord) is None
    left = timestamp(one.now)
    saved = {"exitCode": 75, "finishedAt": left, "message": "saved at step 7"}
    pod["status"] |= {"phase": "Failed", "containerStatuses": [{"name": "stage", "state": {"terminated": saved}}]}
    one.rounds()
    ended = recorded(one.directory, "tokenizer", 1, ExitRecord)
    assert ended is not None and (ended.code, timestamp(ended.at), ended.reason) == (75, left, "saved at step 7")
    del one.server.objects["pods", pod["metadata"]["name"]]
    one.rounds(2)
    assert one.end_of("tokenizer").ending is Ending.STOPPED  # type: ignore[union-attr]
    assert one.status["phase"] == "Suspended"
    one.change(suspend=False)
    one.rounds(2)
    assert one.jobs == ["r-synth-2", "r-tokenizer-2"]


def test_a_deleted_run_is_let_go_when_nothing_lives_any_more(world: MakeWorld) -> None:
    one = world()
    one.rounds()
    one.node()
    pod = one.pod("r-tokenizer-1", running())
    one.cluster.delete("trainingruns", "r")
    one.rounds(3)
    assert (one.jobs, one.status["phase"]) == ([], "Releasing")
    del one.server.objects["pods", pod["metadata"]["name"]]
    one.rounds(3)
    assert one.server.names("trainingruns") == []


def test_a_deleted_run_whose_directory_is_broken_is_let_go_too(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world()
    one.rounds()
    one.directory.store.write("config/2.yaml", b"preset: [")
    one.cluster.delete("trainingruns", "r")
    one.rounds(2)
    assert one.status["phase"] == "Releasing"
    one.rounds(14)
    assert (one.server.names("trainingruns"), one.jobs) == ([], [])


def test_a_pod_that_cannot_end_because_its_node_is_gone_is_deleted_by_force(world: MakeWorld) -> None:
    one = world()
    one.rounds()
    pod = one.pod("r-tokenizer-1", running(), 0, "node-9")
    pod["metadata"]["deletionTimestamp"] = timestamp(one.now)
    one.rounds(2)
    assert one.events("Preempted") == ["attempt 1 of tokenizer: node node-9 is gone"]
    one.rounds(7)
    assert one.server.names("pods") == []
    assert "r-tokenizer-2" in one.jobs


def test_a_worker_on_a_node_that_is_gone_is_removed_so_that_its_job_replaces_it(world: MakeWorld) -> None:
    one = world()
    one.rounds()
    one.node("node-0")
    one.node("node-1", "Unknown", ago=60)
    one.pod("r-synth-1", running(), 0, "node-0")
    one.pod("r-synth-1", running(), 1, "node-1")
    one.rounds()
    assert one.server.names("pods") == ["r-synth-1-0-abcde"]
    assert one.end_of("synth") is None


def test_a_stage_that_is_done_is_over_though_some_of_its_workers_found_no_node(world: MakeWorld) -> None:
    one = world()
    one.rounds()
    one.node()
    one.pod("r-synth-1", ran(0), 0, "node-0", phase="Succeeded")
    one.pod("r-synth-1", {}, 1, "", homeless(0))
    one.rounds()
    assert one.end_of("synth") is None
    one.publish("synth")
    one.rounds(6)
    assert "r-synth-1" not in one.jobs, "what waits for a node has nothing to do there"
    assert one.end_of("synth").ending is Ending.DONE  # type: ignore[union-attr]
    assert one.status["failures"] == 0


def test_a_wrong_setting_is_a_condition_and_its_correction_begins_the_run(world: MakeWorld) -> None:
    one = world(settings={"pretrain.stepz": 3})
    one.rounds(3)
    assert (one.status["phase"], one.jobs) == ("Failed", [])
    assert one.status["message"] == "no setting is called pretrain.stepz: did you mean pretrain.steps?"
    assert one.events("Refused") == [one.status["message"]]
    one.change(settings={"pretrain.stepz": None})
    one.rounds(2)
    assert (one.status["phase"], one.status["message"]) == (
        "Starting",
        "tokenizer: its pods are being made; synth: its pods are being made",
    )


def test_a_change_that_is_refused_leaves_the_run_as_it_was(world: MakeWorld) -> None:
    one = world()
    one.rounds(2)
    one.change(settings={"model.width": 256})
    one.rounds(2)
    assert one.status["phase"] == "Starting"
    assert "model.width 256 is another model than this run's (128)" in one.status["message"]
    assert one.status["observedGeneration"] == 2


def test_a_bucket_that_refuses_is_said_and_asked_again(world: MakeWorld, tmp_path: Path) -> None:
    one = world()
    (tmp_path / "run").write_text("a file where the folder should be")
    one.rounds(2)
    assert (one.status["phase"], one.jobs) == ("Unreachable", [])
    assert "the run directory gives no answer" in one.status["message"]
    (tmp_path / "run").unlink()
    one.rounds(2)
    assert one.status["phase"] == "Starting"


@pytest.mark.parametrize(
    ("text", "said"),
    [("preset: [", "config/2.yaml"), ("preset: demo\nnewer: 1\n", "newer")],
    ids=["no YAML", "a key of another version"],
)
def test_a_configuration_that_cannot_be_read_fails_the_run_in_its_own_words(
    world: MakeWorld, text: str, said: str
) -> None:
    one = world()
    one.rounds()
    one.directory.store.write("config/2.yaml", text.encode())
    one.rounds()
    assert one.status["phase"] == "Failed" and said in one.status["message"]
    assert "gives no answer" not in one.status["message"] and one.events("Unreachable") == []
    conditions = {each["type"]: each["status"] for each in one.status["conditions"]}
    assert (conditions["Failed"], conditions["Reachable"]) == ("True", "True")
    one.directory.store.write("config/3.yaml", one.directory.store.read("config/1.yaml"))
    one.rounds()
    assert one.status["phase"] == "Starting"


def test_a_status_is_written_at_most_every_ten_seconds_and_not_over_a_newer_version(world: MakeWorld) -> None:
    one = world()
    one.rounds(20, seconds=2)
    written = one.server.requests.count(("patch", "trainingruns/status"))
    assert written <= 4
    one.rounds(3)
    assert one.server.requests.count(("patch", "trainingruns/status")) == written, "it says nothing new"
    one.server.trouble = lambda verb, what: 409 if verb == "patch" else None
    before = dict(one.status)
    one.done("tokenizer")
    one.rounds(2)
    assert one.status == before
    one.server.trouble = lambda verb, what: None
    one.rounds()
    assert one.status["stages"][0]["state"] == "done"


def test_an_api_server_that_answers_nothing_costs_a_round_and_no_more(world: MakeWorld) -> None:
    one = world()
    one.rounds()
    one.server.trouble = lambda verb, what: 503
    assert one.controller.round() == "unreachable"
    one.server.trouble = lambda verb, what: 503 if what == "pods" else None
    one.rounds(2)
    assert len(one.directory.attempts("tokenizer")) == 1
    one.server.trouble = lambda verb, what: None
    assert one.controller.round() == "decided"


def test_without_permission_for_events_the_run_goes_on(world: MakeWorld) -> None:
    one = world()
    one.server.trouble = lambda verb, what: 403 if what == "events" else None
    one.rounds()
    assert one.jobs == ["r-synth-1", "r-tokenizer-1"]


def test_a_retry_of_a_stage_runs_it_again(world: MakeWorld) -> None:
    one = world()
    one.rounds()
    one.done("tokenizer")
    one.rounds(2)
    before = stage_digests(read_settings(one.directory), one.directory)
    one.change(retry={"tokenizer": 1})
    one.rounds(3)
    after = stage_digests(read_settings(one.directory), one.directory)
    assert before["tokenizer"] != after["tokenizer"]
    assert "r-tokenizer-2" in one.jobs


def test_the_end_waits_until_the_controller_has_let_the_run_go(
    world: MakeWorld, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world()
    one.rounds()
    monkeypatch.setattr(end.time, "sleep", lambda seconds: one.rounds())
    assert end.end(one.cluster, "r", 60) == ""
    assert f"what it made stays in {one.directory.store.url}" in capsys.readouterr().out
    assert one.jobs == []


def test_the_end_of_a_run_without_a_controller_says_where_to_look(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world()
    one.rounds()
    monkeypatch.setattr(end.time, "sleep", lambda seconds: None)
    assert "`kubectl logs deployment/r-controller` says what it waits for" in end.end(one.cluster, "r", 0.2)


def test_the_check_finds_what_is_missing(world: MakeWorld, server: ApiServer) -> None:
    one = world()
    assert [good for good, _ in check(one.cluster, "r")] == [True] * 6
    del server.objects["configmaps", "r-templates-0badcafe"]["data"]["sft.yaml"]
    told = [line for good, line in check(one.cluster, "r") if not good]
    assert len(told) == 1
    assert told[0].startswith("templates: ConfigMap r-templates-0badcafe has no Job and Service for sft")


def test_metrics_and_health_are_answered(world: MakeWorld) -> None:
    one = world()
    clock = [0.0]
    one.health = Health(lambda: clock[0])
    one.controller = one.another_controller()
    server = serve(one.health, 0, "127.0.0.1")

    def ask(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    try:
        assert (ask("/healthz")[0], ask("/readyz")[0], ask("/other")[0]) == (200, 503, 404)
        one.rounds()
        assert ask("/readyz")[0] == 200
        text = ask("/metrics")[1]
        assert 'nanocode_controller_actions_total{kind="Begin"} 2.0' in text
        assert f'nanocode_stage_state{{run="{one.directory.store.url}",stage="tokenizer",state="starting"}} 1.0' in text
        clock[0] += SECONDS_STUCK + 1
        assert ask("/healthz")[0] == 503
    finally:
        server.shutdown()
        server.server_close()


def test_two_hosts_are_told_where_the_first_one_is(world: MakeWorld) -> None:
    one = world(hosts=2)
    one.rounds()
    for stage in ("tokenizer", "corpus", "synth"):
        one.done(stage) if f"r-{stage}-1" in one.jobs else None
        one.rounds(2)
    env: Any = one.server.objects["jobs", "r-pretrain-1"]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "JAX_COORDINATOR_ADDRESS", "value": "r-pretrain-1-0.r-pretrain-1:8482"} in env
