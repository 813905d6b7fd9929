"""The journal in a real run directory: what is written once is read back, and a look costs little."""

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deploy.controller.backend import Unreachable
from deploy.controller.decision import Decision, StageState, State
from deploy.controller.observed import Stage, Trouble
from deploy.controller.record import STATUS, RunJournal
from nanocode.config.settings import Budget, Settings, from_yaml, load
from nanocode.run import copied, near
from nanocode.run.attempts import End, Ending, Stop, recorded
from nanocode.run.digests import stage_digests
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.graph import order
from nanocode.run.intent import begun_again, change_intent, forgive, latest_intent
from nanocode.run.segments import SegmentWriter
from nanocode.storage.objects import PAGE, LocalStore, StorageError

NOW = 1_000_000.0


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(LocalStore(tmp_path / "run"))
    run.add_config(load("demo", ["corpus.sources=" + str(tmp_path)], environment={}).to_yaml())
    return run


def settings(run: RunDirectory) -> Settings:
    config = run.latest_config()
    assert config is not None
    return from_yaml(config[1], "config")


def finish(run: RunDirectory, stage: str) -> None:
    digest = stage_digests(settings(run), run)[stage]
    at = datetime.now(UTC)
    run.finish(stage, Marker(stage=stage, input_digest=digest, attempt=1, started=at, ended=at))


def stage(journal: RunJournal, name: str) -> Stage:
    return next(one for one in journal.read().stages if one.name == name)


def test_a_fresh_run_has_every_stage_with_its_digest(run: RunDirectory) -> None:
    written = RunJournal(run).read()
    assert tuple(one.name for one in written.stages) == order()
    assert {one.name: one.digest for one in written.stages} == stage_digests(settings(run), run)
    assert not any(one.attempts or one.marked for one in written.stages)
    assert written.intent.want == "run"


def test_a_claim_is_won_once_and_seen_by_all(run: RunDirectory) -> None:
    first, second = RunJournal(run), RunJournal(run)
    assert first.claim("tokenizer", 1, "a" * 32, None)
    assert not second.claim("tokenizer", 1, "b" * 32, None)
    for journal in (first, second):
        (attempt,) = stage(journal, "tokenizer").attempts
        assert (attempt.number, attempt.digest, attempt.live) == (1, "a" * 32, True)


def test_the_first_word_on_an_attempt_counts(run: RunDirectory) -> None:
    first, second = RunJournal(run), RunJournal(run)
    first.claim("tokenizer", 1, "a" * 32, "slice-1")
    first.read(), second.read()
    first.stop("tokenizer", 1, Stop(reason="suspended", at=NOW))
    second.stop("tokenizer", 1, Stop(reason="hangs", at=NOW + 1, hung=True))
    first.end("tokenizer", 1, End(ending=Ending.STOPPED, reason="suspended", at=NOW + 2, progress=3))
    second.end("tokenizer", 1, End(ending=Ending.FAILED, reason="other", at=NOW + 3, progress=4))
    for journal in (first, second):
        (attempt,) = stage(journal, "tokenizer").attempts
        assert attempt.stop == Stop(reason="suspended", at=NOW)
        assert attempt.end == End(ending=Ending.STOPPED, reason="suspended", at=NOW + 2, progress=3)
        assert attempt.slice == "slice-1"
    assert recorded(run, "tokenizer", 1, End) == attempt.end


def test_signs_of_life_are_read_from_segments(run: RunDirectory) -> None:
    journal, digest = RunJournal(run), stage_digests(settings(run), run)["tokenizer"]
    journal.claim("tokenizer", 1, digest, None)
    (attempt,) = stage(journal, "tokenizer").attempts
    assert (attempt.first_step, attempt.last_sign) == (None, None)
    with SegmentWriter(run.store, "tokenizer", 1, "log", 0) as writer:
        writer.write({"event": "begun", "time": NOW})
    (attempt,) = stage(journal, "tokenizer").attempts
    assert (attempt.first_step, attempt.last_sign) == (None, NOW)
    with SegmentWriter(run.store, "tokenizer", 1, "events", 0) as writer:
        writer.write({"kind": "progress", "phase": copied.PHASE, "done": 1.0, "total": 20.0, "time": NOW + 3})
    (attempt,) = stage(journal, "tokenizer").attempts
    assert (attempt.first_step, attempt.last_sign, attempt.copying) == (None, NOW + 3, NOW + 3), "no work yet"
    with SegmentWriter(run.store, "tokenizer", 1, "metrics", 0) as writer:
        writer.write({"kind": "step", "time": NOW + 5})
        writer.write({"kind": "step", "time": NOW + 9})
    (attempt,) = stage(journal, "tokenizer").attempts
    assert (attempt.first_step, attempt.last_sign) == (NOW + 5, NOW + 9)


def test_damaged_segments_are_no_signs(run: RunDirectory) -> None:
    journal = RunJournal(run)
    journal.claim("tokenizer", 1, "a" * 32, None)
    run.store.create("tokenizer/attempts/1/metrics/0-000000.jsonl", b'{"kind": "st\n[1]\n{"time": "x"}\n\xff\n')
    (attempt,) = stage(journal, "tokenizer").attempts
    assert (attempt.first_step, attempt.last_sign) == (None, None)


def test_progress_is_the_newest_checkpoint_of_any_attempt_with_the_digest(run: RunDirectory) -> None:
    journal, digest = RunJournal(run), stage_digests(settings(run), run)["tokenizer"]
    journal.claim("tokenizer", 1, digest, None)
    journal.end("tokenizer", 1, End(ending=Ending.PREEMPTED, reason="", at=NOW, progress=40))
    journal.claim("tokenizer", 2, digest, None)
    assert stage(journal, "tokenizer").progress == 40
    run.store.create("tokenizer/attempts/2/checkpoints/60.json", b"{}")
    run.store.create("tokenizer/attempts/2/checkpoints/80/half", b"")
    assert stage(journal, "tokenizer").progress == 60
    journal.claim("tokenizer", 3, "c" * 32, None)
    run.store.create("tokenizer/attempts/3/checkpoints/900.json", b"{}")
    assert stage(journal, "tokenizer").progress == 60


def test_progress_of_a_stage_without_checkpoints_is_what_it_has_published(run: RunDirectory) -> None:
    journal, digest = RunJournal(run), stage_digests(settings(run), run)["synth"]
    journal.claim("synth", 1, digest, None)
    assert stage(journal, "synth").progress == 0
    for shard in range(3):
        run.store.create(f"synth/{digest[:12]}/shards/{shard}.jsonl", b"")
    assert stage(journal, "synth").progress == 3


def test_a_marker_is_seen_and_a_retry_makes_it_stale(run: RunDirectory) -> None:
    journal = RunJournal(run)
    assert not stage(journal, "tokenizer").done
    finish(run, "tokenizer")
    assert stage(journal, "tokenizer").done
    before = {one.name: one.digest for one in journal.read().stages}
    change_intent(run, again=begun_again(latest_intent(run), ("tokenizer",)))
    after = {one.name: one.digest for one in journal.read().stages}
    assert not stage(journal, "tokenizer").done
    changed = {name for name in order() if before[name] != after[name]}
    assert changed == set(order()) - {"synth"}
    assert after == stage_digests(settings(run), run)


def test_new_settings_are_read_live(run: RunDirectory) -> None:
    journal = RunJournal(run)
    assert journal.read().budget.dollars is None
    run.add_config(settings(run).model_copy(update={"budget": Budget(dollars=5.0)}).to_yaml())
    assert journal.read().budget.dollars == 5.0


def test_forgiving_names_the_last_attempt(run: RunDirectory) -> None:
    journal = RunJournal(run)
    journal.claim("tokenizer", 1, "a" * 32, None)
    journal.claim("tokenizer", 2, "a" * 32, None)
    change_intent(run, forgiven=forgive(run, ("tokenizer", "corpus")))
    assert journal.read().intent.forgiven == {"tokenizer": 2, "corpus": 0}


def test_a_slice_keeps_the_bucket_that_was_near_it_when_it_was_asked_for(run: RunDirectory) -> None:
    def named(bucket: str) -> None:
        text = settings(run).to_yaml().replace("buckets: {}", f"buckets: {{europe-west4: {bucket}}}")
        run.add_config(text)

    named("gs://first")
    journal = RunJournal(run)
    journal.read()
    journal.request("slice-1", "europe-west4-a", 4.0, NOW)
    journal.request("slice-2", "us-east5-b", 4.0, NOW)
    assert [near.of_slice(run, name) for name in ("slice-2", "slice-3", "pool")] == [None] * 3
    run.add_config(settings(run).to_yaml().replace("gs://first", "gs://later"))
    journal.read()
    journal.request("slice-1", "europe-west4-a", 4.0, NOW)
    assert json.loads(run.store.read("slices/slice-1/REQUEST.json"))["near"] == f"gs://first{run.store.url}"


def test_the_life_of_a_slice_is_written_once(run: RunDirectory) -> None:
    first, second = RunJournal(run), RunJournal(run)
    assert first.request("slice-1", "east", 4.0, NOW) == "east"
    assert second.request("slice-1", "west", 9.0, NOW + 1) == "east"
    first.note("slice-1", "ready", NOW + 60)
    second.note("slice-1", "ready", NOW + 99)
    (one,) = second.read().slices
    assert (one.zone, one.dollars_per_hour, one.requested, one.ready) == ("east", 4.0, NOW, NOW + 60)
    second.note("slice-1", "preempted", NOW + 100, "its node is gone")
    second.note("slice-1", "released", NOW + 101)
    first.note("slice-1", "gone", NOW + 102)
    for journal in (first, second, RunJournal(run)):
        (one,) = journal.read().slices
        assert (one.trouble, one.released, one.gone) == (Trouble.PREEMPTED, NOW + 101, NOW + 102)
        assert one.reason == "its node is gone"


def test_the_user_is_told_once(run: RunDirectory) -> None:
    first, second = RunJournal(run), RunJournal(run)
    assert first.told("done-abc")
    assert not second.told("done-abc")
    assert "done-abc" in RunJournal(run).read().told


def test_what_could_not_be_noted_is_told_in_the_next_round(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise StorageError("cannot use the bucket: check the network")

    journal = RunJournal(run)
    with monkeypatch.context() as outage:
        outage.setattr(run.store, "create", fails)
        with pytest.raises(Unreachable):
            journal.told("done-abc")
    assert "done-abc" not in journal.read().told
    assert journal.told("done-abc")
    assert "done-abc" in journal.read().told


def test_the_status_is_written_when_it_changes_and_now_and_then(run: RunDirectory) -> None:
    journal = RunJournal(run)
    waiting = Decision((), {"a": StageState(State.WAITING)}, State.WAITING, "", 0.0, False)
    running = Decision((), {"a": StageState(State.RUNNING)}, State.RUNNING, "a", 1.5, False)
    found = []
    for decision, at in ((waiting, NOW), (waiting, NOW + 5), (running, NOW + 6), (running, NOW + 17)):
        journal.show(decision, at)
        found.append(run.store.read(STATUS))
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert b'"spent_dollars": 1.5' in found[3]


class Counting(LocalStore):
    """Counts the requests that a bucket would have to answer."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.requests: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if name in ("read", "exists", "generation", "list", "children", "create", "write", "replace"):
            object.__getattribute__(self, "requests")[name] += 1
        return super().__getattribute__(name)

    def generation(self, name: str) -> int:
        found = super().generation(name)
        self.requests["read"] -= 1  # a bucket need not read for it
        return found

    def list(self, prefix: str = "", after: str = "") -> list[str]:
        names = super().list(prefix, after)
        self.requests["further pages"] += len(names) // PAGE
        return names


def long_run(store: Counting, ended: int, segments: int) -> RunJournal:
    """A run that pretrains, with so many attempts behind it and so many segments published by the live one."""
    run = RunDirectory(store)
    run.add_config(load("demo", ["corpus.sources=" + str(store.root.parent)], environment={}).to_yaml())
    for name in ("tokenizer", "corpus"):
        finish(run, name)
    journal, digest = RunJournal(run), stage_digests(settings(run), run)["pretrain"]
    for number in range(1, ended + 1):
        journal.claim("pretrain", number, digest, None)
        store.create(f"pretrain/attempts/{number}/metrics/0-000000.jsonl", b"{}")
        journal.end("pretrain", number, End(ending=Ending.PREEMPTED, reason="", at=NOW, progress=number))
    journal.claim("pretrain", ended + 1, digest, None)
    folder = store.root / f"pretrain/attempts/{ended + 1}/metrics"
    folder.mkdir()
    for seq in range(segments):
        (folder / f"0-{seq:06d}.jsonl").write_text(json.dumps({"time": NOW + seq, "kind": "step"}))
    store.requests.clear()
    return RunJournal(run)


def test_a_look_costs_a_handful_of_requests_however_long_the_run_has_been_going_on(tmp_path: Path) -> None:
    store = Counting(tmp_path / "run")
    journal = long_run(store, ended=60, segments=200)
    journal.read()
    store.requests.clear()
    journal.read()
    assert store.requests.total() <= 6, store.requests


def test_the_first_look_reads_of_an_attempt_that_has_ended_its_claim_and_its_end(tmp_path: Path) -> None:
    found = []
    for ended in (10, 20):
        store = Counting(tmp_path / str(ended) / "run")
        long_run(store, ended, segments=1).read()
        found.append(store.requests.total())
    assert found[1] - found[0] == 2 * 10


def test_a_look_at_an_attempt_of_a_week_costs_no_more_and_misses_nothing(tmp_path: Path) -> None:
    store = Counting(tmp_path / "run")
    journal = long_run(store, ended=0, segments=7 * PAGE)
    assert stage(journal, "pretrain").attempts[0].last_sign == NOW + 7 * PAGE - 1
    store.requests.clear()
    journal.read()
    assert store.requests.total() <= 8, store.requests
    folder = "pretrain/attempts/1"
    for name in (f"{folder}/metrics/0-{7 * PAGE:06d}.jsonl", f"{folder}/metrics/0-{7 * PAGE + 1:06d}.jsonl"):
        store.create(name, json.dumps({"time": NOW + 100_000, "kind": "step"}).encode())
    store.create(f"{folder}/checkpoints/80.json", b"{}")
    store.create(f"{folder}/STOP.json", Stop(reason="suspended", at=NOW).model_dump_json().encode())
    seen = stage(journal, "pretrain")
    (attempt,) = seen.attempts
    assert (attempt.last_sign, attempt.first_step) == (NOW + 100_000, NOW + 7 * PAGE - 1)
    assert (seen.progress, attempt.stop) == (80, Stop(reason="suspended", at=NOW))
    store.create(f"{folder}/END.json", b'{"ending": "stopped", "reason": "", "at": 1, "progress": 80}')
    (attempt,) = stage(journal, "pretrain").attempts
    assert attempt.end is not None


def test_no_answer_from_the_store_is_no_answer(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = RunJournal(run)

    def fails(*_: object) -> None:
        raise StorageError("cannot use the bucket: check the network")

    monkeypatch.setattr(run.store, "children", fails)
    with pytest.raises(Unreachable, match="check the network"):
        journal.read()
    monkeypatch.setattr(run.store, "create", fails)
    with pytest.raises(Unreachable):
        journal.claim("tokenizer", 1, "a" * 32, None)
