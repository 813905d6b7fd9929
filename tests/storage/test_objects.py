"""The promises of `Store`, on a folder and on a real GCS server alike."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from nanocode.storage.objects import (
    ASIDE,
    AlreadyExists,
    LocalStore,
    NotFound,
    Refused,
    StaleGeneration,
    StorageError,
    Store,
    open_store,
)


def test_an_object_is_read_back_as_written(store: Store) -> None:
    store.create("a/b.bin", b"\0\xff")
    assert store.read("a/b.bin") == b"\0\xff"
    assert store.exists("a/b.bin")
    assert not store.exists("a")


def test_an_absent_object_is_named(store: Store) -> None:
    with pytest.raises(NotFound, match="a/b"):
        store.read("a/b")
    assert not store.exists("a/b")
    assert store.generation("a/b") == 0


def test_a_second_create_is_refused_and_changes_nothing(store: Store) -> None:
    store.create("x", b"first")
    with pytest.raises(AlreadyExists, match="x is there already"):
        store.create("x", b"second")
    assert store.read("x") == b"first"


def test_a_store_can_be_handed_to_another_process(store: Store) -> None:
    store.create("a/b", b"mine")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(store.child("a").read, "b").result(60) == b"mine"


def test_of_32_concurrent_creates_exactly_one_wins(store: Store) -> None:
    def attempt(i: int) -> int | None:
        try:
            store.create("attempts/1/claim.json", b"%d" % i)
        except AlreadyExists:
            return None
        return i

    with ThreadPoolExecutor(32) as pool:
        winners = [i for i in pool.map(attempt, range(32)) if i is not None]
    assert [store.read("attempts/1/claim.json")] == [b"%d" % i for i in winners]


def test_replace_needs_the_generation_that_is_there(store: Store) -> None:
    store.create("x", b"1")
    first = store.generation("x")
    store.replace("x", b"2", first)
    assert store.generation("x") != first
    with pytest.raises(StaleGeneration, match="x changed meanwhile"):
        store.replace("x", b"3", first)
    with pytest.raises(StaleGeneration):
        store.replace("absent", b"3", first)
    assert store.read("x") == b"2"
    assert not store.exists("absent")


def test_of_16_concurrent_replaces_of_one_generation_exactly_one_wins(store: Store) -> None:
    store.create("x", b"old")
    generation = store.generation("x")

    def attempt(i: int) -> str:
        try:
            store.replace("x", b"%d" % i, generation)
        except StaleGeneration:
            return "refused"
        return "won"

    with ThreadPoolExecutor(16) as pool:
        assert Counter(pool.map(attempt, range(16))) == {"won": 1, "refused": 15}


def test_local_compare_and_swap_is_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    store.create("x", b"old")
    generation, look = store.generation("x"), store.generation

    def slow(name: str) -> int:
        seen = look(name)
        time.sleep(0.02)  # between compare and swap, where the others must not get in
        return seen

    monkeypatch.setattr(store, "generation", slow)

    def attempt(i: int) -> bool:
        try:
            store.replace("x", b"%d" % i, generation)
        except StaleGeneration:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(attempt, range(4))) == 1


def test_write_repeats_without_harm(store: Store) -> None:
    store.write("sha/abc", b"data")
    store.write("sha/abc", b"data")
    assert store.read("sha/abc") == b"data"


def test_delete_is_repeatable(store: Store) -> None:
    store.create("a/x", b"1")
    store.delete("a/x")
    store.delete("a/x")
    store.delete("never/there")
    assert store.list() == []


def test_a_conditional_delete_spares_what_came_meanwhile(tmp_path: Path) -> None:
    # Only locally: fake-gcs-server ignores the condition on a delete, the real service does not.
    store = LocalStore(tmp_path)
    store.create("x", b"damaged")
    generation = store.generation("x")
    store.write("x", b"whole")
    with pytest.raises(StaleGeneration):
        store.delete("x", generation)
    assert store.read("x") == b"whole"


def test_list_is_sorted_and_takes_any_prefix(store: Store) -> None:
    for name in ("b/2", "a/10", "a/1/deep", "ab"):
        store.create(name, b"")
    assert store.list() == ["a/1/deep", "a/10", "ab", "b/2"]
    assert store.list("a") == ["a/1/deep", "a/10", "ab"]
    assert store.list("a/") == ["a/1/deep", "a/10"]
    assert store.list("a/1") == ["a/1/deep", "a/10"]
    assert store.list("c/") == []


def test_a_list_can_begin_after_a_name_whether_or_not_that_is_there(store: Store) -> None:
    for name in ("a/0-1", "a/0-2", "a/0-3", "a/1-1", "b"):
        store.create(name, b"")
    assert store.list("a/", "a/0-2") == ["a/0-3", "a/1-1"]
    assert store.list("a/0-", "a/0-2") == ["a/0-3"]
    assert store.list("a/0-", "a/0-25") == ["a/0-3"]
    assert store.list("a/0-", "a/0-3") == []
    assert store.child("a").list("0", "0-1") == ["0-2", "0-3"]


def test_children_are_the_next_parts_only(store: Store) -> None:
    for name in ("s/1/claim.json", "s/1/metrics/0.jsonl", "s/10/claim.json", "s/DONE.json", "t/x"):
        store.create(name, b"")
    assert store.children("s") == store.children("s/") == ("1", "10", "DONE.json")
    assert store.children() == ("s", "t")
    assert store.children("absent") == ()


def test_the_size_is_of_all_objects_and_only_its_own(store: Store) -> None:
    assert store.size() == 0
    store.create("a/b", b"12345")
    store.create("c", b"123")
    assert (store.size(), store.child("a").size()) == (8, 5)


def test_a_child_sees_only_its_own_names(store: Store) -> None:
    child = store.child("pretrain/attempts")
    child.create("1/x", b"1")
    store.create("pretrain/attempts2/x", b"2")
    assert child.list() == ["1/x"]
    assert store.read("pretrain/attempts/1/x") == b"1"
    assert child.url == store.url + "/pretrain/attempts"
    assert open_store(child.url).read("1/x") == b"1"


def test_big_files_go_up_and_down(store: Store, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(9 << 20)  # past the 8 MiB from which the GCS client uploads resumably
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(data)
    store.upload(source, "shards/0.bin")
    store.download("shards/0.bin", target)
    assert target.read_bytes() == data
    with pytest.raises(NotFound):
        store.download("shards/absent.bin", tmp_path / "absent")
    with pytest.raises(NotFound):
        store.upload(tmp_path / "absent", "shards/1.bin")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(ASIDE) or p.name == "absent"] == []


@pytest.mark.parametrize("name", ["", "/etc/passwd", "..", "a/../../b", "a//b", "./a", "a/", "a\\..\\b", ".aside-1"])
def test_names_that_escape_are_refused(store: Store, name: str, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"outside")
    for use in (store.read, store.exists, store.generation, store.delete, store.child):
        with pytest.raises(ValueError, match="bad object name"):
            use(name)
    for publish in (store.create, store.write):
        with pytest.raises(ValueError, match="bad object name"):
            publish(name, b"")
    if ".." in name:
        with pytest.raises(ValueError, match="bad object name"):
            store.list(name)


def test_a_missing_bucket_is_named(gcs_url: str) -> None:
    store = open_store("gs://nobody-made-this/run")
    for use in (lambda: store.create("x", b""), store.list, store.children):
        with pytest.raises(
            Refused, match="cannot use gs://nobody-made-this/run.*: bucket gs://nobody-made-this does not"
        ):
            use()


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="s3://bucket"):
        open_store("s3://bucket/run")
    with pytest.raises(ValueError, match="gs://"):
        open_store("gs://")


def test_a_create_whose_reply_was_lost_still_wins(gcs_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from google.cloud.storage import Blob

    send = Blob.upload_from_string

    def sent_twice(blob: Blob, *args: Any, **options: Any) -> None:
        send(blob, *args, **options)
        send(blob, *args, **options)  # what the client's retry does after a lost reply: now the condition fails

    store = open_store(gcs_url)
    monkeypatch.setattr(Blob, "upload_from_string", sent_twice)
    store.create("x", b"mine")
    with pytest.raises(AlreadyExists):
        store.create("x", b"mine")


def test_kill_minus_9_leaves_nothing_or_the_whole_object(tmp_path: Path) -> None:
    size = 4 << 20
    writer = textwrap.dedent(f"""
        import sys
        from nanocode.storage.objects import open_store
        store = open_store(sys.argv[1])
        print("ready", flush=True)
        for i in range(1000):
            data = bytes([i % 251]) * {size}
            store.create(f"create/{{i}}", data)
            store.write("write/same", data)
            store.replace("replace/same", data, store.generation("replace/same"))
    """)
    dice = random.Random(0)
    mid_write = objects = 0
    for kill in range(20):
        root = tmp_path / str(kill)
        child = subprocess.Popen([sys.executable, "-c", writer, str(root)], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(dice.uniform(0, 0.08))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        store = open_store(root)
        for name in store.list():
            data = store.read(name)
            assert data == data[:1] * size, f"{name} is damaged after kill {kill}"
            objects += 1
        leftovers = list(root.rglob(f"{ASIDE}*"))
        mid_write += any(path.stat().st_size for path in leftovers)
        assert not any(ASIDE in name for name in store.list())
        store.create("create/after", b"the next writer is not hindered")
    assert mid_write and objects, "no kill hit a write: the test proves nothing"


def test_what_killed_writers_left_is_swept_once_old(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("a/x", b"kept")
    old, young = tmp_path / "a" / f"{ASIDE}old", tmp_path / f"{ASIDE}young"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert store.sweep() == 1
    assert (old.exists(), young.exists(), store.list()) == (False, True, ["a/x"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root; the file size limit below covers the same path")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_clear_line_and_no_partial_object(small_disk: Path, tmp_path: Path) -> None:
    store = open_store(small_disk / "run")
    store.create("small", b"kept")
    big = bytes(2 << 20)
    (tmp_path / "big").write_bytes(big)
    for publish in (
        lambda: store.create("big", big),
        lambda: store.write("big", big),
        lambda: store.replace("small", big, store.generation("small")),
        lambda: store.upload(tmp_path / "big", "big"),
    ):
        with pytest.raises(StorageError, match=r"^no space left to write .*/run/\w+: free some") as caught:
            publish()
        assert "\n" not in str(caught.value)
    assert [path.name for path in (small_disk / "run").iterdir()] == ["small"]
    assert store.read("small") == b"kept"


def test_a_file_size_limit_reads_like_a_full_disk(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import resource, sys
        from nanocode.storage.objects import StorageError, open_store
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            open_store(sys.argv[1]).create("big", bytes(2 << 20))
        except StorageError as error:
            print(error)
    """)
    answer = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith(f"no space left to write {tmp_path}/big: free some")
    assert list(tmp_path.iterdir()) == []


def test_a_checksum_is_the_same_for_a_file_and_an_object_and_changes_with_one_bit(store: Store) -> None:
    store.write("a/x", b"123456789")
    store.write("a/deep/y", b"123456788")
    store.write("b", b"")
    found = store.checksums("a/")
    # The check value of CRC-32C, 0xE3069283 (RFC 3720, appendix B.4, and every catalogue of CRCs).
    assert found["a/x"] == ["9", "4waSgw=="]
    assert found["a/deep/y"][0] == "9" and found["a/deep/y"] != found["a/x"]
    assert set(found) == {"a/x", "a/deep/y"} and store.checksums("c/") == {}


@pytest.mark.parametrize("to", ["local", "gcs"])
def test_a_copy_in_another_store_has_the_same_bytes_and_replaces_what_was_there(
    store: Store, to: str, tmp_path: Path, gcs_url: str
) -> None:
    other = open_store(tmp_path / "other" if to == "local" else f"{gcs_url}-other")
    store.write("a/b.bin", bytes(range(256)) * 40)
    other.write("a/b.bin", b"older")
    store.copy("a/b.bin", other)
    assert other.read("a/b.bin") == store.read("a/b.bin") == bytes(range(256)) * 40
    assert other.checksums() == store.checksums()
    with pytest.raises(NotFound, match="a/absent"):
        store.copy("a/absent", other)
    assert other.list() == ["a/b.bin"]
