"""What a run's bucket costs: weighed once an hour by the controller, and told by bill, status and forecast alike."""

import pytest

from deploy.controller.decision import Decision, State
from deploy.controller.record import STATUS, RunJournal
from nanocode.config.settings import load
from nanocode.run import stored
from nanocode.run.costs import bill
from nanocode.run.directory import RunDirectory
from nanocode.storage.gcs import GcsStore
from nanocode.storage.objects import StorageError, open_store
from tests.gcs import AWAY, gcs_url

__all__ = ["gcs_url"]

GIGABYTE = 2**30
BEGAN = 1_800_000_000.0
HOUR = 3600.0
IDLE = Decision((), {}, State.RUNNING, "", 0.0, resting=False)


def test_bytes_count_for_as_long_as_they_are_there() -> None:
    known = [(BEGAN, 0), (BEGAN + HOUR, 100), (BEGAN + 2 * HOUR, 100)]
    assert stored.byte_hours(known, BEGAN + 2.5 * HOUR) == pytest.approx(50 + 100 + 50)
    assert stored.byte_hours(known, BEGAN + 900 * HOUR) == pytest.approx(50 + 100 + 200), "nobody has looked since"
    assert stored.byte_hours([], BEGAN) == 0.0
    assert stored.measurements(["1800000000-7", "nonsense", "12-", "5-6"]) == [(5.0, 6), (BEGAN, 7)]


def run_at(url: str, *settings: str) -> RunDirectory:
    run = RunDirectory(open_store(url))
    run.add_config(
        load("demo", ["corpus.sources=[{location: gs://elsewhere/text}]", *settings], environment={}).to_yaml()
    )
    return run


def test_a_bucket_is_weighed_once_an_hour_and_is_in_the_bill_and_in_what_the_budget_counts(gcs_url: str) -> None:
    run = run_at(gcs_url, "prices.storage_gb_month=73000")  # $100 for a gigabyte and an hour
    run.store.write("pretrain/x", bytes(2**20))
    journal = RunJournal(run)
    for minute in range(0, 121, 10):
        if minute == 60:
            journal = RunJournal(run)  # another controller goes on
        journal.read()
        journal.show(IDLE, BEGAN + 60 * minute)
    names = run.store.children(stored.FOLDER)
    assert [name.partition("-")[0] for name in names] == [str(int(BEGAN + HOUR * hour)) for hour in range(3)]
    written, found = journal.read(), bill(run, journal.settings, [], BEGAN + 3 * HOUR)  # type: ignore[arg-type]
    assert written.dollars_stored == pytest.approx(2 * 100 / 1024, rel=0.05)
    assert found.stored == pytest.approx(3 * 100 / 1024, rel=0.05) and found.dollars == found.stored
    assert 2**20 <= found.stored_bytes < 1.1 * 2**20


def test_what_the_run_has_in_another_region_is_weighed_with_it(gcs_url: str) -> None:
    away = f"{{europe-west4: gs://{AWAY}, asia-east1: gs://not-there}}"
    run = run_at(gcs_url, "prices.storage_gb_month=73000", f"cloud.buckets={away}")
    open_store(f"gs://{AWAY}/{gcs_url.removeprefix('gs://')}").write("corpus/x", bytes(2**20))
    open_store(f"gs://{AWAY}/another-run").write("corpus/x", bytes(2**20))
    journal = RunJournal(run)
    journal.read()
    journal.show(IDLE, BEGAN)
    (name,) = run.store.children(stored.FOLDER)
    assert 2**20 <= int(name.partition("-")[2]) < 1.1 * 2**20


def test_a_bucket_far_away_that_gives_no_answer_is_not_taken_for_an_empty_one(
    gcs_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_at(gcs_url, "prices.storage_gb_month=73000", f"cloud.buckets={{europe-west4: gs://{AWAY}}}")
    journal, size = RunJournal(run), GcsStore.size
    journal.read()

    def silent(store: GcsStore) -> int:
        if AWAY in store.url:
            raise StorageError("the bucket gives no answer")
        return size(store)

    with monkeypatch.context() as outage:
        outage.setattr(GcsStore, "size", silent)
        journal.show(IDLE, BEGAN)
    assert run.store.children(stored.FOLDER) == ()
    journal.show(IDLE, BEGAN + 10)
    assert len(run.store.children(stored.FOLDER)) == 1


def test_nobody_weighs_what_has_no_price_or_is_not_in_a_bucket(gcs_url: str, tmp_path: object) -> None:
    for run in (run_at(gcs_url), run_at(str(tmp_path), "prices.storage_gb_month=0.02")):
        journal = RunJournal(run)
        journal.read()
        journal.show(IDLE, BEGAN)
        assert run.store.children(stored.FOLDER) == ()
        assert bill(run, journal.settings, [], BEGAN + HOUR).stored == 0.0  # type: ignore[arg-type]


def test_a_bucket_that_cannot_be_weighed_spoils_no_round_and_is_weighed_at_the_next_look(
    gcs_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_at(gcs_url, "prices.storage_gb_month=73000")
    journal = RunJournal(run)
    journal.read()

    def silent() -> int:
        raise StorageError("the bucket gives no answer")

    with monkeypatch.context() as outage:
        outage.setattr(run.store, "size", silent)
        journal.show(IDLE, BEGAN)
    assert run.store.exists(STATUS) and run.store.children(stored.FOLDER) == ()
    assert journal.read().dollars_stored == 0.0
    journal.show(IDLE, BEGAN + 10)
    assert len(run.store.children(stored.FOLDER)) == 1
