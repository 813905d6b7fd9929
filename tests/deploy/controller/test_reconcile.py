"""One round of the loop, where what is written and what runs do not agree."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.controller.backend import Unreachable
from deploy.controller.observed import Process, Seen, Slice
from deploy.controller.reconcile import STRANGER_SECONDS, Reconciler
from deploy.controller.record import RunJournal
from nanocode.config.settings import load
from nanocode.run.attempts import End, Ending, recorded
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.intent import change_intent
from nanocode.storage.objects import LocalStore

KEY = ("tokenizer", 7)


class Machine:
    """A backend and a provisioner: process 7 of the tokenizer runs, and who is killed is remembered."""

    def __init__(self) -> None:
        self.killed: list[tuple[str, int]] = []

    def observe(self, live: Sequence[tuple[str, int]] = ()) -> dict[tuple[str, int], Seen]:
        return {KEY: Seen(Process.RUNNING)}

    def start(self, stage: str, attempt: int, slice: str | None) -> None: ...
    def stop(self, stage: str, attempt: int) -> None: ...
    def forget(self, stage: str, attempt: int) -> None: ...

    def kill(self, stage: str, attempt: int) -> None:
        self.killed.append((stage, attempt))


class NoSlices:
    def observe(self) -> dict[str, Slice]:
        return {}

    def request(self, name: str, zone: str) -> None: ...
    def release(self, name: str) -> None: ...


@pytest.fixture
def journal(tmp_path: Path) -> RunJournal:
    run = RunDirectory(LocalStore(tmp_path / "run"))
    run.add_config(
        load("demo", [f"corpus.sources={tmp_path}", "controller.seconds_between_looks=10"], environment={}).to_yaml()
    )
    return RunJournal(run)


def test_a_process_whose_claim_came_after_our_reading_is_left_alone(journal: RunJournal) -> None:
    machine = Machine()
    controller = Reconciler(journal, machine, NoSlices(), lambda tell: None)
    controller.once()
    journal.claim(*KEY, "a" * 32, None)
    controller.once(), controller.once()
    assert machine.killed == []


def test_a_process_that_nobody_claims_is_killed_once_our_reading_cannot_be_late_any_more(journal: RunJournal) -> None:
    machine, now = Machine(), [0.0]
    controller = Reconciler(journal, machine, NoSlices(), lambda tell: None, clock=lambda: now[0])
    for now[0] in (0.0, 1.0, STRANGER_SECONDS):
        controller.once()
    assert machine.killed == []
    now[0] += 1
    controller.once()
    assert machine.killed == [KEY]


def test_a_step_of_the_clock_makes_no_process_a_stray(journal: RunJournal) -> None:
    machine, now, uptime = Machine(), [0.0], [0.0]
    controller = Reconciler(journal, machine, NoSlices(), lambda tell: None, lambda: now[0], lambda: uptime[0])
    controller.once()
    now[0], uptime[0] = 300.0, 10.0
    controller.once()
    assert machine.killed == []
    now[0], uptime[0] = 301.0 + STRANGER_SECONDS, 11.0 + STRANGER_SECONDS
    controller.once()
    assert machine.killed == [KEY]


def test_a_process_whose_attempt_has_ended_is_killed_at_once(journal: RunJournal) -> None:
    machine = Machine()
    journal.claim(*KEY, "a" * 32, None)
    journal.end(*KEY, End(ending=Ending.FAILED, reason="", at=1.0, progress=0))
    Reconciler(journal, machine, NoSlices(), lambda tell: None).once()
    assert machine.killed == [KEY]


class Quick(Machine):
    """The attempt publishes its marker, and ends, between our reading and our looking."""

    def __init__(self, run: RunDirectory, digest: str) -> None:
        super().__init__()
        self._run, self._digest = run, digest

    def observe(self, live: Sequence[tuple[str, int]] = ()) -> dict[tuple[str, int], Seen]:
        if live:
            now = datetime.now(UTC)
            marker = Marker(
                stage="tokenizer", input_digest=self._digest, attempt=1, outputs={}, metrics={}, started=now, ended=now
            )
            self._run.finish("tokenizer", marker)
        return {key: Seen(Process.EXITED, 0) for key in live}


def test_who_is_done_between_two_looks_has_not_failed(journal: RunJournal) -> None:
    run = journal._run
    digest = next(stage.digest for stage in journal.read().stages if stage.name == "tokenizer")
    journal.claim("tokenizer", 1, digest, None)
    Reconciler(journal, Quick(run, digest), NoSlices(), lambda tell: None).once()
    end = recorded(run, "tokenizer", 1, End)
    assert end is not None and end.ending is Ending.DONE


class Mute(RunJournal):
    """Cannot note for so many tries that anything is told."""

    tries = 2

    def told(self, key: str) -> bool:
        self.tries -= 1
        if self.tries >= 0:
            raise Unreachable("the bucket gives no answer")
        return super().told(key)


def test_what_could_not_be_noted_is_told_again_and_once(journal: RunJournal) -> None:
    change_intent(journal._run, stages=("corpus",))  # which never becomes possible: that is news
    heard: list[str] = []
    controller = Reconciler(Mute(journal._run), Idle(), NoSlices(), lambda tell: heard.append(tell.text))
    assert controller.once().resting
    controller.tell_again()
    assert (heard, len(controller.untold)) == ([], 1)
    controller.tell_again(), controller.tell_again(), controller.once()
    assert (len(heard), controller.untold) == (1, [])
    assert heard[0].startswith("the run has stopped: stage corpus")


class OneSlice(NoSlices):
    """Shows one slice; a test says what it is like."""

    def __init__(self) -> None:
        self.shown: Slice | None = None

    def observe(self) -> dict[str, Slice]:
        return {} if self.shown is None else {self.shown.name: self.shown}


def controller_of_one_slice(journal: RunJournal, provisioner: OneSlice, now: list[float]) -> Reconciler:
    return Reconciler(journal, Idle(), provisioner, lambda tell: None, clock=lambda: now[0])


class Idle(Machine):
    def observe(self, live: Sequence[tuple[str, int]] = ()) -> dict[tuple[str, int], Seen]:
        return {}


def life_of(journal: RunJournal, provisioner: OneSlice, now: list[float], told: bool) -> tuple[float, float]:
    """A slice is there from 1003 to 2004, and somebody looks every 10 s: what is written of it."""
    journal.request("slice-1", "east", 4.0, 900.0)
    controller = controller_of_one_slice(journal, provisioner, now)
    for now[0] in range(900, 2100, 10):
        there = 1003 <= now[0] < 2004
        if there:
            provisioner.shown = Slice("slice-1", "east", usable=True, since=1003.0 if told else None)
        elif told and now[0] >= 2004:
            provisioner.shown = Slice("slice-1", "east", present=False, since=1003.0, until=2004.0)
        else:
            provisioner.shown = Slice("slice-1", "east") if now[0] < 1003 else None
        controller.once()
    (one,) = journal.read().slices
    assert one.ready is not None
    assert one.gone is not None
    return one.ready, one.gone


def test_what_the_cloud_tells_of_a_slice_is_written_exactly(journal: RunJournal) -> None:
    assert life_of(journal, OneSlice(), [0.0], told=True) == (1003.0, 2004.0)


def test_what_it_does_not_tell_is_rounded_up_to_a_look_at_both_ends(journal: RunJournal) -> None:
    assert life_of(journal, OneSlice(), [0.0], told=False) == (1000.0, 2010.0)


def test_a_new_controller_knows_when_the_one_before_it_looked(journal: RunJournal, tmp_path: Path) -> None:
    provisioner, now = OneSlice(), [1000.0]
    journal.request("slice-1", "east", 4.0, 900.0)
    provisioner.shown = Slice("slice-1", "east")
    controller_of_one_slice(journal, provisioner, now).once()
    provisioner.shown, now[0] = Slice("slice-1", "east", usable=True), 1030.0
    again = RunJournal(RunDirectory(LocalStore(tmp_path / "run")))
    controller_of_one_slice(again, provisioner, now).once()
    assert again.read().slices[0].ready == 1000.0, "it may have come as soon as nobody looked any more"
