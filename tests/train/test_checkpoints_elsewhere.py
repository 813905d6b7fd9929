"""Checkpoints of machines in several regions: saved near, marked at home, whole at home in the end."""

import json
import shutil
from pathlib import Path

import pytest

from nanocode.run import copied
from nanocode.run.directory import RunDirectory
from nanocode.storage.objects import LocalStore, StorageError, Store, open_store
from nanocode.train.checkpoints import Checkpoints
from nanocode.train.nearby import Nearby
from tests.gcs import AWAY, BUCKET
from tests.train.test_checkpoints import DIGEST, assert_same, like, state

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(LocalStore(tmp_path / "home"))


@pytest.fixture
def europe(tmp_path: Path) -> Store:
    return LocalStore(tmp_path / "europe")


def at(
    run: RunDirectory, place: Store | None, *steps: int, keep: int = 3, others: tuple[Store, ...] = ()
) -> Checkpoints:
    """The next attempt, on a machine near this place, which has saved these steps."""
    attempt = run.claim("pretrain", DIGEST, "test")
    checkpoints = Checkpoints(run, "pretrain", attempt, DIGEST, keep, Nearby(run, "pretrain", attempt, place, others))
    for step in steps:
        checkpoints.save(step, state(step), {})
        checkpoints.wait()
    return checkpoints


def counted(run: RunDirectory) -> int:
    return copied.total(run.store.children(copied.FOLDER))


def size(store: Store, name: str) -> int:
    return sum(int(size) for size, _ in store.checksums(name + "/").values())


ONE, TWO = (f"pretrain/attempts/1/checkpoints/{step}" for step in (1, 2))


@pytest.mark.parametrize("kind", ["local", "gcs"])
def test_it_is_saved_near_marked_at_home_and_brought_there_by_whoever_goes_on_there(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url: str = request.getfixturevalue("gcs_url") if kind == "gcs" else str(tmp_path / "run")
    run = RunDirectory(open_store(url))
    there = open_store(url.replace(BUCKET, AWAY) if kind == "gcs" else tmp_path / "europe")
    at(run, there, 1, 2).close()
    assert run.store.children("pretrain/attempts/1/checkpoints") == ("1.json", "2.json"), "markers, and no files"
    assert json.loads(run.store.read(TWO + ".json"))["at"] == there.url
    assert there.list(TWO + "/") and not there.exists(TWO + ".json")
    assert counted(run) == 0, "nothing has crossed"
    restored, found = at(run, None).restore(like())
    assert found.step == 2
    assert_same(restored, state(2))
    assert counted(run) == size(there, TWO) > 0
    assert "at" not in json.loads(run.store.read(TWO + ".json"))
    again, _ = at(run, None).restore(like())
    assert_same(again, state(2))
    assert counted(run) == size(there, TWO), "once"


def test_abroad_one_of_home_is_copied_once_and_stays_marked_as_at_home(run: RunDirectory, europe: Store) -> None:
    at(run, None, 1).close()
    for _ in range(2):
        restored, _ = at(run, europe).restore(like())
        assert_same(restored, state(1))
        assert counted(run) == size(run.store, ONE) == size(europe, ONE)
    assert "at" not in json.loads(run.store.read(ONE + ".json"))


def test_a_third_region_has_it_from_the_second(run: RunDirectory, europe: Store, tmp_path: Path) -> None:
    at(run, europe, 1).close()
    asia = LocalStore(tmp_path / "asia")
    restored, _ = at(run, asia).restore(like())
    assert_same(restored, state(1))
    assert size(asia, ONE) == size(europe, ONE) and run.store.list(ONE + "/") == []


def test_one_that_is_damaged_abroad_falls_back_to_the_one_before(run: RunDirectory, europe: Store) -> None:
    at(run, europe, 1, 2).close()
    europe.write(max(europe.list(TWO + "/")), b"torn")
    restored, found = at(run, None).restore(like())
    assert found.step == 1
    assert_same(restored, state(1))


@pytest.mark.parametrize("harm", ["torn copy", "torn original", "no bucket"])
def test_a_whole_copy_serves_for_a_damaged_one(run: RunDirectory, europe: Store, tmp_path: Path, harm: str) -> None:
    at(run, europe, 1).close()
    at(run, None).restore(like())  # brought home: there are two
    victim = run.store if harm == "torn original" else europe
    if harm == "no bucket":
        shutil.rmtree(tmp_path / "europe")
    else:
        victim.write(max(victim.list(ONE + "/")), b"torn")
    here = None if harm == "torn original" else europe
    restored, _ = at(run, here, others=(europe,)).restore(like())
    assert_same(restored, state(1))
    assert size(run.store, ONE) == size(here or europe, ONE) > 0


def test_what_is_pruned_goes_wherever_it_is(run: RunDirectory, europe: Store, tmp_path: Path) -> None:
    asia = LocalStore(tmp_path / "asia")
    at(run, europe, 1).close()
    at(run, asia, others=(europe,)).restore(like())
    last = at(run, None, keep=1, others=(europe, asia))
    last.restore(like())
    assert [size(store, ONE) > 0 for store in (run.store, europe, asia)] == [True] * 3
    last.save(3, state(3), {})
    last.close()
    assert [store.list(ONE) for store in (run.store, europe, asia)] == [[], [], []]
    assert [one.step for one in last.found()] == [3]


def test_what_was_half_written_abroad_is_removed_and_a_copy_stays(run: RunDirectory, europe: Store) -> None:
    at(run, None, 1).close()
    at(run, europe).restore(like())
    europe.write("pretrain/attempts/2/checkpoints/7.orbax-checkpoint-tmp/d/part", b"half")
    at(run, None, others=(europe,)).remove_half_written()
    assert europe.list("pretrain/attempts/2/") == []
    assert size(europe, ONE) == size(run.store, ONE)


def test_what_is_marked_while_leftovers_are_looked_for_stays(
    run: RunDirectory, europe: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(run, europe)
    europe.write(f"{ONE}/d/part", b"whole")
    look = europe.children

    def then_marked(folder: str = "") -> tuple[str, ...]:
        found = look(folder)
        run.store.write(f"{ONE}.json", b"{}")
        return found

    monkeypatch.setattr(europe, "children", then_marked)
    at(run, None, others=(europe,)).remove_half_written()
    assert europe.list(ONE + "/") == [f"{ONE}/d/part"]


def test_at_home_an_earlier_attempt_is_looked_through_once(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    at(run, None, 1).close()
    here, look, looks = at(run, None), run.store.children, []
    monkeypatch.setattr(run.store, "children", lambda folder="": looks.append(folder) or look(folder))
    here.remove_half_written()
    assert looks.count("pretrain/attempts/1/checkpoints") == 1


def test_a_bucket_elsewhere_that_gives_no_answer_ends_no_attempt(
    run: RunDirectory, europe: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> list[str]:
        raise StorageError("not allowed")

    monkeypatch.setattr(europe, "children", silent)
    at(run, None, 1).close()
    at(run, None, others=(europe,)).remove_half_written()
    with pytest.raises(StorageError, match="not allowed"):
        at(run, europe).remove_half_written()


def test_a_bucket_that_gives_no_answer_is_no_damaged_checkpoint(
    gcs_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, there = RunDirectory(LocalStore(tmp_path / "home")), open_store(gcs_url)
    at(run, there, 1).close()
    here = at(run, None)

    def silent(store: Store, prefix: str = "") -> dict[str, list[str]]:
        raise StorageError("the bucket gives no answer")

    with monkeypatch.context() as outage:
        outage.setattr(type(there), "checksums", silent)
        with pytest.raises(StorageError, match="no answer"):
            here.restore(like())
    assert here.restore(like())[1].step == 1
    for name in there.list():
        there.delete(name)
    assert at(run, there).restore(like())[1].step == 1, "the copy at home serves for it"


def test_what_a_stage_ends_with_is_brought_home_and_a_damaged_one_is_not(run: RunDirectory, europe: Store) -> None:
    last = at(run, europe, 1, 2)
    last.close()
    assert last.brought_home() == TWO
    assert run.store.checksums(TWO + "/") == europe.checksums(TWO + "/")
    assert counted(run) == size(run.store, TWO)
    last = at(run, europe, 3)
    last.close()
    name = "pretrain/attempts/2/checkpoints/3"
    europe.write(max(europe.list(name + "/")), b"torn")
    with pytest.raises(StorageError, match=r"checkpoint .*/3 is damaged .*the same command makes it again"):
        last.brought_home()
