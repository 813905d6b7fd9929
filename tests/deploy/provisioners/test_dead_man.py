"""The controller of a run on node pools is killed for good: over the real client, and the fake GKE on loopback."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.controller.decision import State
from deploy.provisioners import dead_man
from deploy.provisioners.gke_client import Container
from deploy.provisioners.gke_inventory import NodePoolInventory
from deploy.provisioners.janitor import BOUND_SECONDS
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import Exit
from nanocode.storage.objects import LocalStore, StorageError
from tests.clouds.world import Code
from tests.deploy.provisioners.gke_lab import RUN, A, B, Lab
from tests.deploy.provisioners.scene import LOOK, Scene

BETWEEN = 600.0
"""Seconds between two sweeps, as the chart has it."""
PRICES = {A: 4.0, B: 5.0}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as one:
        yield one


def sweep(lab: Lab, run: RunDirectory) -> list[str]:
    """What is deleted."""
    inventory = NodePoolInventory(Container(lab.gke.where, lab.gke.client))
    return [one.found.slice for one in dead_man.sweep(run, RUN, inventory, lab.now) if one.orphan]


@pytest.mark.parametrize("shape", ["2x4", "4x4"])
def test_every_slice_is_gone_within_the_bound_and_the_next_controller_finishes_the_run(
    lab: Lab, tmp_path: Path, shape: str
) -> None:
    if shape == "4x4":
        lab.shape(machine_type="ct6e-standard-4t", topology=shape)
    one = Scene(lab, tmp_path, PRICES, "cloud.unattended_minutes=30")
    one.until_it_works()
    died = lab.now()
    while lab.names:
        lab.now.seconds += BETWEEN
        sweep(lab, one.run)
    assert 30 * 60 < lab.now() - died <= 30 * 60 + 2 * BETWEEN
    assert not lab.world.held() and not lab.world.reserved
    end = one.until(State.DONE, resting=True)
    first, second = one.slices
    assert first.gone == lab.world.ledger[0].end, "when it went is what GKE says, though nobody was there"
    assert second.zone == B, "where it was lost is asked last"
    assert end.resting and lab.names == []


def test_what_a_living_controller_holds_is_left_alone(lab: Lab, tmp_path: Path) -> None:
    one = Scene(lab, tmp_path, PRICES, "cloud.unattended_minutes=30")
    one.until_it_works()
    for number in range(40):
        one.look()
        if number % int(BETWEEN / LOOK) == 0:
            assert sweep(lab, one.run) == []
    assert lab.names


def test_another_run_s_slices_are_left_alone(lab: Lab, tmp_path: Path) -> None:
    one = Scene(lab, tmp_path, PRICES)
    one.until_it_works()
    other = lab.another("gs://bucket/other")
    other.request("slice-1", A)
    lab.now.seconds += 10 * 3600
    assert sweep(lab, one.run) == ["slice-1"]
    lab.now.seconds += BETWEEN
    assert len(lab.names) == 1 and "other" in lab.names[0]


def test_where_the_run_cannot_be_read_the_label_s_expiry_counts(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Scene(lab, tmp_path, PRICES)
    one.until_it_works()

    def silent(*which: object) -> object:
        raise StorageError("the bucket gives no answer")

    monkeypatch.setattr(dead_man, "read_use", silent)
    lab.now.seconds += 20 * 3600
    assert sweep(lab, one.run) == []
    lab.now.seconds += 4 * 3600 + BOUND_SECONDS
    assert sweep(lab, one.run) == ["slice-1"]


@pytest.fixture
def called(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The command as the chart has it begun, for a run whose directory is the test's own folder."""
    monkeypatch.setattr(dead_man, "connect", lambda cloud: Container(lab.gke.where, lab.gke.client))
    monkeypatch.setattr(dead_man, "time", SimpleNamespace(time=lab.now))
    monkeypatch.setattr(sys, "argv", ["dead_man", "--run-dir", str(tmp_path)])
    return dead_man.main


def two_slices(lab: Lab, run: Path) -> None:
    """That their controller has made, and is gone for two days: longer than their labels say."""
    pools = lab.another(LocalStore(run).url)
    pools.request("slice-1", A)
    pools.request("slice-2", B)
    lab.now.seconds += 48 * 3600 + BOUND_SECONDS


@pytest.mark.parametrize("config", [None, b"model: [", b"no_such_setting: 1\n", b"\xff"], ids=str)
def test_a_configuration_that_cannot_be_read_keeps_no_expired_slice_alive(
    lab: Lab, tmp_path: Path, called: Callable[[], int], config: bytes | None
) -> None:
    if config is not None:
        LocalStore(tmp_path).create("config/0.yaml", config)
    two_slices(lab, tmp_path)
    assert called() == Exit.DONE
    lab.now.seconds += BETWEEN
    assert lab.names == []


def test_a_pool_that_cannot_be_deleted_is_told_and_the_others_go(
    lab: Lab, tmp_path: Path, called: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    two_slices(lab, tmp_path)
    lab.world.fail("DeleteNodePool", Code.UNAVAILABLE)
    assert called() == Exit.FAILED
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("projects/")]
    assert ["not deleted (GKE gives no answer" in line for line in said] == [True, False]
    assert ": deleted, its run cannot be read" in said[1]
    lab.now.seconds += BETWEEN
    assert len(lab.names) == 1
    assert called() == Exit.DONE
    lab.now.seconds += BETWEEN
    assert lab.names == []
