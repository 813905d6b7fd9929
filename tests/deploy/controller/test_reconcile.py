"""One round of the loop, where what is written and what runs do not agree."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.controller.observed import Process, Seen, Slice
from deploy.controller.reconcile import STRANGER_SECONDS, Reconciler
from deploy.controller.record import RunJournal
from nanocode.config.settings import load
from nanocode.run.attempts import End, Ending
from nanocode.run.directory import RunDirectory
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
    run.add_config(load("demo", ["corpus.sources=" + str(tmp_path)], environment={}).to_yaml())
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


def test_a_process_whose_attempt_has_ended_is_killed_at_once(journal: RunJournal) -> None:
    machine = Machine()
    journal.claim(*KEY, "a" * 32, None)
    journal.end(*KEY, End(ending=Ending.FAILED, reason="", at=1.0, progress=0))
    Reconciler(journal, machine, NoSlices(), lambda tell: None).once()
    assert machine.killed == [KEY]
