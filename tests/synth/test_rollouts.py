"""Rollouts of the expert as shards: the same whoever makes them in whatever order, and every scenario is accounted for."""

import json
from collections import Counter
from pathlib import Path

import pytest

from nanocode.agent.conversation import Step, User, from_json
from nanocode.agent.sandbox import Grade, best_grade
from nanocode.agent.soul import read_soul
from nanocode.storage.objects import open_store
from nanocode.synth import rollouts
from nanocode.synth.rollouts import attempt, make_shards, read_pairs, read_rollouts, shards, write_index
from nanocode.tasks.families import CYCLE, TRAINED, TRANSFER, scenario, training_scenario
from nanocode.tasks.task import Check, Scenario, Task

pytestmark = pytest.mark.skipif(best_grade() is Grade.NONE, reason="commands run only where something holds them")
SOUL = read_soul(None)
SCENARIOS, PER_SHARD = 23, 6


def made(folder: Path, worker: int = 0, of: int = 1, workers: int = 1, seed: int = 5) -> dict[str, int] | None:
    """What a worker does; the gates, on worker 0."""
    store = open_store(folder)
    make_shards(store, SOUL, SCENARIOS, seed, PER_SHARD, workers, worker, of, lambda done, total: None)
    return write_index(store, {"expert": list(shards(SCENARIOS, PER_SHARD))})["expert"] if worker == 0 else None


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by one worker in one go, with many flawed first attempts."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "FLAWED_SHARE", 0.4)
        made(folder)
    return folder


@pytest.fixture(autouse=True)
def _many_flaws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "FLAWED_SHARE", 0.4)


def lines(folder: Path) -> list[dict]:
    texts = [path.read_text() for path in sorted(folder.glob("shards/*.jsonl"))]
    return [json.loads(line) for text in texts for line in text.split("\n") if line]


def test_every_scenario_is_kept_or_counted_at_its_gate(whole: Path) -> None:
    gates = json.loads((whole / "index.json").read_text())["gates"]["expert"]
    fell = sum(count for gate, count in gates.items() if gate in ("check failed", "expert at a loss", "duplicate"))
    assert gates["scenarios"] == SCENARIOS == gates["kept"] + fell
    assert gates["kept"] == len(list(read_rollouts(open_store(whole))))
    assert gates["pairs"] == len(list(read_pairs(open_store(whole)))) > 0
    assert sum(count for gate, count in gates.items() if gate.startswith("first attempt")) >= gates["pairs"]


def test_each_shard_accounts_for_its_own_scenarios(whole: Path) -> None:
    last = [json.loads(one.read_text().splitlines()[-1]) for one in sorted(whole.glob("shards/*.jsonl"))]
    assert [one["kind"] for one in last] == ["gates"] * 4
    assert [one["scenarios"] for one in last] == [6, 6, 6, 5]


def test_rollouts_come_from_the_training_families_in_turn(whole: Path) -> None:
    found = list(read_rollouts(open_store(whole)))
    families = Counter(family for family, _ in found)
    assert families == Counter(CYCLE[number % len(CYCLE)] for number in range(SCENARIOS))
    assert set(families) == set(TRAINED) and not set(families) & set(TRANSFER)
    for _, messages in found:
        assert isinstance(messages[0], User) and isinstance(messages[-1], Step) and messages[-1].call is None
        assert SOUL.broken(messages) == ()


def test_the_two_of_a_pair_share_the_request_and_differ_in_keeping_the_soul(whole: Path) -> None:
    for chosen, rejected in read_pairs(open_store(whole)):
        assert chosen[0] == rejected[0]
        assert chosen != rejected
        assert SOUL.broken(chosen) == ()
        assert len(SOUL.broken(rejected)) == 1


def test_what_was_there_is_left_and_what_is_missing_is_made_again(whole: Path, tmp_path: Path) -> None:
    made(tmp_path)
    assert bytes_of(tmp_path) == bytes_of(whole)
    (tmp_path / "shards/00001.jsonl").unlink()
    (tmp_path / "index.json").unlink()
    before = {path: path.stat() for path in (tmp_path / "shards").iterdir()}
    made(tmp_path)
    assert bytes_of(tmp_path) == bytes_of(whole)
    for path, was in before.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (was.st_ino, was.st_mtime_ns)


def test_two_workers_make_the_same_bytes_as_one(whole: Path, tmp_path: Path) -> None:
    assert made(tmp_path, worker=1, of=2) is None
    assert sorted(bytes_of(tmp_path)) == ["shards/00001.jsonl", "shards/00003.jsonl"]
    assert made(tmp_path, worker=0, of=2) is not None
    assert bytes_of(tmp_path) == bytes_of(whole)


@pytest.mark.slow
def test_processes_make_the_same_bytes_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "FLAWED_SHARE", 0.05)  # other processes do not see what a test sets
    made(tmp_path / "one")
    made(tmp_path / "more", workers=2)
    assert bytes_of(tmp_path / "more") == bytes_of(tmp_path / "one")


def test_another_seed_gives_other_scenarios(whole: Path) -> None:
    other = training_scenario("train-6", 0).task
    assert other.prompt not in {messages[0].text for _, messages in read_rollouts(open_store(whole))}  # type: ignore[union-attr]


def test_progress_counts_what_was_there_and_ends_at_all(whole: Path) -> None:
    shown: list[tuple[float, float]] = []
    store = open_store(whole)
    make_shards(store, SOUL, SCENARIOS, 5, PER_SHARD, 1, 0, 1, lambda done, total: shown.append((done, total)))
    assert shown == [(SCENARIOS, SCENARIOS)]


def test_equal_conversations_are_one_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def repeating(stream: str, number: int) -> Scenario:
        one = training_scenario(stream, number % (SCENARIOS // 2))
        return Scenario(one.task.model_copy(update={"id": f"{stream}/{number}"}), one.script)

    monkeypatch.setattr(rollouts, "training_scenario", repeating)
    monkeypatch.setattr(rollouts, "FLAWED_SHARE", 0.0)
    gates = made(tmp_path)
    assert gates is not None
    found = [messages for _, messages in read_rollouts(open_store(tmp_path))]
    assert gates["duplicate"] > 0
    assert gates["kept"] == len(found) == SCENARIOS - gates["duplicate"]
    assert all(one not in found[:place] for place, one in enumerate(found))
    assert len([line for line in lines(tmp_path) if line["kind"] == "rollout"]) == SCENARIOS


def test_an_attempt_falls_at_the_first_gate_it_does_not_pass() -> None:
    one = scenario("find", "gates", 0)
    assert attempt(one, SOUL).fault == ""
    never = Task(**{**one.task.model_dump(), "check": Check(answer=("nobody says this",))})
    assert attempt(Scenario(never, one.script), SOUL).fault == "check failed"
    assert attempt(one, SOUL, "no-flattery").fault == "breaks SOUL 8"


def test_any_text_of_a_line_comes_back(tmp_path: Path) -> None:
    """U+2028 ends a line for `str.splitlines`, and not in JSON."""
    store, text = open_store(tmp_path), "one\u2028two\x85three\x1c"
    line = {"kind": "rollout", "id": "x", "family": "find", "messages": [{"user": text}, {"assistant": text}]}
    store.write("shards/00000.jsonl", (json.dumps(line, ensure_ascii=False) + "\n").encode())
    store.write(
        "index.json", json.dumps({"shards": {"expert": ["shards/00000.jsonl"]}, "gates": {}, "repeated": []}).encode()
    )
    assert list(read_rollouts(store)) == [("find", from_json(line["messages"]))]  # type: ignore[arg-type]
