"""The synth stage with all of its origins, against a server on the loopback that knows how to work."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from jobs import synth
from jobs.cli import main
from jobs.console import Display
from jobs.stage import Outcome, Task
from nanocode.agent.conversation import Result, Step, User
from nanocode.agent.messages import from_messages, to_messages
from nanocode.agent.soul import read_soul
from nanocode.config.settings import load
from nanocode.run import leases
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError, Exit
from nanocode.run.leases import Leases
from nanocode.storage.objects import open_store
from nanocode.synth import public_shards, rollouts, teacher_shards
from nanocode.synth.expert import Expert
from nanocode.tasks.families import training_scenario
from nanocode.text.sources import SourceUnavailable
from nanocode.train.preemption import Preempted
from tests.synth.server import Answer, Server, completion, failing, serving

SOUL = read_soul(None)
KEPT = completion('{"violations": []}')
SMALL = ("synth.scenarios=4", "synth.shard_scenarios=2", "synth.workers=1", "synth.teacher.model=m")
PRICES = ("synth.teacher.prompt_dollars=1000", "synth.teacher.completion_dollars=0", "synth.teacher.max_tokens=10")
VARIABLE = "OPENAI_API_KEY"


@pytest.fixture(autouse=True)
def _key_and_small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "sk-a-key")
    monkeypatch.setattr(teacher_shards, "SHARD_TASKS", 3)
    monkeypatch.setattr(teacher_shards, "SECONDS_BETWEEN_LOOKS", 0.01)


def expert_answer(request: dict[str, Any]) -> Answer:
    """What the built-in expert would do next; a critic finds nothing."""
    if "tools" not in request:
        return KEPT
    conversation = from_messages(request["messages"][1:])
    assert isinstance(conversation[0], User)
    prompt = conversation[0].text.partition("\n\n(Remark:")[0]
    (one,) = [one for one in WORK if one.task.prompt == prompt][:1]
    expert = Expert(one.script, SOUL)
    step = None
    for place, message in enumerate(conversation):
        if isinstance(message, User | Result):
            (step,) = expert([conversation[: place + 1]])
    assert step is not None
    (message,) = to_messages([*conversation, step])[-1:]
    return completion(message["content"], **{key: message[key] for key in ("tool_calls",) if key in message})


WORK = [training_scenario("teacher-0", number) for number in range(40)]


class Leaving:
    """Stands in for the process' signals."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def loop(self) -> Any:
        return nullcontext()

    def reached(self, step: int) -> bool:
        return self._asked()


class Quiet(Display):
    def show(self, phase: str, done: float, total: float, unit: str = "", **facts: float) -> None:
        pass


def stage(
    folder: Path,
    *overrides: str,
    worker: int = 0,
    workers: int = 1,
    leaving: Callable[[], bool] = lambda: False,
    digest: str = "0123456789ab",
) -> tuple[Task, Outcome | None]:
    settings = load("demo", [*SMALL, *overrides], environment={})
    run = RunDirectory(open_store(folder))
    task = Task(run, settings, "synth", digest, {}, Leaving(leaving), Quiet("synth"), worker, workers)  # type: ignore[arg-type]
    return task, synth.work(task)


@contextmanager
def teacher(
    script: Callable[[dict[str, Any]], Answer] = expert_answer, tasks: int = 4
) -> Iterator[tuple[Server, tuple[str, ...]]]:
    with serving(script) as server:
        yield (
            server,
            (f"synth.teacher.url={server.url}", f"synth.teacher_scenarios={tasks}", "synth.teacher.tries=1"),
        )


def public_sets(folder: Path) -> str:
    """Two sets that share a request; the first has rows that no gate lets through."""
    folder.mkdir()
    rows = [{"instruction": f"Write {n}.", "response": f"{n} it is."} for n in range(40)]
    bad = [{"instruction": "Empty?", "response": " "}, {"instruction": "Praise?", "response": "Great question! Yes."}]
    (folder / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*bad, rows[0], *rows]))
    other = [{"instruction": "write  0.", "response": "Zero."}, {"instruction": "Sing.", "response": "La."}]
    (folder / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    pair = {"prompt": "Choose.", "chosen": "This.", "rejected": "That."}
    (folder / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    sets = [
        {"location": str(folder / "one.jsonl"), "share": 3.0, "licence": "MIT"},
        {"location": str(folder / "two.jsonl"), "share": 1.0},
        {"location": str(folder / "pairs.jsonl"), "kind": "pairs"},
    ]
    return f"synth.public={json.dumps(sets)}"


def shards_of(task: Task) -> dict[str, bytes]:
    return {name: task.output.read(name) for name in task.output.list() if name.endswith(".jsonl")}


def test_the_three_origins_end_in_one_index(tmp_path: Path) -> None:
    sets = (public_sets(tmp_path / "sets"), "synth.public_rollouts=8", "synth.public_pairs=1")
    with teacher() as (server, asked):
        task, outcome = stage(tmp_path / "run", *asked, *sets, *PRICES)
    assert outcome is not None
    index = json.loads(task.output.read("index.json"))
    assert index["shards"] == {
        "expert": ["shards/00000.jsonl", "shards/00001.jsonl"],
        "public": ["public/00/00000.jsonl", "public/01/00000.jsonl", "public/02/00000.jsonl"],
        "teacher": ["teacher/00000.jsonl", "teacher/00001.jsonl"],
    }
    gates = index["gates"]
    assert outcome.metrics["gates"] == gates
    assert (gates["expert"]["scenarios"], gates["expert"]["kept"]) == (4, 4)
    assert gates["teacher"] == {"scenarios": 4, "kept": 4}
    praise = next(gate for gate in gates["public"] if gate.startswith("breaks SOUL"))
    assert gates["public"] == {"kept": 7, "duplicate": 2, praise: 1, "no conversation of ours": 1, "pairs": 1}
    families = Counter(family for family, _ in rollouts.read_rollouts(task.output))
    assert (families["one.jsonl"], families["two.jsonl"], families.total()) == (6, 1, 4 + 7 + 4)
    assert list(rollouts.read_pairs(task.output))[-1][0] == [User("Choose."), Step("This.")]
    first = outcome.metrics["public"][0]  # type: ignore[index,call-overload]
    assert (first["set"], first["licence"], first["wanted"]) == ("one.jsonl", "MIT", 6)
    said = outcome.metrics["teacher"]
    assert isinstance(said, dict)
    assert said["calls"] == len(server.requests)
    assert said["prompt_tokens"] == 100 * len(server.requests)
    assert said["dollars"] == pytest.approx(0.1 * len(server.requests))


def test_the_experts_shards_are_the_same_whoever_else_contributes(tmp_path: Path) -> None:
    with teacher() as (_, asked):
        task, _ = stage(tmp_path / "run", *asked, public_sets(tmp_path / "sets"), "synth.public_rollouts=8")
    for number in range(2):
        lines = rollouts.shard_lines(range(2 * number, 2 * number + 2), 0, SOUL)
        expected = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        assert task.output.read(f"shards/{number:05d}.jsonl") == expected


def asked_twice(server: Server) -> list[str]:
    """Requests that were sent, and paid for, more than once."""
    sent = Counter(json.dumps(one, sort_keys=True) for one in server.requests)
    return [request for request, count in sent.items() if count > 1]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is waited for long. For workers that come one at a time: of several at once, one may be slower."""
    monkeypatch.setattr(leases, "SECONDS_BETWEEN_SIGNS", 0.01)
    monkeypatch.setattr(leases, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(synth, "SECONDS_BETWEEN_LOOKS", 0.01)


@pytest.mark.parametrize(("workers", "come"), [(2, (1, 0)), (4, (3, 1, 0, 2)), (4, (2,)), (4, (0, 3))], ids=str)
@pytest.mark.usefixtures("impatient")
def test_workers_that_come_one_after_the_other_or_never_make_what_one_makes(
    tmp_path: Path, workers: int, come: tuple[int, ...]
) -> None:
    sets = (public_sets(tmp_path / "sets"), "synth.public_rollouts=8", "synth.public_pairs=1")
    with teacher(tasks=7) as (server, asked):
        alone, _ = stage(tmp_path / "alone", *asked, *sets)
        server.requests.clear()
        task, outcome = stage(tmp_path / "several", *asked, *sets, worker=come[0], workers=workers)
        assert outcome is not None, "it does not wait for those that are not there"
        for worker in come[1:]:
            stage(tmp_path / "several", *asked, *sets, worker=worker, workers=workers)
        assert asked_twice(server) == []
    assert "teacher/00001.jsonl" in shards_of(alone)
    assert shards_of(alone) == shards_of(task)
    assert task.output.read("index.json") == alone.output.read("index.json")


def test_four_workers_at_once_make_what_one_makes_and_ask_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = (public_sets(tmp_path / "sets"), "synth.public_rollouts=8", "synth.public_pairs=1")
    monkeypatch.setattr(synth, "SECONDS_BETWEEN_LOOKS", 0.01)
    made: list[str] = []
    make_shard = rollouts.make_shard

    def noted(*arguments: Any) -> str:
        made.append(make_shard(*arguments))
        return made[-1]

    monkeypatch.setattr(rollouts, "make_shard", noted)
    with teacher(tasks=7) as (server, asked):
        alone, _ = stage(tmp_path / "alone", *asked, *sets)
        server.requests.clear()
        made.clear()
        found: list[tuple[Task, Outcome | None]] = []

        def work(worker: int) -> None:
            found.append(stage(tmp_path / "several", *asked, *sets, worker=worker, workers=4))

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert asked_twice(server) == []
    assert sorted(made) == ["shards/00000.jsonl", "shards/00001.jsonl"]
    assert len(found) == 4 and any(outcome is not None for _, outcome in found)
    assert shards_of(alone) == shards_of(found[0][0])
    assert found[0][0].output.read("index.json") == alone.output.read("index.json")


def test_the_workers_of_a_new_attempt_share_the_work_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leases_of(attempt: int | None, worker: int) -> Leases:
        run, settings = RunDirectory(open_store(tmp_path)), load("demo", environment={})
        return Task(run, settings, "synth", "d" * 32, {}, Leaving(bool), Quiet("synth"), worker, 2, attempt).leases()  # type: ignore[arg-type]

    monkeypatch.setattr(leases, "SECONDS_BETWEEN_SIGNS", 0.0)
    monkeypatch.setattr(leases, "PATIENCE_SECONDS", -1.0)
    with leases_of(1, 0) as first:
        assert first.take_over([1]) == 1
    with leases_of(1, 1) as late, leases_of(2, 1) as again, leases_of(None, 1) as by_hand:
        assert (late.held, again.held, by_hand.held) == ((), (1,), (1,))


@pytest.mark.usefixtures("impatient")
def test_a_worker_whose_share_was_taken_over_asks_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with teacher(tasks=8) as (server, asked):
        monkeypatch.setattr(Leases, "holds", lambda self, share: len(server.requests) < 5)
        monkeypatch.setattr(Leases, "work_off", lambda self, work, missing, wait: work(0))
        assert stage(tmp_path / "run", *asked, "synth.teacher.concurrency=1", workers=2)[1] is None
        assert len(server.requests) < 20


@pytest.mark.usefixtures("impatient")
def test_what_was_settled_after_a_share_was_lost_is_kept_and_not_published_over_its_new_holders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with teacher(tasks=2) as (_, asked):
        monkeypatch.setattr(teacher_shards, "SECONDS_BETWEEN_LOOKS", 60.0)  # it looks when all tasks are settled
        answers = iter([True])  # when it begins; by the next look it is lost
        monkeypatch.setattr(Leases, "holds", lambda self, share: next(answers, False))
        monkeypatch.setattr(Leases, "work_off", lambda self, work, missing, wait: work(0))
        task, _ = stage(tmp_path / "run", *asked, workers=2)
        paid = [name for name in task.run.store.list("synth/") if "/paid-" in name and "/rest/" not in name]
    assert (task.output.list("teacher/"), len(paid)) == ([], 2)


def test_a_first_attempt_that_fell_makes_a_pair(tmp_path: Path) -> None:
    def sloppy(request: dict[str, Any]) -> Answer:
        remarked = any("(Remark:" in (one["content"] or "") for one in request["messages"])
        return expert_answer(request) if remarked or "tools" not in request else completion("Great question! Done.")

    with teacher(sloppy) as (_, asked):
        task, outcome = stage(tmp_path / "run", *asked)
    assert outcome is not None
    assert json.loads(task.output.read("index.json"))["gates"]["teacher"] == {"scenarios": 4, "kept": 4, "pairs": 4}
    for chosen, rejected in list(rollouts.read_pairs(task.output))[-4:]:
        assert chosen[0] == rejected[0]
        assert rejected[1] == Step("Great question! Done.")


def test_without_a_key_the_teacher_is_left_out_and_all_else_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE)
    with teacher() as (server, asked):
        _, outcome = stage(tmp_path / "run", *asked)
        assert outcome is not None
        gates: Any = outcome.metrics["gates"]
        assert gates["teacher"] == {"scenarios": 4, "left out: $OPENAI_API_KEY is not set": 4}
        assert gates["expert"]["kept"] == 4
        assert "$OPENAI_API_KEY is not set" in capsys.readouterr().out
        assert server.requests == []
        monkeypatch.setenv(VARIABLE, "sk-a-key")
        _, later = stage(tmp_path / "run", *asked)
        assert later is not None
        assert later.metrics["gates"]["teacher"] == {"scenarios": 4, "kept": 4}  # type: ignore[index,call-overload]


def test_what_was_paid_for_is_there_without_the_key_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with teacher(tasks=4) as (_, asked):
        stage(tmp_path / "run", *asked, digest="a" * 12)
        monkeypatch.delenv(VARIABLE)
        _, outcome = stage(tmp_path / "run", *asked, "synth.teacher_scenarios=5", digest="b" * 12)
    assert outcome is not None
    gates: Any = outcome.metrics["gates"]
    assert gates["teacher"] == {"scenarios": 5, "kept": 4, "left out: $OPENAI_API_KEY is not set": 1}


def test_a_public_set_that_is_not_there_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = f"synth.public=[{{location: {tmp_path}/absent.jsonl}}]"
    assert main(["run", "--run-dir", str(tmp_path / "run"), "--set", absent]) == Exit.CONFIGURATION
    assert "absent.jsonl' is not there: correct it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_server_without_keys_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with teacher(tasks=1) as (_, asked):
        _, outcome = stage(tmp_path / "run", *asked, "synth.teacher.key_variable=null")
    assert outcome is not None
    assert outcome.metrics["gates"]["teacher"] == {"scenarios": 1, "kept": 1}  # type: ignore[index,call-overload]


def test_the_cap_ends_it_cleanly_and_a_higher_one_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_at_a_time = (*PRICES, "synth.teacher.concurrency=1")
    with teacher(tasks=6) as (server, asked):
        _, outcome = stage(tmp_path / "run", *asked, *one_at_a_time, "synth.teacher.cap_dollars=3", digest="a" * 12)
        assert outcome is not None
        gates: Any = outcome.metrics["gates"]
        left, kept = gates["teacher"]["left out: the spending cap"], gates["teacher"]["kept"]
        assert left > 0
        assert kept > 0
        assert left + kept == 6
        assert "could pass its cap_dollars" in capsys.readouterr().out
        said: Any = outcome.metrics["teacher"]
        assert 0 < said["dollars"] <= 3
        before = len(server.requests)
        assert said["dollars"] == pytest.approx(0.1 * before)
        # The settings are others now, and so is the stage's folder; what was paid for is not paid again.
        _, outcome = stage(tmp_path / "run", *asked, *one_at_a_time, "synth.teacher.cap_dollars=1000", digest="b" * 12)
        assert outcome is not None
        settled = {WORK[number].task.prompt for number in range(kept)}
        assert not settled & {one["messages"][1]["content"] for one in server.requests[before:]}
        assert outcome.metrics["gates"]["teacher"] == {"scenarios": 6, "kept": 6}  # type: ignore[index,call-overload]
        assert outcome.metrics["teacher"]["dollars"] == pytest.approx(0.1 * len(server.requests))  # type: ignore[index,call-overload]


@pytest.mark.usefixtures("impatient")
def test_a_cap_holds_over_attempts_and_workers(tmp_path: Path) -> None:
    with teacher(tasks=12) as (server, asked):
        several = (*asked, *PRICES, "synth.teacher.cap_dollars=6")
        for digest in ("a" * 12, "b" * 12):
            for worker in (1, 0):
                _, outcome = stage(tmp_path / "run", *several, worker=worker, workers=2, digest=digest)
        assert outcome is not None
        assert outcome.metrics["gates"]["teacher"]["left out: the spending cap"] > 0  # type: ignore[index,call-overload,operator]
        assert 0 < 0.1 * len(server.requests) <= 6


def test_an_endpoint_out_of_reach_ends_the_attempt_and_loses_nothing(tmp_path: Path) -> None:
    with teacher(tasks=7) as (server, asked):
        server.script = lambda request: expert_answer(request) if len(server.requests) <= 4 else failing(503)
        with pytest.raises(SourceUnavailable, match="what was settled is kept"):
            stage(tmp_path / "run", *asked, "synth.teacher.concurrency=1")
        before, server.script = len(server.requests), expert_answer
        task, outcome = stage(tmp_path / "run", *asked)
        assert outcome is not None
        assert outcome.metrics["gates"]["teacher"] == {"scenarios": 7, "kept": 7}  # type: ignore[index,call-overload]
        assert WORK[0].task.prompt not in {one["messages"][1]["content"] for one in server.requests[before:]}
        alone, _ = stage(tmp_path / "alone", *asked)
        assert shards_of(task) == shards_of(alone)


def test_one_task_without_an_answer_is_left_out(tmp_path: Path) -> None:
    def moody(request: dict[str, Any]) -> Answer:
        return failing(503) if request["messages"][1]["content"] == WORK[2].task.prompt else expert_answer(request)

    with teacher(moody) as (_, asked):
        _, outcome = stage(tmp_path / "run", *asked)
    assert outcome is not None
    assert outcome.metrics["gates"]["teacher"] == {"scenarios": 4, "kept": 3, "left out: out of reach": 1}  # type: ignore[index,call-overload]


def test_a_wrong_key_is_told_at_once(tmp_path: Path) -> None:
    with teacher(lambda request: failing(401)) as (server, asked):
        with pytest.raises(ConfigurationError, match="set \\$OPENAI_API_KEY to a valid key"):
            stage(tmp_path / "run", *asked, "synth.teacher.concurrency=2")
        assert len(server.requests) <= 2


def test_told_to_leave_it_finishes_what_is_in_flight_and_goes_on_later(
    tmp_path: Path,
) -> None:
    with teacher(tasks=8) as (server, asked):
        with pytest.raises(Preempted):
            stage(tmp_path / "run", *asked, "synth.teacher.concurrency=1", leaving=lambda: len(server.requests) > 5)
        before = len(server.requests)
        assert before < 20
        _, outcome = stage(tmp_path / "run", *asked)
        assert outcome is not None
        assert outcome.metrics["teacher"]["calls"] == len(server.requests)  # type: ignore[index,call-overload]
        assert WORK[0].task.prompt not in {one["messages"][1]["content"] for one in server.requests[before:]}


def test_told_to_leave_before_the_first_task_it_asks_nobody(tmp_path: Path) -> None:
    with teacher(tasks=8) as (server, asked):
        with pytest.raises(Preempted, match="what the teacher has settled is kept"):
            stage(tmp_path / "run", *asked, leaving=lambda: True)
        assert server.requests == []


def test_never_more_calls_in_flight_than_told(tmp_path: Path) -> None:
    with teacher(tasks=5) as (server, asked):
        stage(tmp_path / "run", *asked, "synth.teacher.concurrency=3")
    assert server.most_in_flight <= 3


def test_a_critic_of_its_own_is_asked_and_paid_by_its_own_prices(tmp_path: Path) -> None:
    with teacher(tasks=3) as (server, asked), serving([KEPT]) as critic:
        own = ("synth.critic.model=c", f"synth.critic.url={critic.url}", "synth.critic.prompt_dollars=2000")
        _, outcome = stage(tmp_path / "run", *asked, *PRICES, *own)
    assert outcome is not None
    assert len(critic.requests) == 3
    assert all("tools" in one for one in server.requests)
    assert outcome.metrics["teacher"]["dollars"] == pytest.approx(0.1 * len(server.requests) + 0.2 * 3)  # type: ignore[index,call-overload]


def test_quotas_add_up_and_keep_to_the_shares() -> None:
    sets = [{"location": "a", "share": 1.0}, {"location": "b", "share": 1.0}, {"location": "c", "share": 1.0}]
    pairs = [{"location": "d", "kind": "pairs", "share": 9.0}]
    settings = load("demo", [f"synth.public={json.dumps(sets + pairs)}", "synth.public_rollouts=100"], environment={})
    assert [one.rows for one in public_shards.quotas(settings.synth)] == [33, 34, 33]
    assert public_shards.name_of(load("d12", environment={}).synth.public[2]) == "allenai/tulu-3-sft-personas-code"


@pytest.mark.parametrize("preset", ["d12", "d20", "d24"])
def test_a_dry_run_tells_licences_cost_and_what_is_left_out_and_writes_nothing(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEACHER_API_KEY", raising=False)
    arguments = ["run", "--preset", preset, "--run-dir", str(tmp_path / "run"), "--dry-run"]
    assert main(arguments) == Exit.DONE
    said = capsys.readouterr().out
    synth = load(preset, environment={}).synth
    assert f"{synth.scenarios:,} scenarios by the built-in expert" in said
    assert "rollouts of allenai/tulu-3-sft-personas-code (licence: ODC-By-1.0)" in said
    assert "pairs of smohammadi/nanocode-long-context-preference (licence not known here: see its page)" in said
    assert f"{synth.teacher_scenarios:,} tasks by gpt-4.1-mini" in said
    assert "LEFT OUT as things are: $TEACHER_API_KEY is not set" in said
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("TEACHER_API_KEY", "sk-a-key")
    assert main(arguments) == Exit.DONE
    assert "LEFT OUT" not in capsys.readouterr().out


@pytest.mark.parametrize("preset", ["d12", "d20", "d24"])
def test_a_preset_can_pay_for_what_it_asks_for(preset: str) -> None:
    from nanocode.synth.plan import estimated

    settings = load(preset, environment={})
    assert settings.synth.teacher is not None
    assert settings.synth.teacher.cap_dollars is not None
    assert estimated(settings, settings.synth.teacher, SOUL).dollars < settings.synth.teacher.cap_dollars
    for kind in ("rollouts", "pairs"):
        assert sum(one.share for one in settings.synth.public if one.kind == kind) == pytest.approx(1.0)
