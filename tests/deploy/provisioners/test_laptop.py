"""A run from a laptop on slices of the Cloud TPU API: the real controller, the real client, the real startup script."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.controller.record import RunJournal
from nanocode.run.attempts import Ending
from nanocode.run.exits import Exit
from nanocode.run.intent import change_intent
from tests.deploy.local.world import STAGE, World, until
from tests.deploy.provisioners.site import IMAGE, A, B, Cloud

pytestmark = pytest.mark.slow

STAGES = ("tokenizer", "corpus", "pretrain")
SETTINGS = (
    "provisioner=queued-resource",
    "cloud.project=lab",
    f"cloud.image={IMAGE}",
    f"controller.zones=[{A},{B}]",
    f"controller.dollars_per_slice_hour={{{A}: 4.32, {B}: 5.0}}",
    "controller.termination_seconds=10",
)


class Laptop(World):
    """A run whose pretrain stage needs a slice, and the cloud."""

    def __init__(self, folder: Path, *settings: str, **plays: str) -> None:
        super().__init__(folder, *SETTINGS, *settings, **plays)
        (folder / "jobs/pretrain.py").write_text(STAGE.format("pretrain"))
        (folder / "plays/pretrain").write_text(plays.get("pretrain", "done"))
        change_intent(self.run, stages=STAGES)
        self.cloud = Cloud(folder / "cloud", folder)

    def begin(self, *command: str) -> subprocess.Popen[str]:
        """The controller, or one that this command runs."""
        command = command or ("deploy.local.loop", "--run-dir", self.run.store.url)
        return self.start(*command, **self.cloud.environment)

    def close(self) -> None:
        super().close()
        self.cloud.close()

    def facts(self, name: str) -> dict[str, float]:
        """Of a slice, by the journal."""
        found = {}
        for child in self.run.store.children(f"slices/{name}"):
            found[child.removesuffix(".json")] = json.loads(self.run.store.read(f"slices/{name}/{child}"))["at"]
        return found


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Callable[..., Laptop]]:
    made: list[Laptop] = []

    def make(*settings: str, **plays: str) -> Laptop:
        made.append(Laptop(tmp_path / f"laptop-{len(made)}", *settings, **plays))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_run_goes_on_elsewhere_when_its_slice_is_taken_away_and_leaves_nothing_behind(
    laptop: Callable[..., Laptop],
) -> None:
    one = laptop(pretrain="wait done")
    controller = one.begin()
    one.pid(stage="pretrain")
    assert one.cloud.world.preempt(A) is not None
    _, errors = controller.communicate(timeout=90)
    assert controller.returncode == Exit.DONE, errors
    assert all(one.run.done(stage) is not None for stage in STAGES)
    first, second = one.end(1, "pretrain"), one.end(2, "pretrain")
    assert first is not None and second is not None
    assert (first.ending, second.ending) == (Ending.PREEMPTED, Ending.DONE)
    assert first.reason == "told to leave; saved" or "taken away" in first.reason
    assert one.cloud.is_empty()
    # The zone that has just lost a slice comes second.
    assert [holding.zone for holding in one.cloud.world.ledger] == [A, B]
    # What the run counts is what the cloud bills, within a look or two and what a deletion takes.
    for name, holding in zip(("slice-1", "slice-2"), one.cloud.world.ledger, strict=True):
        facts = one.facts(name)
        counted = facts["gone"] - facts["ready"]
        assert holding.end is not None and abs(counted - (holding.end - holding.begin)) < 6


def test_told_to_leave_it_saves_and_gives_its_slice_back(laptop: Callable[..., Laptop]) -> None:
    one = laptop(pretrain="wait")
    controller = one.begin()
    one.pid(stage="pretrain")
    controller.send_signal(signal.SIGINT)
    _, errors = controller.communicate(timeout=60)
    assert controller.returncode == Exit.PREEMPTED, errors
    exit = one.exit(1, "pretrain")
    assert exit is not None and (exit.code, exit.reason) == (Exit.PREEMPTED, "told to leave; saved")
    assert one.cloud.is_empty()


def test_told_to_leave_without_a_network_it_names_its_slice_and_gives_it_back_later(
    laptop: Callable[..., Laptop],
) -> None:
    one = laptop(pretrain="wait")
    controller = one.begin("tests.deploy.local.outage", one.run.store.url)
    one.pid(stage="pretrain")
    (one.folder / "down").touch()
    controller.send_signal(signal.SIGINT)
    time.sleep(3)
    assert controller.poll() is None and not one.cloud.is_empty()
    (one.folder / "down").unlink()
    _, errors = controller.communicate(timeout=60)
    assert controller.returncode == Exit.PREEMPTED, errors
    assert f"slice-1 in {A} may still be there and cost: it is given back when there is an answer" in errors
    assert one.cloud.is_empty()


def test_without_a_network_a_third_ctrl_c_leaves_a_slice_behind_and_says_that_it_costs(
    laptop: Callable[..., Laptop],
) -> None:
    one = laptop("cloud.unattended_minutes=0.25", pretrain="wait")
    controller = one.begin("tests.deploy.local.outage", one.run.store.url)
    one.pid(stage="pretrain")
    (one.folder / "down").touch()
    for _ in range(3):
        assert controller.poll() is None
        controller.send_signal(signal.SIGINT)
        time.sleep(1.5)
    _, errors = controller.communicate(timeout=20)
    last = errors.splitlines()[-1]
    assert f"the bucket gives no answer; slice-1 in {A} may still be there and cost" in last
    assert "deletes itself 0.25 minutes after the last controller" in last
    assert not one.cloud.is_empty()
    until(one.cloud.is_empty, "the slice has deleted itself", 60)


def test_while_the_laptop_sleeps_its_slice_goes_on(laptop: Callable[..., Laptop]) -> None:
    one = laptop(pretrain="show done")
    controller = one.begin()
    one.pid(stage="pretrain")
    controller.send_signal(signal.SIGSTOP)
    one.cloud.vms[next(iter(one.cloud.vms))][0].warn()  # the stage saves and ends while nobody looks
    time.sleep(4)
    controller.send_signal(signal.SIGCONT)
    _, errors = controller.communicate(timeout=60)
    assert controller.returncode == Exit.DONE, errors
    assert len(one.cloud.world.ledger) == 1, "the slice was kept for the next attempt"
    assert one.cloud.is_empty()


def test_when_the_laptop_never_wakes_up_the_slice_saves_and_deletes_itself(laptop: Callable[..., Laptop]) -> None:
    one = laptop("cloud.unattended_minutes=0.1", pretrain="wait done")
    controller = one.begin()
    one.pid(stage="pretrain")
    controller.kill()
    began = time.monotonic()
    until(one.cloud.is_empty, "the slice is gone", 60)
    assert time.monotonic() - began < 6 + 20
    names = one.run.store.children("pretrain/attempts/1")
    assert "EXIT-0.json" in names
    # Whoever comes next finds all that has happened, and goes on.
    controller = one.begin()
    _, errors = controller.communicate(timeout=90)
    assert controller.returncode == Exit.DONE, errors
    end = one.end(1, "pretrain")
    assert end is not None and end.ending is Ending.PREEMPTED
    assert len(one.cloud.world.ledger) == 2 and one.cloud.is_empty()


def test_a_disabled_api_ends_the_command_with_the_one_that_helps(laptop: Callable[..., Laptop]) -> None:
    one = laptop()
    one.cloud.service.enabled = False
    controller = one.begin()
    _, errors = controller.communicate(timeout=60)
    assert controller.returncode == Exit.CONFIGURATION, errors
    (line,) = errors.splitlines()
    assert "`gcloud services enable tpu.googleapis.com --project=lab`" in line


def test_the_journal_of_a_run_on_slices_is_read_by_any_controller(laptop: Callable[..., Laptop]) -> None:
    one = laptop()
    controller = one.begin()
    _, errors = controller.communicate(timeout=90)
    assert controller.returncode == Exit.DONE, errors
    written = RunJournal(one.run).read()
    assert [(slice.name, slice.zone, slice.gone is not None) for slice in written.slices] == [("slice-1", A, True)]
