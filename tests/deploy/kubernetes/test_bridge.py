"""The pod that mirrors an attempt's log: what it prints, when it ends, and that it needs nobody."""

import json
from pathlib import Path

import pytest

from deploy.kubernetes.bridge import Bridge, follow
from nanocode.storage.objects import LocalStore, StorageError

FOLDER = "pretrain/attempts/3"


def publish(store: LocalStore, segment: str, *events: tuple[float, str, str]) -> None:
    lines = [json.dumps({"time": at, "stream": stream, "event": event}) for at, stream, event in events]
    store.create(f"{FOLDER}/log/{segment}.jsonl", "\n".join(lines).encode())


def test_every_line_is_said_once_in_order_of_time_and_with_its_host_where_there_are_several(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    bridge = Bridge(store, "pretrain", 3)
    assert list(bridge.lines()) == []
    publish(store, "0-0", (10.0, "stderr", "begins"), (12.0, "stderr", "step 1"), (13.0, "stdout", "{}"))
    assert list(bridge.lines()) == ["1970-01-01 00:00:10 begins", "1970-01-01 00:00:12 step 1"]
    publish(store, "1-0", (21.0, "stderr", "step 2"))
    publish(store, "0-1", (20.0, "stderr", "step 2"))
    assert list(bridge.lines()) == ["[0] 1970-01-01 00:00:20 step 2", "[1] 1970-01-01 00:00:21 step 2"]
    assert list(bridge.lines()) == []
    assert len(list(Bridge(store, "pretrain", 3).lines())) == 4, "one that takes over says everything once more"


def test_it_ends_with_the_attempt_and_says_what_came_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, said, slept = LocalStore(tmp_path), list[str](), list[float]()
    children = LocalStore.children

    def sometimes(self: LocalStore, folder: str = "") -> tuple[str, ...]:
        if len(slept) == 1:
            slept.append(0.0)
            raise StorageError("the bucket gives no answer")
        return children(self, folder)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 4:
            publish(store, "0-0", (10.0, "stderr", "saved"))
            store.create(f"{FOLDER}/END.json", b"{}")

    monkeypatch.setattr(LocalStore, "children", sometimes)
    follow(Bridge(store, "pretrain", 3), said.append, sleep)
    assert said == ["1970-01-01 00:00:10 saved"]


def test_a_store_that_gives_no_answer_amid_the_last_look_costs_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, said, refused = LocalStore(tmp_path), list[str](), list[str]()
    publish(store, "0-0", (10.0, "stderr", "step 9"))
    publish(store, "0-1", (20.0, "stderr", "saved"))
    store.create(f"{FOLDER}/END.json", b"{}")
    read = LocalStore.read

    def once_not(self: LocalStore, name: str) -> bytes:
        if name.endswith("0-1.jsonl") and not refused:
            refused.append(name)
            raise StorageError("the bucket gives no answer")
        return read(self, name)

    monkeypatch.setattr(LocalStore, "read", once_not)
    follow(Bridge(store, "pretrain", 3), said.append, lambda seconds: None)
    assert refused
    assert said == ["1970-01-01 00:00:10 step 9", "1970-01-01 00:00:20 saved"]
