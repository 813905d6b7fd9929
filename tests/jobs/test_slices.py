"""`nanocode slices`: what there is, what it costs, who uses it, and what the janitor says of it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from deploy.controller.backend import Unreachable
from deploy.provisioners import inventories
from deploy.provisioners.janitor import Found
from deploy.provisioners.labels import run_label
from jobs.cli import main
from jobs.slices import slices
from nanocode.config.settings import Settings, load
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError, Exit
from nanocode.storage.objects import LocalStore

NOW = 2_000_000_000.0
PRICES = (
    "prices.chip_hour={us-east5-a: {v6e: {spot: 0.5, on_demand: 3.0}}}",
    "prices.cluster_hour=0.25",
    "cloud.project=p",
)


class Cloud:
    def __init__(self, *there: Found, fails: Exception | None = None) -> None:
        self.there, self.fails, self.deleted = list(there), fails, list[str]()
        self.asked: Settings | None = None

    def list(self) -> Sequence[Found]:
        if self.fails is not None:
            raise self.fails
        return list(self.there)

    def delete(self, found: Found) -> None:
        self.deleted.append(found.name)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with a controller that wrote ten seconds ago, and an attempt on its first slice."""
    run = RunDirectory(LocalStore(tmp_path / "runs" / "d24"))
    run.add_config(load("demo", PRICES, environment={}).to_yaml())
    run.store.write("controller/status.json", json.dumps({"at": NOW - 10}).encode())
    wish = {"zone": "us-east1-d", "dollars_per_hour": 4.32, "at": NOW - 3600}
    run.store.write("slices/slice-1/REQUEST.json", json.dumps(wish).encode())
    run.claim_number("pretrain", 3, "a" * 32, "controller", "slice-1")
    return run


def found(of: RunDirectory, name: str, **changes: Any) -> Found:
    one = Found(
        f"projects/p/locations/us-east5-a/queuedResources/{name}",
        "queued resource",
        "us-east5-a",
        8,
        created=NOW - 9000,
        run=run_label(of.store.url),
        slice=name,
        expires=NOW - 1,
        state="ACTIVE",
    )
    return replace(one, **changes)


def ask(clouds: list[Cloud], *locations: str, as_json: bool = True, **how: Any) -> Exit:
    def opened(settings: Settings) -> list[Any]:
        for cloud in clouds:
            cloud.asked = settings
        return clouds

    options = {"janitor": False, "dry_run": False, "older_than_hours": 2.0, **how}
    return slices(locations, PRICES, as_json, open_inventories=opened, clock=lambda: NOW, **options)


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_what_there_is_costs_what_was_agreed_or_else_what_the_table_says(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud = Cloud(
        found(run, "slice-1", zone="us-east1-d"),
        found(run, "slice-2", spot=False, chips=4),
        found(run, "slice-3", state="WAITING_FOR_RESOURCES", costs=False),
        found(run, "slice-4", zone="europe-west4-a"),
    )
    assert ask([cloud], run.store.url) == Exit.DONE
    answer = shown(capsys)
    assert [one["dollars_per_hour"] for one in answer["slices"]] == [4.32, 12.0, 0.0, None]
    assert answer["dollars_per_hour"] == pytest.approx(16.32)
    assert (answer["unpriced_zones"], answer["besides_dollars_per_hour"]) == (["europe-west4-a"], 0.25)
    assert cloud.asked is not None
    assert cloud.asked.cloud.project == "p"


def test_slices_are_looked_for_wherever_a_run_has_any_left_or_could_have_one(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    other = RunDirectory(LocalStore(Path(run.store.url).parent / "d12"))
    other.add_config(load("demo", ["controller.zones=[us-east5-b]"], environment={}).to_yaml())
    run.store.write("slices/slice-2/REQUEST.json", json.dumps({"zone": "us-central1-b", "at": NOW}).encode())
    run.store.write("slices/slice-2/gone.json", b"{}")
    cloud = Cloud()
    assert ask([cloud], str(Path(run.store.url).parent)) == Exit.DONE
    assert cloud.asked is not None
    assert sorted(cloud.asked.controller.zones) == ["us-east1-d", "us-east5-b"], "no run has anything in the third"


def test_who_uses_a_slice_is_found_in_a_folder_of_runs(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(Path(run.store.url).parent)
    assert ask([Cloud(found(run, "slice-1"), found(run, "theirs", run="other-123456"))], folder) == Exit.DONE
    mine, theirs = shown(capsys)["slices"]
    assert (mine["run"], mine["stage"], mine["attempt"], mine["age_seconds"]) == (run.store.url, "pretrain", 3, 9000)
    assert (theirs["run"], theirs["stage"]) == ("other-123456", None)


def test_without_the_janitor_nothing_is_deleted_or_judged(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud = Cloud(found(run, "slice-1", run="gone-123456", expires=1.0))
    assert ask([cloud]) == Exit.DONE
    assert cloud.deleted == []
    assert "orphan" not in shown(capsys)["slices"][0]


def test_the_janitor_deletes_orphans_and_says_why(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    cloud = Cloud(found(run, "slice-1"), found(run, "slice-2", run="gone-123456", expires=NOW - 3 * 3600))
    assert ask([cloud], run.store.url, janitor=True, dry_run=True, as_json=False) == Exit.DONE
    assert "would be deleted: its run cannot be read, and its label expired 3.0 h ago" in capsys.readouterr().out
    assert cloud.deleted == []
    assert ask([cloud], run.store.url, janitor=True) == Exit.DONE
    assert cloud.deleted == [cloud.there[1].name]
    answer = shown(capsys)
    assert [(one["orphan"], one["deleted"]) for one in answer["slices"]] == [(False, False), (True, True)]
    assert answer["dollars_per_hour"] == 4.32, "what is deleted costs nothing any more"


def test_the_table_says_it_in_words(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask([Cloud(found(run, "slice-1"))], run.store.url, as_json=False) == Exit.DONE
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("slice-1"))
    told = (
        "spot queued resource",
        "us-east5-a",
        "8 v6e",
        "active",
        "2 h 30 min",
        "$4.32",
        f"{run.store.url}, pretrain 3",
    )
    assert all(words in line for words in told)
    assert "1 there, 8 chips, $4.32 an hour; cluster and CPU nodes cost $0.25 an hour besides" in printed


def test_a_run_that_cannot_be_read_is_warned_of_beside_the_answer(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    run.store.write("controller/status.json", b"damaged")
    assert ask([Cloud(found(run, "slice-1"))], run.store.url) == Exit.DONE
    printed = capsys.readouterr()
    (one,) = json.loads(printed.out)["slices"]
    assert (one["run"], one["stage"]) == (run_label(run.store.url), None)
    assert "a run cannot be read" in printed.err


def test_an_api_without_an_answer_makes_the_list_incomplete_and_is_told(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    clouds = [Cloud(fails=Unreachable("the Cloud TPU API gives no answer")), Cloud(found(run, "slice-1"))]
    assert ask(clouds, as_json=False) == Exit.FAILED
    printed = capsys.readouterr()
    assert "slice-1" in printed.out
    assert printed.err == "nanocode: the Cloud TPU API gives no answer\n"
    assert ask([Cloud(fails=ConfigurationError("the GKE API is off")), Cloud(found(run, "slice-1"))]) == Exit.DONE
    assert shown(capsys)["unknown"] == ["the GKE API is off"]


def test_missing_credentials_are_one_sentence_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = "there are no credentials of Google Cloud: `gcloud auth application-default login` makes them"

    def refused(settings: Settings) -> list[Any]:
        raise ConfigurationError(sentence)

    monkeypatch.setattr(inventories, "inventories", refused)
    assert main(["slices"]) == Exit.CONFIGURATION
    assert capsys.readouterr().err == f"nanocode: {sentence}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dry-run"], "--dry-run says what --janitor would delete: say both"),
        (["/nowhere/at/all"], "/nowhere/at/all: no run is there: name run directories, or folders of them"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventories, "inventories", lambda settings: [])
    assert main(["slices", *arguments]) == Exit.USAGE
    assert capsys.readouterr().err == f"nanocode: {told}\n"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()
