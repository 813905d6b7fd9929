"""Shards of a teacher's rollouts: threads that ask, a cap that holds, and nothing that is paid for twice.

    teacher/00000.jsonl   50 tasks: rollouts, pairs, and last {"kind": "gates"}

A task that is settled, whether its rollout was kept or not, is an object in `paid`, outside of the stage's folder, and
its name says what it cost. So a killed run, or one with a higher cap or more tasks, goes on from there; what was in
flight when a process was killed is lost, and is not in the count.
"""

import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from threading import Lock
from typing import Any, NamedTuple

import structlog

from nanocode.agent.conversation import to_json
from nanocode.agent.endpoint import EndpointPolicy, EndpointUnavailable
from nanocode.agent.soul import Soul
from nanocode.agent.spending import CostMeter, Spending, SpendingCapReached
from nanocode.config.settings import Endpoint, Synth
from nanocode.storage.objects import Store
from nanocode.synth.teacher import Critic, attempt
from nanocode.tasks.families import training_scenario
from nanocode.tasks.task import Task
from nanocode.text.sources import SourceUnavailable

log = structlog.get_logger()

STREAM = "teacher"
SHARD_TASKS = 50
# Tasks in a row for which the endpoint was out of reach after all its tries: then it is, for all of them.
UNREACHABLE_TASKS = 5
LEFT_OUT = "left out: "
SECONDS_BETWEEN_LOOKS = 0.5


def teacher_task(seed: int, number: int) -> Task:
    """One of the teacher's tasks: of a training family, and none of the expert's."""
    return training_scenario(f"{STREAM}-{seed}", number).task


def endpoints(synth: Synth) -> list[Endpoint]:
    """Whoever is paid: the teacher, and a critic of its own."""
    return [one for one in (synth.teacher, synth.critic) if isinstance(one, Endpoint)] if synth.teacher else []


def missing_keys(synth: Synth) -> list[str]:
    """The variables that should hold a key and do not."""
    names = dict.fromkeys(one.key_variable for one in endpoints(synth) if one.key_variable)
    return [name for name in names if not os.environ.get(name, "").strip()]


def paid_folder(synth: Synth, soul: Soul, seed: int) -> str:
    """Named by everything that decides what becomes of a task: prices and caps do not."""
    asked = [{"url": one.url, "model": one.model, "length": one.max_tokens, **one.options} for one in endpoints(synth)]
    inputs = json.dumps([seed, soul.text, asked, bool(synth.critic)], sort_keys=True)
    return f"paid-{hashlib.sha256(inputs.encode()).hexdigest()[:12]}"


class Cost(NamedTuple):
    """What the name of a paid object says."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    teacher_micros: int = 0
    critic_micros: int = 0
    """Millionths of a dollar."""

    def plus(self, other: "Cost", sign: int = 1) -> "Cost":
        return Cost(*(mine + sign * its for mine, its in zip(self, other, strict=True)))

    @property
    def dollars(self) -> float:
        return (self.teacher_micros + self.critic_micros) / 1e6

    def as_metrics(self) -> dict[str, float]:
        tokens = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return {"dollars": self.dollars, "calls": self.calls, **tokens}


class Paid:
    """The settled tasks of all attempts and workers. Objects are `TASK.COST.json`, or `rest/...` for other costs."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, Lock()
        self._names: dict[str, str] = {}
        self.costs: list[tuple[str, Cost]] = []
        for name in store.list():
            task, _, cost = name.removesuffix(".json").rpartition(".")
            self._names.setdefault(task, name)
            self.costs.append((task, Cost(*map(int, cost.split("-")))))
        self._meters: tuple[CostMeter, ...] = ()
        self._booked = Cost()

    def total(self, of: Callable[[str], bool] = lambda task: True) -> Cost:
        """What was booked for tasks of this kind."""
        total = Cost()
        for task, cost in self.costs:
            if of(task):
                total = total.plus(cost)
        return total

    def watch(self, *meters: CostMeter) -> None:
        """Book from now on what these count: the teacher's, and the critic's if it has its own."""
        self._meters = meters

    def read(self, task: str) -> dict[str, Any] | None:
        """How the task was settled; None if it was not."""
        if task not in self._names:
            return None
        settled: dict[str, Any] = json.loads(self._store.read(self._names[task]))
        return settled

    def write(self, task: str, settled: dict[str, Any]) -> None:
        """Keep how it was settled, and book all that was spent since something was booked last."""
        with self._lock:
            now = _cost_of([meter.spent for meter in self._meters])
            cost, self._booked = now.plus(self._booked, -1), now
            self.costs.append((task, cost))
        self._store.write(f"{task}.{'-'.join(map(str, cost))}.json", json.dumps(settled, ensure_ascii=False).encode())

    def write_rest(self, worker: int) -> None:
        """Book what went into tasks that were not settled."""
        if _cost_of([meter.spent for meter in self._meters]) != self._booked:
            self.write(f"rest/{worker}/{uuid.uuid4().hex}", {})


def _cost_of(spent: Sequence[Spending]) -> Cost:
    calls, prompt, completion, _ = map(sum, zip(*spent, strict=True))
    teacher, critic, *_ = [round(one.dollars * 1e6) for one in spent] + [0]
    return Cost(calls, prompt, completion, teacher, critic)


class Lesson:
    """Settles tasks, from any number of threads, until something says stop."""

    def __init__(self, teacher: EndpointPolicy, critic: Critic | None, soul: Soul, seed: int, paid: Paid) -> None:
        self._teacher, self._critic, self._soul, self._seed, self._paid = teacher, critic, soul, seed, paid
        self._lock = Lock()
        self._unreachable = 0
        self.over = ""
        """Why no further task is begun."""
        self.error: EndpointUnavailable | None = None

    def __call__(self, number: int) -> dict[str, Any]:
        """The lines of the task's shard, and the gate it got to."""
        task = teacher_task(self._seed, number)
        settled = self._paid.read(task.id)
        if settled is not None:
            return settled
        if self.over:
            return {"gate": self.over, "lines": []}
        try:
            settled = self._settle(task)
        except SpendingCapReached:
            if not self.over:
                dollars = round(self._paid.total().dollars, 4)
                log.warning("the teacher stops: the next call could pass its cap_dollars, raise it", dollars=dollars)
            self.over = f"{LEFT_OUT}the spending cap"
            return {"gate": self.over, "lines": []}
        except EndpointUnavailable as error:
            log.warning("a task is left out: the endpoint is out of reach", task=task.id, error=str(error))
            with self._lock:
                self._unreachable += 1
                if self._unreachable >= UNREACHABLE_TASKS:
                    self.over, self.error = f"{LEFT_OUT}out of reach", error
            return {"gate": f"{LEFT_OUT}out of reach", "lines": []}
        except BaseException:
            self.over = f"{LEFT_OUT}an error"
            raise
        with self._lock:
            self._unreachable = 0
        self._paid.write(task.id, settled)
        return settled

    def _settle(self, task: Task) -> dict[str, Any]:
        attempted = attempt(task, self._teacher, self._soul, self._critic)
        if attempted.accepted is None:
            return {"gate": attempted.reason.partition(":")[0], "lines": []}
        line = {"id": task.id, "family": task.family}
        lines = [{"kind": "rollout", **line, "messages": to_json(attempted.accepted)}]
        if attempted.rejected is not None:
            pair = {"chosen": to_json(attempted.accepted), "rejected": to_json(attempted.rejected)}
            lines.append({"kind": "pair", **line, **pair})
        return {"gate": "kept", "lines": lines}


def shards(count: int) -> dict[str, range]:
    """Names of the shards, and the numbers of their tasks."""
    starts = range(0, count, SHARD_TASKS)
    return {
        f"{STREAM}/{number:05d}.jsonl": range(start, min(start + SHARD_TASKS, count))
        for number, start in enumerate(starts)
    }


def make(
    store: Store,
    paid_store: Store,
    synth: Synth,
    soul: Soul,
    seed: int,
    worker: int,
    of: int,
    show: Callable[[float, float, Cost], None],
    leaving: Callable[[], bool],
) -> bool:
    """Publish this worker's shards, whole or as far as key, cap and endpoint allow; False when it was told to leave.

    `SourceUnavailable` when the endpoint is out of reach, `ConfigurationError` when it can never answer; what is
    settled is kept.
    """
    wanted = shards(synth.teacher_scenarios)
    mine = {name: wanted[name] for name in list(wanted)[worker::of] if not _is_complete(store, name)}
    missing = missing_keys(synth)
    paid = Paid(paid_store)
    if missing and mine:
        variables = " and ".join(f"${name}" for name in missing)
        log.warning(
            "the teacher is left out",
            reason=f"{variables} is not set: set it and change synth.teacher_scenarios to have its rollouts",
            tasks=sum(map(len, mine.values())),
        )
        absent = {"gate": f"{LEFT_OUT}{variables} is not set", "lines": []}
        for name, numbers in mine.items():
            _publish(store, name, (paid.read(teacher_task(seed, number).id) or absent for number in numbers))
    elif mine:
        assert synth.teacher is not None
        own = {teacher_task(seed, number).id for name in list(wanted)[worker::of] for number in wanted[name]}
        before = paid.total(lambda task: task in own or task.startswith(f"rest/{worker}/"))
        total = paid.total()
        meters = [_meter(synth.teacher, before.teacher_micros, total.teacher_micros, of)]
        with ExitStack() as closing:
            teacher = closing.enter_context(EndpointPolicy(synth.teacher, soul, meters[0]))
            judge = teacher
            if isinstance(synth.critic, Endpoint):
                meters.append(_meter(synth.critic, before.critic_micros, total.critic_micros, of))
                judge = closing.enter_context(EndpointPolicy(synth.critic, soul, meters[1]))
            paid.watch(*meters)
            lesson = Lesson(teacher, Critic(judge, soul) if synth.critic else None, soul, seed, paid)
            closing.callback(paid.write_rest, worker)
            threads = closing.enter_context(ThreadPoolExecutor(synth.teacher.concurrency, STREAM))
            if not _teach(store, lesson, mine, threads, lambda done, all: show(done, all, paid.total()), leaving):
                return False
        if lesson.error is not None:
            raise SourceUnavailable(f"{lesson.error}: what was settled is kept, the same command goes on from there")
    return True


def _teach(
    store: Store,
    lesson: Lesson,
    mine: dict[str, range],
    threads: ThreadPoolExecutor,
    show: Callable[[float, float], None],
    leaving: Callable[[], bool],
) -> bool:
    """Publish each shard when its tasks are settled; False when told to leave, after what is in flight."""
    if leaving():  # whoever has the work by now pays for it
        return False
    futures = {name: [threads.submit(lesson, number) for number in numbers] for name, numbers in mine.items()}
    every = [one for some in futures.values() for one in some]
    try:
        for name, some in futures.items():
            while wait(some, SECONDS_BETWEEN_LOOKS, return_when="FIRST_EXCEPTION").not_done:
                show(sum(one.done() for one in every), len(every))
                if leaving() or _failed(some):
                    break
            if leaving():  # asked anew: what somebody else may be publishing by now is not published over
                lesson.over = f"{LEFT_OUT}told to leave"
                return False
            settled = [one.result() for one in some]
            if lesson.error is None:
                _publish(store, name, iter(settled))
        show(len(every), len(every))
        return True
    finally:
        for one in every:
            one.cancel()


def _failed(futures: Sequence[Future[Any]]) -> bool:
    return any(one.done() and not one.cancelled() and one.exception() is not None for one in futures)


def _meter(endpoint: Endpoint, own_micros: int, all_micros: int, of: int) -> CostMeter:
    """With what this worker may still spend: its part of the cap, and no more than all together have left."""
    left = None
    if (cap := endpoint.cap_dollars) is not None:
        left = max(0.0, min(cap / of - own_micros / 1e6, cap - all_micros / 1e6))
    return CostMeter(endpoint.prompt_dollars, endpoint.completion_dollars, left)


def _publish(store: Store, name: str, settled: Iterator[dict[str, Any]]) -> None:
    gates: Counter[str] = Counter()
    lines: list[dict[str, Any]] = []
    for one in settled:
        gates["scenarios"] += 1
        gates[one["gate"]] += 1
        lines += one["lines"]
    lines.append({"kind": "gates", **gates})
    store.write(name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def _is_complete(store: Store, name: str) -> bool:
    if not store.exists(name):
        return False
    gates = json.loads(store.read(name).decode().split("\n")[-2])
    return not any(gate.startswith(LEFT_OUT) for gate in gates)
