"""Rollouts as shards that anyone may make in any order, and the built-in expert's among them.

    shards/00000.jsonl     the expert's: {"kind": "rollout", ...}, {"kind": "pair", ...}, and last {"kind": "gates"}
    public/00/00000.jsonl  what the first public set gives (`public_shards`)
    teacher/00000.jsonl    a teacher's (`teacher_shards`)
    index.json             written last: the shards by origin, and how much of each origin fell at which gate

A scenario is played with really executed tools. It is kept if its check passes and no checked principle of the SOUL is
broken. Some first attempts have a flaw; the SOUL rejects them, and they make a preference pair with the second one.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import structlog

from nanocode.agent.conversation import Message, from_json, to_json
from nanocode.agent.soul import Soul, parse_soul
from nanocode.storage.objects import Store
from nanocode.synth.expert import FLAWS, Expert
from nanocode.tasks.families import training_scenario
from nanocode.tasks.playing import attempts
from nanocode.tasks.task import Scenario
from nanocode.text.units import processes

log = structlog.get_logger()

INDEX = "index.json"
STREAM = "train"
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
        one = training_scenario(f"{STREAM}-{seed}", number)
        family = one.task.family
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


def shards(scenarios: int, per_shard: int) -> dict[str, range]:
    """Names of the expert's shards, and the numbers of their scenarios."""
    starts = range(0, scenarios, per_shard)
    return {
        f"shards/{number:05d}.jsonl": range(start, min(start + per_shard, scenarios))
        for number, start in enumerate(starts)
    }


def make_shards(
    store: Store,
    soul: Soul,
    scenarios: int,
    seed: int,
    per_shard: int,
    workers: int,
    worker: int,
    of: int,
    show: Callable[[float, float], None],
) -> None:
    """Make, or go on making, this worker's shards of the expert."""
    wanted = shards(scenarios, per_shard)
    there = set(store.list("shards/"))
    mine = [number for number, name in enumerate(wanted) if number % of == worker and name not in there]
    done = sum(len(numbers) for name, numbers in wanted.items() if name in there)
    show(done, scenarios)
    each = list(wanted.values())
    with processes(workers) as run:
        tasks = [(store, number, each[number], seed, soul.text) for number in mine]
        for number, _ in zip(mine, run(make_shard, tasks), strict=True):
            done += len(each[number])
            show(done, scenarios)


Gates = dict[str, dict[str, int]]
"""By origin: how much of it was kept, or fell at which gate."""


def write_index(store: Store, shards: Mapping[str, Sequence[str]]) -> Gates:
    """Count what the shards of each origin hold, and mark what repeats.

    Equal conversations are one rollout. Of a public set the request alone decides: its other answer adds little, while
    a generated task may have another's words and other files.
    """
    gates: dict[str, Counter[str]] = {}
    seen: set[bytes] = set()
    requests: set[bytes] = set()
    repeated: list[str] = []
    for origin, names in shards.items():
        counts = gates[origin] = Counter()
        for line in _lines(store, names):
            if line["kind"] == "gates":
                counts.update({key: value for key, value in line.items() if key != "kind"})
            elif line["kind"] == "pair":
                counts["pairs"] += 1
            else:
                digest, request = digest_of(json.dumps(line["messages"])), request_digest(line["messages"][0]["user"])
                if digest in seen or (origin == "public" and request in requests):
                    repeated.append(line["id"])
                    counts["duplicate"] += 1
                    counts["kept"] -= 1
                seen.add(digest)
                requests.add(request)
    found = {origin: dict(counts) for origin, counts in gates.items()}
    index = {"shards": {origin: list(names) for origin, names in shards.items()}, "gates": found, "repeated": repeated}
    store.write(INDEX, json.dumps(index, indent=1).encode())
    return found


def digest_of(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def request_digest(request: str) -> bytes:
    """The same for a request, whatever its white space and capitals."""
    return digest_of(" ".join(request.lower().split()))


def _lines(store: Store, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        for line in store.read(name).decode().split("\n")[:-1]:
            yield json.loads(line)


def read_rollouts(store: Store) -> Iterator[tuple[str, list[Message]]]:
    """Family and conversation of every rollout kept, in order."""
    index = json.loads(store.read(INDEX))
    repeated = set(index["repeated"])
    for line in _lines(store, chain(*index["shards"].values())):
        if line["kind"] == "rollout" and line["id"] not in repeated:
            yield line["family"], from_json(line["messages"])


def read_pairs(store: Store) -> Iterator[tuple[list[Message], list[Message]]]:
    """Chosen and rejected conversation of every pair, in order."""
    for line in _lines(store, chain(*json.loads(store.read(INDEX))["shards"].values())):
        if line["kind"] == "pair":
            yield from_json(line["chosen"]), from_json(line["rejected"])
