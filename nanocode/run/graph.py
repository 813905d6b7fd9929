"""The stage graph, defined once: the local runner, the controller, the chart's values and the report follow it.

A stage's input digest covers its part of the configuration, the content of the files it reads and the digests of the
stages it reads. Code version and image are recorded in the marker, not digested.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nanocode.run.exits import UsageError

Machine = Literal["cpu", "accelerator"]


@dataclass(frozen=True)
class Stage:
    """One node: what it reads and where it runs."""

    name: str
    reads: tuple[str, ...]
    """The stages whose outputs it takes."""
    machine: Machine
    settings: tuple[str, ...]
    """The sections, or single fields, of the settings that change its result, and so belong to its digest."""
    reads_soul: bool = False
    """The content of the SOUL belongs to its digest."""
    split: bool = False
    """Several indexed workers can share it (`--worker i --of n`)."""
    trains: bool = False
    """It makes steps, and saves checkpoints."""
    reads_what_is_there: bool = False
    """Runs on those of `reads` that are done, and again whenever one of their markers changes."""
    one_host: bool = False
    """Of a slice with several hosts it uses one."""

    @property
    def module(self) -> str:
        """What `python -m` runs."""
        return "jobs." + self.name.replace("-", "_")


_BEFORE_REPORT = (
    Stage("tokenizer", (), "cpu", ("tokenizer", "corpus.sources", "model.vocab_size")),
    Stage("corpus", ("tokenizer",), "cpu", ("corpus", "model.context"), split=True),
    Stage("pretrain", ("tokenizer", "corpus"), "accelerator", ("model", "pretrain"), trains=True),
    Stage("base-eval", ("pretrain",), "accelerator", ("base_eval",)),
    Stage("synth", (), "cpu", ("synth",), reads_soul=True, split=True),
    Stage("sft", ("pretrain", "synth"), "accelerator", ("sft",), trains=True),
    Stage("preference", ("sft", "synth"), "accelerator", ("preference",), reads_soul=True, trains=True),
    Stage(
        "agent-eval",
        ("pretrain", "sft", "preference"),
        "accelerator",
        ("agent_eval",),
        reads_soul=True,
        one_host=True,
    ),
)
STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        *_BEFORE_REPORT,
        Stage("report", tuple(stage.name for stage in _BEFORE_REPORT), "cpu", (), reads_what_is_there=True),
    )
}


def order() -> tuple[str, ...]:
    """All stages, each after those it reads; ties as declared."""
    placed: list[str] = []
    while len(placed) < len(STAGES):
        ready = [s.name for s in STAGES.values() if s.name not in placed and set(s.reads) <= set(placed)]
        assert ready, f"the stage graph has a cycle beyond {placed}"
        placed.append(ready[0])
    return tuple(placed)


def downstream(name: str) -> tuple[str, ...]:
    """The stages that read `name`, directly or not, in order: what becomes stale with it."""
    reached = {name}
    for other in order():
        if reached & set(STAGES[other].reads):
            reached.add(other)
    return tuple(other for other in order() if other in reached and other != name)


def select(names: Iterable[str]) -> tuple[Stage, ...]:
    """The named stages, in order, once each; `UsageError` on one that does not exist."""
    wanted = [name.strip() for name in names]
    unknown = [name for name in wanted if name not in STAGES]
    if unknown:
        raise UsageError(f"no stage is called {', '.join(map(repr, unknown))}: choose from {', '.join(order())}")
    return tuple(STAGES[name] for name in order() if name in wanted)


def input_digest(
    stage: str, config_part: Mapping[str, Any], file_digests: Mapping[str, str], upstream: Mapping[str, str]
) -> str:
    """32 hex digits that change with any input of the stage, and with nothing else.

    `config_part` holds the stage's sections as JSON values, `file_digests` a content digest per file it reads, and
    `upstream` a digest per stage it reads: the input digest, or for a stage that reads what is there the marker's
    `fingerprint()`. `ValueError` when a stage it reads has no digest, or for a value that JSON does not have.
    """
    reads = set(STAGES[stage].reads)
    missing = set() if STAGES[stage].reads_what_is_there else reads - set(upstream)
    if missing or set(upstream) - reads:
        raise ValueError(f"stage {stage} needs the digests of {sorted(reads)}, not of {sorted(upstream)}")
    inputs = {"stage": stage, "config": config_part, "files": dict(file_digests), "upstream": dict(upstream)}
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
