"""What the janitor deletes, and above all what it leaves."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.controller.backend import Unreachable
from deploy.provisioners import janitor
from deploy.provisioners.janitor import Found, Verdict, judge, survey, sweep
from deploy.provisioners.labels import run_label
from deploy.provisioners.uses import Runs, Use
from nanocode.config.settings import Settings, load
from nanocode.run.attempts import End, Ending, record
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError
from nanocode.run.segments import SegmentWriter
from nanocode.storage.objects import LocalStore, StorageError

NOW = 1_000_000_000.0
HOUR = 3600.0
BOUND = 2 * HOUR
SETTINGS: Settings = load("demo", environment={})
OURS = Found(
    "projects/p/locations/us-east5-a/queuedResources/nanocode-d24-ab12cd-slice-1",
    "queued resource",
    "us-east5-a",
    8,
    created=NOW - 10 * HOUR,
    run="d24-ab12cd",
    slice="slice-1",
    expires=NOW - 3 * HOUR,
)
SILENT = Use("gs://b/d24", SETTINGS, heard=NOW - 3 * HOUR)


def said(found: Found, use: Use | None, now: float = NOW, bound: float = BOUND) -> bool:
    return judge(found, use, now, bound).orphan


GOES: dict[str, tuple[Found, Use | None]] = {
    "its run is silent for longer than the bound": (OURS, SILENT),
    "its run is silent, whatever the label says": (replace(OURS, expires=NOW + 9 * HOUR), SILENT),
    "its run is silent, and nobody says when it was made": (replace(OURS, created=None), SILENT),
    "an attempt on it never said that it ended, and is as silent": (
        OURS,
        replace(SILENT, stage="pretrain", attempt=3, signed=NOW - 3 * HOUR),
    ),
    "it was given back long ago by a run that goes on": (
        OURS,
        replace(SILENT, heard=NOW - 5, released=NOW - 3 * HOUR),
    ),
    "a run that goes on never asked for it": (OURS, replace(SILENT, heard=NOW - 5, asked_for=False)),
    "its run cannot be read, and the label expired beyond the bound": (OURS, None),
    "the same, of one that does not say when it was made": (replace(OURS, created=None), None),
}
STAYS: dict[str, tuple[Found, Use | None]] = {
    "it has no labels of ours": (replace(OURS, run=""), None),
    "it has no labels of ours, and somebody like us is silent": (replace(OURS, run=""), SILENT),
    "it does not say which slice it is": (replace(OURS, slice=""), None),
    "it is being deleted": (replace(OURS, leaving=True), SILENT),
    "it is new": (replace(OURS, created=NOW - HOUR), replace(SILENT, heard=0.0)),
    "its run was heard of": (OURS, replace(SILENT, heard=NOW - 1.9 * HOUR)),
    "an attempt on it works, though its controller is gone": (
        OURS,
        replace(SILENT, stage="pretrain", attempt=3, heard=NOW - 9, signed=NOW - 9, released=NOW - 9 * HOUR),
    ),
    "it was given back a moment ago": (OURS, replace(SILENT, heard=NOW - 5, released=NOW - 60)),
    "its run cannot be read, and the label has not expired": (replace(OURS, expires=NOW + HOUR), None),
    "its run cannot be read, and the label expired within the bound": (replace(OURS, expires=NOW - 1.9 * HOUR), None),
    "its run cannot be read, and the label says nothing": (replace(OURS, expires=0.0), None),
    "its run cannot be read, the label is old, and it was made a moment ago": (replace(OURS, created=NOW - 60), None),
    "its run lets slices live unattended for longer": (
        OURS,
        replace(SILENT, settings=load("demo", ["cloud.unattended_minutes=200"], environment={})),
    ),
    "its run never asked for it, and nobody says when it was made or that it expired": (
        replace(OURS, created=None, expires=0.0),
        replace(SILENT, asked_for=False),
    ),
}


@pytest.mark.parametrize("name", GOES)
def test_it_goes_when(name: str) -> None:
    assert said(*GOES[name])


@pytest.mark.parametrize("name", STAYS)
def test_it_stays_when(name: str) -> None:
    assert not said(*STAYS[name])


@pytest.mark.parametrize("ahead", [60.0, HOUR, 100 * HOUR])
def test_what_another_clock_dates_in_the_future_was_just_now(ahead: float) -> None:
    later = NOW + ahead
    assert not said(OURS, replace(SILENT, heard=later))
    assert not said(replace(OURS, created=later), SILENT)
    assert not said(replace(OURS, expires=later), None)
    assert not said(OURS, replace(SILENT, heard=NOW - 5, released=later))


def test_clocks_that_are_ten_minutes_apart_delete_nothing_however_short_the_bound() -> None:
    for skew in (-599.0, 599.0):
        assert not said(OURS, replace(SILENT, heard=NOW), now=NOW + skew, bound=0.0)
        assert not said(replace(OURS, expires=NOW), None, now=NOW + skew, bound=0.0)


# -- a sweep -----------------------------------------------------------------------------------------------------------


class Shelf:
    """An inventory whose deletions may fail."""

    def __init__(self, *there: Found, fails: str = "", refuses: str = "", silent: str = "") -> None:
        self.there, self.deleted = list(there), list[str]()
        self.fails, self.refuses, self.silent = fails, refuses, silent

    def list(self) -> Sequence[Found]:
        if self.refuses:
            raise ConfigurationError(self.refuses)
        if self.silent:
            raise Unreachable(self.silent)
        return list(self.there)

    def delete(self, found: Found) -> None:
        if found.name == self.fails:
            raise Unreachable("no answer")
        self.deleted.append(found.name)


def named(name: str, **changes: Any) -> Found:
    return replace(OURS, name=name, **changes)


def test_one_that_cannot_be_deleted_holds_up_nothing_else() -> None:
    shelf = Shelf(named("a"), named("b"), named("theirs", run=""), named("c"), fails="b")
    verdicts = sweep(survey([shelf]), lambda found: SILENT, lambda: NOW)
    assert shelf.deleted == ["a", "c"]
    assert [(one.found.name, one.orphan, one.deleted, one.trouble) for one in verdicts] == [
        ("a", True, True, ""),
        ("b", True, False, "no answer"),
        ("theirs", False, False, ""),
        ("c", True, True, ""),
    ]


def test_a_dry_run_deletes_nothing_and_says_the_same() -> None:
    shelf = Shelf(named("a"), named("b", created=NOW))
    verdicts = sweep(survey([shelf]), lambda found: SILENT, lambda: NOW, dry_run=True)
    assert (shelf.deleted, [one.orphan for one in verdicts]) == ([], [True, False])


def test_an_api_that_gives_no_answer_hides_nothing_of_the_others() -> None:
    seen = survey([Shelf(silent="away"), Shelf(refuses="the API is off"), Shelf(named("a"))])
    assert [found.name for _, found in seen.things] == ["a"]
    assert (seen.silences, seen.refusals) == (("away",), ("the API is off",))


def test_each_is_judged_by_what_its_run_says_when_its_turn_comes() -> None:
    """A controller that comes back while others are deleted keeps its slice."""
    heard = {"a": NOW - 9 * HOUR, "b": NOW - 9 * HOUR}
    shelf = Shelf(named("a"), named("b"))
    delete = shelf.delete

    def wake(found: Found) -> None:
        delete(found)
        heard["b"] = NOW

    shelf.delete = wake  # type: ignore[method-assign]
    sweep(survey([shelf]), lambda found: replace(SILENT, heard=heard[found.name]), lambda: NOW)
    assert shelf.deleted == ["a"]


# -- what a run says ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(LocalStore(tmp_path / "runs" / "d24"))
    run.add_config(SETTINGS.to_yaml())
    return run


def write(run: RunDirectory, name: str, **values: Any) -> None:
    run.store.write(name, json.dumps(values).encode())


def use(run: RunDirectory, **changes: Any) -> Use | None:
    return Runs([run.store.url]).use(run_label(run.store.url), "slice-1", **changes)


def test_a_run_says_who_is_on_a_slice(run: RunDirectory) -> None:
    write(run, "slices/slice-1/REQUEST.json", zone="us-east5-a", dollars_per_hour=4.32, at=NOW)
    write(run, "controller/status.json", at=NOW + 500)
    for number, slice in ((1, "slice-1"), (2, "slice-2"), (3, "slice-1")):
        run.claim_number("pretrain", number, "a" * 32, "controller", slice)
    record(run, "pretrain", 1, End(ending=Ending.PREEMPTED, reason="", at=NOW, progress=0))
    at = time.time() + 50
    with SegmentWriter(run.store, "pretrain", 3, "events", 0, clock=lambda: at) as writer:
        writer.write({"kind": "start"})
    found = use(run)
    assert found is not None
    assert (found.stage, found.attempt, found.dollars_per_hour) == ("pretrain", 3, 4.32)
    assert (found.heard, found.signed, found.released) == (at, at, None)
    record(run, "pretrain", 3, End(ending=Ending.DONE, reason="", at=NOW, progress=9))
    write(run, "slices/slice-1/released.json", at=NOW + 700)
    found = use(run)
    assert found is not None
    assert (found.stage, found.heard, found.released) == (None, NOW + 500, NOW + 700)


def test_a_folder_of_runs_is_searched_and_a_thing_may_know_its_run_itself(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "runs" / "notes.txt").write_text("no run")
    label = run_label(run.store.url)
    assert Runs([str(tmp_path / "runs")]).use(label, "slice-1") is not None
    assert Runs([]).use(label, "slice-1") is None
    assert Runs([]).use(label, "slice-1", run.store.url) is not None
    assert Runs([]).use("d24-000000", "slice-1", run.store.url) is None, "labels and address disagree"


def test_a_slice_that_a_run_never_asked_for_is_told_from_one_that_it_did(run: RunDirectory) -> None:
    found = use(run)
    assert found is not None
    assert not found.asked_for
    write(run, "slices/slice-1/REQUEST.json", zone="us-east5-a", dollars_per_hour=None, at=NOW)
    found = use(run)
    assert found is not None
    assert (found.asked_for, found.dollars_per_hour, found.heard) == (True, None, NOW)


def no_answer(self: LocalStore, name: str) -> bytes:
    raise StorageError("the bucket gives no answer")


DAMAGE: dict[str, Callable[[RunDirectory], object]] = {
    "the settings cannot be read": lambda run: run.store.write("config/2.yaml", b"{"),
    "the status is damaged": lambda run: run.store.write("controller/status.json", b"{"),
    "the status has no time": lambda run: write(run, "controller/status.json", at="yesterday"),
    "the request is damaged": lambda run: run.store.write("slices/slice-1/REQUEST.json", b"[]"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_run_is_in_doubt_when(name: str, run: RunDirectory) -> None:
    assert use(run) is not None
    DAMAGE[name](run)
    assert use(run) is None


def test_a_bucket_without_an_answer_is_doubt_and_not_silence(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs([run.store.url])
    monkeypatch.setattr(LocalStore, "read", no_answer)
    assert runs.use(run_label(run.store.url), "slice-1") is None
    assert not said(replace(OURS, expires=NOW + HOUR), None)


def test_every_reason_is_one_line_in_words() -> None:
    verdicts: list[Verdict] = [judge(*case, NOW) for case in [*GOES.values(), *STAYS.values()]]
    assert all(one.reason and "\n" not in one.reason for one in verdicts)


def test_a_slice_deletes_itself_long_before_the_janitor_comes() -> None:
    assert SETTINGS.cloud.unattended_minutes * 60 < janitor.BOUND_SECONDS / 1.5
