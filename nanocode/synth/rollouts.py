"""Rollouts of the built-in expert, kept as shards that anyone may make in any order.

    shards/00000.jsonl     scenarios 0..499: {"kind": "rollout", ...}, {"kind": "pair", ...}, and last {"kind": "gates"}
    index.json             written last: the shards, and how many scenarios fell at which gate

A scenario is played with really executed tools. It is kept if its check passes and no checked principle of the SOUL is
broken. Some first attempts have a flaw; the SOUL rejects them, and they make a preference pair with the second one.
"""

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from nanocode.agent.conversation import Message, from_json, to_json
from nanocode.agent.soul import Soul, parse_soul
from nanocode.storage.objects import Store
from nanocode.synth.expert import FLAWS, Expert
from nanocode.tasks.families import TRAINED, scenario
from nanocode.tasks.playing import attempts
from nanocode.tasks.task import Scenario
from nanocode.text.units import processes

log = structlog.get_logger()

INDEX = "index.json"
STREAM = "train"
SECONDS_BETWEEN_LOOKS = 2.0
FLAWED_SHARE = 0.05
"""Of the scenarios: enough for a few hundred pairs in the demo, each of which costs an episode."""


@dataclass(frozen=True)
class Played:
    """One attempt at a scenario."""

    messages: list[Message]
    fault: str
    """Which gate it fell at; empty if it passed all."""


def attempt(one: Scenario, soul: Soul, flaw: str | None = None) -> Played:
    """Play, verify, and hold against the SOUL."""
    try:
        (played,) = attempts(Expert(one.script, soul, flaw), [one.task])
    except (AssertionError, ValueError, IndexError) as error:  # the world was not as the script thought
        log.warning("the expert is at a loss", task=one.task.id, error=repr(error))
        return Played([], "expert at a loss")
    if not played.verdict.passed:
        return Played(played.messages, "check failed")
    broken = soul.broken(played.messages)
    return Played(played.messages, f"breaks SOUL {broken[0].number}" if broken else "")


def shard_lines(numbers: range, seed: int, soul: Soul) -> Iterator[dict[str, Any]]:
    """What the scenarios of a shard give, and how many fell where."""
    gates: Counter[str] = Counter()
    flaws = [flaw for flaw in FLAWS if soul.has(flaw)]
    for number in numbers:
        family = TRAINED[number % len(TRAINED)]
        one = scenario(family, f"{STREAM}-{seed}", number // len(TRAINED))
        dice = random.Random(one.task.id)
        first: Played | None = None
        if flaws and dice.random() < FLAWED_SHARE:
            first = attempt(one, soul, dice.choice(flaws))
            gates["first attempt " + (first.fault or "without a flaw to see")] += 1
        accepted = first if first is not None and not first.fault else attempt(one, soul)
        if accepted.fault:
            gates[accepted.fault] += 1
            continue
        gates["kept"] += 1
        yield {"kind": "rollout", "id": one.task.id, "family": family, "messages": to_json(accepted.messages)}
        if first is not None and first.fault.startswith("breaks SOUL"):
            yield {
                "kind": "pair",
                "id": one.task.id,
                "family": family,
                "chosen": to_json(accepted.messages),
                "rejected": to_json(first.messages),
            }
    yield {"kind": "gates", "scenarios": len(numbers), **gates}


def make_shard(store: Store, shard: int, numbers: range, seed: int, soul: str) -> str:
    """Publish one shard; its name. (Runs in a process of its own: the SOUL comes as text.)"""
    name = f"shards/{shard:05d}.jsonl"
    lines = shard_lines(numbers, seed, parse_soul(soul, "SOUL.md"))
    store.write(name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    return name


def build(
    store: Store,
    soul: Soul,
    scenarios: int,
    seed: int,
    per_shard: int,
    workers: int,
    worker: int,
    of: int,
    show: Callable[[float, float], None],
) -> dict[str, int] | None:
    """Make, or go on making, this worker's shards; worker 0 then waits for the others' and writes the index.

    The counts of the index, on worker 0; None on the others.
    """
    starts = range(0, scenarios, per_shard)
    shards = {number: range(start, min(start + per_shard, scenarios)) for number, start in enumerate(starts)}
    there = _published(store)
    mine = [number for number in shards if number % of == worker and number not in there]
    done = sum(len(shards[number]) for number in there if number in shards)
    show(done, scenarios)
    with processes(workers) as run:
        tasks = [(store, number, shards[number], seed, soul.text) for number in mine]
        for number, _ in zip(mine, run(make_shard, tasks), strict=True):
            done += len(shards[number])
            show(done, scenarios)
    if worker != 0:
        return None
    _wait_for(store, shards.keys(), lambda have: show(have * per_shard, scenarios))
    return _write_index(store, sorted(shards))


def _published(store: Store) -> set[int]:
    names = [name.removesuffix(".jsonl") for name in store.children("shards") if name.endswith(".jsonl")]
    return {int(name) for name in names if name.isdecimal()}


def _wait_for(store: Store, wanted: Any, show: Callable[[int], None]) -> None:
    while missing := set(wanted) - _published(store):
        show(len(wanted) - len(missing))
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _write_index(store: Store, shards: Sequence[int]) -> dict[str, int]:
    """Count what the shards hold, and mark what repeats: equal requests are one rollout."""
    gates: Counter[str] = Counter()
    seen: set[str] = set()
    repeated: list[str] = []
    for line in _lines(store, shards):
        if line["kind"] == "gates":
            gates.update({key: value for key, value in line.items() if key != "kind"})
        elif line["kind"] == "rollout":
            digest = hashlib.sha256(json.dumps(line["messages"]).encode()).hexdigest()
            if digest in seen:
                repeated.append(line["id"])
            seen.add(digest)
        else:
            gates["pairs"] += 1
    gates["kept"] -= len(repeated)
    gates["duplicate"] = len(repeated)
    store.write(INDEX, json.dumps({"shards": list(shards), "gates": gates, "repeated": repeated}, indent=1).encode())
    return dict(gates)


def _lines(store: Store, shards: Sequence[int]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for line in store.read(f"shards/{shard:05d}.jsonl").decode().split("\n")[:-1]:
            yield json.loads(line)


def read_rollouts(store: Store) -> Iterator[tuple[str, list[Message]]]:
    """Family and conversation of every rollout kept, in order."""
    index = json.loads(store.read(INDEX))
    repeated = set(index["repeated"])
    for line in _lines(store, index["shards"]):
        if line["kind"] == "rollout" and line["id"] not in repeated:
            yield line["family"], from_json(line["messages"])


def read_pairs(store: Store) -> Iterator[tuple[list[Message], list[Message]]]:
    """Chosen and rejected conversation of every pair, in order."""
    for line in _lines(store, json.loads(store.read(INDEX))["shards"]):
        if line["kind"] == "pair":
            yield from_json(line["chosen"]), from_json(line["rejected"])
