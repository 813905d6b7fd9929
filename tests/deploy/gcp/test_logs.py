"""`make logs`, against a kubectl that stands in: pods that come late, are replaced, and connections that drop."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.gcp import logs, pod_logs
from deploy.gcp.deployment import Deployment
from deploy.gcp.steps import StepFailed
from nanocode.run.attempts import End, Ending, record
from nanocode.run.directory import RunDirectory
from nanocode.run.segments import SegmentWriter
from nanocode.storage.objects import StorageError, open_store
from tests.deploy.gcp.conftest import ENV, Cloud

pytestmark = pytest.mark.slow

A, B, C = (f"2026-11-30T18:00:0{second}.123456789Z" for second in range(3))
"""Times as the kubelet writes them."""


class Following:
    """`make logs STAGE=pretrain`, while the test plays the cluster."""

    def __init__(self, cloud: Cloud, folder: Path, read: Callable[[], str]) -> None:
        self.cloud, self._read, self.said = cloud, read, ""
        self.run = RunDirectory(open_store(str(folder / "run")))
        self.result: int | BaseException | None = None
        self.state("running")
        self.pods()

    def state(self, state: str) -> None:
        stages = [{"name": "pretrain", "state": state}]
        said = {"spec": {"runDirectory": self.run.store.url}, "status": {"stages": stages}}
        self.cloud.answer("get", "trainingrun", out=said)

    def pods(self, **phases: str) -> None:
        """Those of attempt 3, by name."""
        labels = {"nanocode.dev/attempt": "3"}
        items = [
            {"metadata": {"name": name, "labels": labels}, "status": {"phase": phase}} for name, phase in phases.items()
        ]
        self.cloud.answer("get", "pods", out={"items": items})

    def attempt(self, number: int, said: str, ended: bool) -> None:
        """What the bucket has of one."""
        self.run.claim_number("pretrain", number, "d" * 32, "controller")
        with SegmentWriter(self.run.store, "pretrain", number, "log", "keeper-0") as log:
            log.write({"time": 10.0, "event": said, "stream": "stderr"})
        if ended:
            record(self.run, "pretrain", number, End(ending=Ending.PREEMPTED, reason="", at=20.0, progress=0))

    def begin(self) -> None:
        to = Deployment.model_validate({key.lower(): value for key, value in ENV.items()})

        def follow() -> None:
            try:
                self.result = logs.follow(to, "mine", "pretrain")
            except StepFailed as failure:
                self.result = failure

        self._thread = threading.Thread(target=follow)
        self._thread.start()

    def until(self, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not seen():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def until_said(self, *lines: str) -> None:
        """The lines so far are these."""

        def seen() -> bool:
            self.said += self._read()
            return len(self.said.splitlines()) >= len(lines)

        self.until(seen)
        assert self.said.splitlines() == list(lines)

    def asked(self, *words: str) -> list[list[str]]:
        return [argv for argv in self.cloud.asked() if set(words) <= set(argv)]

    def until_asked_again(self, *words: str) -> None:
        """So often that what was found has been acted upon."""
        before = len(self.asked(*words))
        self.until(lambda: len(self.asked(*words)) >= before + 3)

    def end(self) -> int | BaseException | None:
        """The attempt is over; what `make logs` comes to."""
        self.state("done")
        return self.wait()

    def wait(self) -> int | BaseException | None:
        self._thread.join(60)
        assert not self._thread.is_alive(), "it goes on for ever"
        self.said += self._read()
        return self.result


@pytest.fixture
def following(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Following]:
    monkeypatch.setenv("PATH", str(cloud.programs))
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_LOOKS", 0.05)
    one = Following(cloud, tmp_path, lambda: capsys.readouterr().out)
    yield one
    (cloud.programs / "held").unlink(missing_ok=True)
    cloud.answer("get", err="(NotFound)", code=1)
    one.wait()


def test_logs_are_shown_over_attempts_from_the_bucket_and_from_pods(cloud: Cloud, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = RunDirectory(open_store(str(folder)))
    for attempt in (1, 2):
        run.claim_number("pretrain", attempt, "d" * 32, "controller")
    with SegmentWriter(run.store, "pretrain", 1, "log", "keeper-1") as log:
        log.write({"time": 20.0, "event": "second", "stream": "stderr"})
    with SegmentWriter(run.store, "pretrain", 1, "log", "keeper-0") as log:
        log.write({"time": 10.0, "event": "first", "stream": "stderr"})
    with SegmentWriter(run.store, "pretrain", 1, "log", "0") as log:
        log.write({"time": 10.0, "event": "the same, as a record"})
    states = {"stages": [{"name": "pretrain", "state": "done"}]}
    cloud.answer("get", "trainingrun", out={"spec": {"runDirectory": str(folder)}, "status": states})
    cloud.answer("get", "pods", out={"items": []})
    cloud.answer("logs", out="live")
    done = cloud.run("logs", "--name", "mine", "pretrain")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "--- pretrain, attempt 1",
        "1970-01-01 00:00:10 first",
        "1970-01-01 00:00:20 second",
        "--- pretrain, attempt 2",
    ]


def test_hosts_that_come_later_and_the_worker_that_replaces_one_are_followed_each_once(following: Following) -> None:
    cloud = following.cloud
    cloud.hold()
    for pod in ("one", "two", "three"):
        cloud.answer("logs", pod, out=f"{A} {pod} begins", held="held")
        cloud.answer("logs", pod, f"--since-time={A}", out=f"{A} {pod} begins\n{B} {pod} ends")
    following.pods(one="Running", two="Pending")
    following.begin()
    following.until_said("--- pretrain, attempt 3", "[one] one begins")
    following.until_asked_again("get", "pods")
    assert not following.asked("logs", "two"), "it has nothing to say yet"
    following.pods(one="Running", two="Running")
    following.until_said("--- pretrain, attempt 3", "[one] one begins", "[two] two begins")
    following.pods(one="Running", two="Failed", three="Running")
    begun = ("--- pretrain, attempt 3", "[one] one begins", "[two] two begins", "[three] three begins")
    following.until_said(*begun)
    following.until_asked_again("get", "pods")
    assert [argv[4] for argv in following.asked("logs")] == ["one", "two", "three"], "one connection each"
    cloud.release()
    following.pods(one="Succeeded", two="Failed", three="Succeeded")
    assert following.end() == 0
    assert following.said.splitlines()[:4] == list(begun)
    assert sorted(following.said.splitlines()[4:]) == ["[one] one ends", "[three] three ends", "[two] two ends"]


def test_where_a_connection_drops_the_next_one_goes_on_and_no_line_is_lost_or_said_twice(following: Following) -> None:
    cloud = following.cloud
    cloud.answer("logs", "one", out=f"{A} first\n{B} sec", err="error: http2: connection lost", code=1, held="torn")
    cloud.answer("logs", "one", f"--since-time={A}", out=f"{A} first\n{B} second\nfailed to watch the file")
    cloud.answer("logs", "one", f"--since-time={B}", out=f"{B} second\n{C} third")
    cloud.answer("logs", "one", f"--since-time={C}", out=f"{C} third")
    following.pods(one="Running")
    following.begin()
    lines = ("--- pretrain, attempt 3", "[one] first", "[one] second", "[one] failed to watch the file", "[one] third")
    following.until_said(*lines)
    following.until_asked_again("logs", f"--since-time={C}")
    following.pods(one="Succeeded")
    assert following.end() == 0
    assert following.said.splitlines() == list(lines)


def test_what_a_pod_said_last_is_read_over_connections_that_drop_after_its_end(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_logs, "TRIES", 1000)
    cloud, dropped = following.cloud, {"err": "error: http2: connection lost", "code": 1}
    cloud.answer("logs", "one", out=f"{A} first", **dropped)
    cloud.answer("logs", "one", f"--since-time={A}", **dropped, held="torn")
    following.pods(one="Running")
    following.begin()
    following.until_said("--- pretrain, attempt 3", "[one] first")
    following.pods(one="Failed")
    following.until_asked_again("get", "pods")
    following.until_asked_again("logs", f"--since-time={A}")
    cloud.answer("logs", "one", f"--since-time={A}", out=f"{A} first\n{B} why it failed")
    following.until_said("--- pretrain, attempt 3", "[one] first", "[one] why it failed")
    assert following.end() == 0
    assert not following.asked("logs", f"--since-time={B}"), "it was read to its end"


def test_an_attempt_is_shown_once_the_bucket_answers(following: Following, monkeypatch: pytest.MonkeyPatch) -> None:
    following.attempt(2, "preempted", ended=True)
    real, asked = logs.read_segments, list[object]()

    def silent(*what: Any) -> Iterator[dict[str, Any]]:
        asked.append(what)
        if len(asked) < 3:
            raise StorageError("the bucket gives no answer")
        return real(*what)

    monkeypatch.setattr(logs, "read_segments", silent)
    following.state("done")
    following.begin()
    following.until_said("--- pretrain, attempt 2", "1970-01-01 00:00:10 preempted")
    assert following.end() == 0


def test_a_look_without_an_answer_is_no_news(following: Following) -> None:
    cloud = following.cloud
    following.attempt(3, "what the bucket has of it", ended=False)
    cloud.answer("logs", "one", out=f"{A} first")
    cloud.answer("logs", "one", f"--since-time={A}", out=f"{A} first")

    def no_answer() -> None:
        for what in ("pods", "trainingrun"):
            cloud.answer("get", what, err="Unable to connect to the server: i/o timeout", code=1)
            following.until_asked_again("get", "trainingrun")
            following.state("running")

    following.pods(one="Pending")
    following.begin()
    following.until_asked_again("get", "pods")
    no_answer()
    following.pods(one="Running")
    following.until_said("--- pretrain, attempt 3", "[one] first")
    no_answer()
    following.pods(one="Running")
    cloud.answer("logs", "one", f"--since-time={A}", out=f"{A} first\n{B} second")
    following.until_said("--- pretrain, attempt 3", "[one] first", "[one] second")
    following.pods()
    assert following.end() == 0
    assert following.said.splitlines() == ["--- pretrain, attempt 3", "[one] first", "[one] second"]


def test_an_attempt_whose_pods_have_yet_to_come_is_followed_when_they_do(following: Following) -> None:
    following.attempt(2, "preempted", ended=True)
    following.attempt(3, "what the bucket has of it", ended=False)
    following.cloud.answer("logs", "one", out=f"{A} first")
    following.begin()
    before = ("--- pretrain, attempt 2", "1970-01-01 00:00:10 preempted")
    following.until_said(*before)
    following.pods(one="Pending")
    following.until_asked_again("get", "pods")
    following.pods(one="Running")
    following.until_said(*before, "--- pretrain, attempt 3", "[one] first")
    following.pods()
    assert following.end() == 0


@pytest.mark.parametrize(
    ("trouble", "looks"),
    [("Error from server (NotFound): trainingruns", 1), ("Unable to connect to the server: i/o timeout", 4)],
    ids=["the run is gone", "no answer for minutes"],
)
def test_it_ends_when_there_is_nothing_to_wait_for(
    following: Following, monkeypatch: pytest.MonkeyPatch, trouble: str, looks: int
) -> None:
    monkeypatch.setattr(logs, "LOOKS_MISSED_AT_MOST", 3)
    following.begin()
    following.until_asked_again("get", "pods")
    following.cloud.answer("get", "trainingrun", err=trouble, code=1)
    answered = len(following.asked("get", "pods"))
    assert trouble in str(following.wait())
    asked = len(following.asked("get", "trainingrun")) - 1  # the first was for the bucket
    assert asked - looks in (answered, answered + 1), "one may have been under way"
