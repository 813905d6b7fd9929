"""What a machine in another region reads is copied once, counted once, and goes on after a kill; other hosts wait."""

import threading
import time
from pathlib import Path

import pytest

from nanocode.run import copied
from nanocode.run.directory import RunDirectory
from nanocode.storage.objects import LocalStore, StorageError, Store, open_store
from nanocode.train import nearby
from nanocode.train.nearby import Nearby
from nanocode.train.preemption import Preempted
from tests.gcs import AWAY, BUCKET

SHARDS = {f"corpus/abc/{name}": bytes(100 + number) for number, name in enumerate(("train-0", "train-1", "valid-code"))}
INDEX = {"corpus/abc/index.json": b"{}"}
OTHERS = {"corpus/abcd/train-0": b"of another corpus", "corpus/DONE.json": b"{}"}
WHOLE = sum(map(len, {**SHARDS, **INDEX}.values()))


@pytest.fixture(params=["local", "gcs"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[RunDirectory, Store]:
    """A run with a corpus, and an empty place in another region."""
    if request.param == "gcs":
        url: str = request.getfixturevalue("gcs_url")
        home, away = open_store(url), open_store(url.replace(BUCKET, AWAY))
    else:
        home, away = LocalStore(tmp_path / "home"), LocalStore(tmp_path / "away")
    return filled(home), away


def filled(home: Store) -> RunDirectory:
    run = RunDirectory(home)
    for name, data in {**SHARDS, **INDEX, **OTHERS}.items():
        home.write(name, data)
    run.claim("pretrain", "ab" * 16, "test")
    return run


def counted(run: RunDirectory) -> int:
    return copied.total(run.store.children(copied.FOLDER))


def test_a_folder_is_copied_once_and_counted_once(places: tuple[RunDirectory, Store]) -> None:
    run, away = places
    store = Nearby(run, "pretrain", 1, away).brought("corpus/abc")
    assert {name: store.read(name) for name in store.list()} == {**SHARDS, **INDEX}
    assert counted(run) == WHOLE
    (name,) = run.store.children(copied.FOLDER)
    assert name.split("-")[2] == "pretrain.1" and abs(int(name.split("-")[0]) - time.time()) < 60
    assert Nearby(run, "pretrain", 2, away).brought("corpus/abc").url == away.url
    assert run.store.children(copied.FOLDER) == (name,)


def test_at_home_nothing_is_copied(places: tuple[RunDirectory, Store]) -> None:
    run, away = places
    assert Nearby(run, "pretrain", 1).brought("corpus/abc") is run.store
    assert counted(run) == 0 and away.list() == []


def test_of_a_folder_no_more_is_copied_than_is_asked_for(places: tuple[RunDirectory, Store]) -> None:
    run, away = places
    there = Nearby(run, "sft", 1, away)
    there.brought("corpus/abc", "index.json", "valid-")
    assert away.list() == ["corpus/abc/index.json", "corpus/abc/valid-code"]
    there.brought("corpus/abc")
    assert counted(run) == WHOLE


def test_a_copy_that_is_not_as_it_should_be_is_made_again(places: tuple[RunDirectory, Store]) -> None:
    run, away = places
    Nearby(run, "pretrain", 1, away).brought("corpus/abc")
    away.write("corpus/abc/train-1", bytes(100) + b"x")
    away.delete("corpus/abc/index.json")
    Nearby(run, "pretrain", 1, away).brought("corpus/abc")
    assert away.read("corpus/abc/train-1") == SHARDS["corpus/abc/train-1"]
    assert counted(run) == WHOLE + 101 + 2


def test_whoever_goes_on_after_a_kill_copies_the_rest_and_the_bill_is_a_group_too_high_at_most(
    places: tuple[RunDirectory, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, away = places
    monkeypatch.setattr(nearby, "GROUP_BYTES", 150)
    monkeypatch.setattr(nearby, "AT_ONCE", 1)
    copy, begun = run.store.copy, []

    def killed(name: str, to: Store) -> None:
        begun.append(name)
        if len(begun) == 3:
            raise KeyboardInterrupt
        copy(name, to)

    monkeypatch.setattr(run.store, "copy", killed)
    with pytest.raises(KeyboardInterrupt):
        Nearby(run, "pretrain", 1, away).brought("corpus/abc")
    assert away.list() == begun[:2]
    begun += ["", ""]
    Nearby(run, "pretrain", 2, away).brought("corpus/abc")
    assert set(begun[5:]) == {*SHARDS, *INDEX} - set(begun[:2]), "and no more"
    assert WHOLE <= counted(run) <= WHOLE + 150


def test_what_changes_while_it_is_copied_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, away = filled(LocalStore(tmp_path / "home")), LocalStore(tmp_path / "away")
    monkeypatch.setattr(run.store, "copy", lambda name, to: to.write(name, b"torn"))
    with pytest.raises(StorageError, match=r"away/corpus/abc/index.json is not what .*home has"):
        Nearby(run, "pretrain", 1, away).brought("corpus/abc")


def test_other_hosts_wait_for_the_first_and_copy_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, away = filled(LocalStore(tmp_path / "home")), LocalStore(tmp_path / "away")
    monkeypatch.setattr(nearby, "SECONDS_BETWEEN_LOOKS", 0.05)
    had: list[list[str]] = []
    second = threading.Thread(
        target=lambda: had.append(Nearby(run, "pretrain", 1, away, first=False).brought("corpus/abc").list())
    )
    second.start()
    time.sleep(0.3)
    assert second.is_alive() and away.list() == [] and counted(run) == 0
    Nearby(run, "pretrain", 1, away).brought("corpus/abc")
    second.join(10)
    assert had == [sorted([*SHARDS, *INDEX])] and counted(run) == WHOLE


def test_a_host_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, away = filled(LocalStore(tmp_path / "home")), LocalStore(tmp_path / "away")
    monkeypatch.setattr(nearby, "SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(nearby, "PATIENCE_SECONDS", 0.2)
    away.write("corpus/abc/index.json", b"{}")
    with pytest.raises(StorageError, match=r"brought nothing to .*away for 0 s, and corpus/abc/train-0 is not there"):
        Nearby(run, "pretrain", 1, away, first=False).brought("corpus/abc")


@pytest.mark.parametrize("first", [True, False])
def test_once_a_later_attempt_has_begun_an_earlier_one_copies_nothing_more(tmp_path: Path, first: bool) -> None:
    run, away = filled(LocalStore(tmp_path / "home")), LocalStore(tmp_path / "away")
    run.claim("pretrain", "ab" * 16, "the next")
    with pytest.raises(Preempted, match="attempt 2 has begun"):
        Nearby(run, "pretrain", 1, away, first=first).brought("corpus/abc")
    assert away.list() == [] and counted(run) == 0
