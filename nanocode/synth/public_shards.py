"""Public sets as shards of rollouts and pairs: each set up to its quota, streamed, without repetitions of its own.

    public/00/00000.jsonl   500 times {"kind": "rollout" or "pair", ...}; the last shard ends with {"kind": "gates"}
    public/00.json          written last: which set, its shards, and how many of its rows fell at which gate

A set is one worker's, from its first row on: a worker that is killed reads it again.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import structlog

from nanocode.agent.conversation import to_json
from nanocode.agent.soul import Soul
from nanocode.config.settings import PublicSet, Synth
from nanocode.storage.objects import Store
from nanocode.synth.public import Pair, Passed, Rollout, read_pairs, read_rollouts
from nanocode.synth.rollouts import request_digest

log = structlog.get_logger()

SHARD_LINES = 500
# A set is given up after so many times its quota: a SOUL may turn nearly all of it down.
PATIENCE = 20
TOLD_REASONS = 5


class Quota(NamedTuple):
    """What a public set should give."""

    public: PublicSet
    rows: int
    summary: str
    """The object that says what it gave."""


def quotas(synth: Synth) -> list[Quota]:
    """The sets that are to give something, each by its share among those of its kind."""
    found = []
    for kind, count in (("rollouts", synth.public_rollouts), ("pairs", synth.public_pairs)):
        total = sum(one.share for one in synth.public if one.kind == kind)
        before = 0.0
        for number, one in enumerate(synth.public):
            if one.kind == kind:
                after = before + one.share
                rows = round(count * after / total) - round(count * before / total)
                found.append(Quota(one, rows, f"public/{number:02d}.json"))
                before = after
    return sorted((one for one in found if one.rows), key=lambda one: one.summary)


def name_of(public: PublicSet) -> str:
    """How a set is called in a table: `ORG/NAME` on the hub, else the last part of its path."""
    if public.location.startswith("hf://datasets/"):
        organisation, name, *_ = public.location.removeprefix("hf://datasets/").split("/")
        return f"{organisation}/{name.partition('@')[0]}"
    return PurePosixPath(public.location).name


def make(store: Store, synth: Synth, soul: Soul, worker: int, of: int, show: Callable[[float, float], None]) -> None:
    """Make this worker's sets."""
    wanted = quotas(synth)
    there = set(store.list("public/"))
    done, total = 0, sum(one.rows for one in wanted[worker::of])
    for quota in wanted[worker::of]:
        if quota.summary not in there:
            so_far = done
            _make_set(store, quota, soul, lambda kept, so_far=so_far: show(so_far + kept, total))  # type: ignore[misc]
        done += quota.rows
        show(done, total)


def _make_set(store: Store, quota: Quota, soul: Soul, show: Callable[[int], None]) -> None:
    public, folder = quota.public, quota.summary.removesuffix(".json")
    passed, gates = Passed(), Counter[str]()
    kept = _kept(public, quota.rows, folder, soul, passed, gates)
    shards: list[str] = []
    found = 0
    while True:
        lines = list(islice(kept, SHARD_LINES))
        found += len(lines)
        is_last = len(lines) < SHARD_LINES
        if is_last:
            gates += Counter({"no conversation of ours": passed.total()})
            lines.append({"kind": "gates", **gates})
        shards.append(f"{folder}/{len(shards):05d}.jsonl")
        store.write(shards[-1], "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        show(found)
        if is_last:
            break
    if (short := quota.rows - found) > 0:
        log.warning("a public set gives less than it should", set=name_of(public), missing=short, gates=dict(gates))
    summary = {
        "set": name_of(public),
        "location": public.location,
        "licence": public.licence,
        "kind": public.kind,
        "wanted": quota.rows,
        "shards": shards,
        "gates": gates,
        "passed_over": dict(passed.most_common(TOLD_REASONS)),
    }
    store.write(quota.summary, json.dumps(summary, indent=1).encode())


def _kept(
    public: PublicSet, rows: int, folder: str, soul: Soul, passed: Passed, gates: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The lines of the set's shards. Pairs are counted with the shards, as everybody's are."""
    found: Iterator[Rollout | Pair] = (read_rollouts if public.kind == "rollouts" else read_pairs)(public, passed)
    seen: set[bytes] = set()
    left = rows
    for number, one in enumerate(islice(found, PATIENCE * rows)):
        good = one.messages if isinstance(one, Rollout) else one.chosen
        request = request_digest(to_json(good[:1])[0]["user"])
        if request in seen:
            gates["duplicate"] += 1
            continue
        seen.add(request)
        if broken := soul.broken(good):
            gates[f"breaks SOUL {broken[0].number}"] += 1
            continue
        line = {"id": f"{folder}/{number}", "family": name_of(public), "from": one.origin}
        if isinstance(one, Rollout):
            gates["kept"] += 1
            yield {"kind": "rollout", **line, "messages": to_json(one.messages)}
        else:
            yield {"kind": "pair", **line, "chosen": to_json(one.chosen), "rejected": to_json(one.rejected)}
        left -= 1
        if not left:
            return


def summaries(store: Store, wanted: Sequence[Quota]) -> list[dict[str, Any]]:
    """What each set gave."""
    return [json.loads(store.read(one.summary)) for one in wanted]
