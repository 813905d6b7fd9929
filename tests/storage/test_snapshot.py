"""A store as it was at one moment: on a folder and on a bucket."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nanocode.storage.objects import LocalStore, NotFound, Store
from nanocode.storage.snapshot import Snapshot

NAMES = ("a/1/x", "a/10", "a/2/y", "a0", "b")


def test_it_answers_as_the_store_did_when_it_looked(store: Store) -> None:
    for name in NAMES:
        store.create(name, name.encode())
    snapshot = Snapshot(store)
    snapshot.look()
    store.delete("b")
    store.create("c", b"new")
    assert snapshot.list() == sorted(NAMES)
    assert (snapshot.list("a/1"), snapshot.list("a/", "a/10"), snapshot.list("z")) == (["a/1/x", "a/10"], ["a/2/y"], [])
    assert (snapshot.children(), snapshot.children("a"), snapshot.children("a/1/")) == (
        ("a", "a0", "b"), ("1", "10", "2"), ("x",)
    )  # fmt: skip
    assert snapshot.exists("b") and not snapshot.exists("c")
    assert snapshot.read("a/2/y") == b"a/2/y"
    with pytest.raises(NotFound):
        snapshot.read("c")
    snapshot.look()
    assert snapshot.read("c") == b"new"
    assert not snapshot.exists("b")


def test_an_object_that_is_replaced_is_read_again(store: Store) -> None:
    store.write("status", b"1")
    snapshot = Snapshot(store)
    for text in (b"1", b"2", b"3"):
        store.write("status", text)
        snapshot.look()
        assert snapshot.read("status") == text


def test_whoever_asks_for_the_generation_reads_no_older_object(store: Store) -> None:
    store.write("marker", b"damaged")
    snapshot = Snapshot(store)
    snapshot.look(lambda name: True)
    store.write("marker", b"whole")
    assert snapshot.generation("marker") == store.generation("marker")
    assert snapshot.read("marker") == b"whole"


class Counting(LocalStore):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if name in ("read", "exists", "list", "children", "generations"):
            object.__getattribute__(self, "asked")[name] += 1
        return super().__getattribute__(name)


def test_a_look_lists_once_and_reads_what_is_new_or_changed(tmp_path: Path) -> None:
    store = Counting(tmp_path)
    for number in range(50):
        store.create(f"segments/{number}", b"")
    store.create("large", b"")
    snapshot = Snapshot(store)
    snapshot.look(lambda name: name.startswith("segments/"))
    assert store.asked["read"] == 50
    store.create("segments/50", b"")
    store.write("segments/7", b"changed")
    store.asked.clear()
    snapshot.look(lambda name: name.startswith("segments/"))
    for name in snapshot.list("segments/"):
        snapshot.read(name)
    assert (store.asked["generations"], store.asked["read"]) == (1, 2)
