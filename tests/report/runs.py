"""Synthetic runs, written as the jobs write them: markers, claims and segments of a run directory."""

import math
import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nanocode.config.settings import load
from nanocode.evals.agent import Rate, macro_average
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.segments import SegmentWriter
from nanocode.storage.objects import LocalStore

DIGEST = {
    "tokenizer": "aa" * 16, "corpus": "bb" * 16, "pretrain": "cc" * 16, "base-eval": "dd" * 16, "synth": "11" * 16,
    "sft": "22" * 16, "preference": "33" * 16, "agent-eval": "44" * 16,
}  # fmt: skip
STEPS = 700
BATCH_TOKENS = 3072
STARTED = datetime(2026, 11, 3, 9, 0, tzinfo=UTC)

TOKENIZER: dict[str, Any] = {
    "vocab_size": 1024,
    "seconds": 11.4,
    "bytes_per_token": {"english": 2.68, "code": 2.41},
    "public": {"gpt2": {"english": 4.51, "code": 2.37}, "cl100k_base": {"english": 4.63, "code": 3.71}},
}
CORPUS: dict[str, Any] = {
    "tokens": 4_012_032, "documents": 3211, "bytes": 9_871_234, "rows": 10_448, "waste": 0.0131, "seconds": 38.2,
    "valid": {
        "code": {"bytes": 251_302, "documents": 88, "rows": 271},
        "english": {"bytes": 118_020, "documents": 61, "rows": 119},
    },
    "held_out": ["attrs", "packaging", "zipp"],
    "sources": [
        {"name": "embedded code", "location": "embedded", "licence": "each package's own", "share": 3.0,
         "wanted_tokens": 3_000_000, "tokens": 3_004_032, "documents": 2100, "bytes": 7_200_000, "duplicates": 214,
         "dropped": {"too long lines": 41, "not UTF-8": 2, "generated": 120}},
        {"name": "handbook", "location": "/data/handbook", "licence": "CC-BY-4.0", "share": 1.0,
         "wanted_tokens": 2_000_000, "tokens": 1_008_000, "documents": 1111, "bytes": 2_671_234, "duplicates": 9,
         "dropped": {"too short": 77, "not UTF-8": 1}},
    ],
}  # fmt: skip
PRETRAIN: dict[str, Any] = {
    "steps": STEPS, "parameters": 917_504, "tokens": STEPS * BATCH_TOKENS, "loss": 2.713,
    "bits_per_byte": {"code": 1.702, "english": 2.155}, "tokens_per_second": 15_310.0, "mfu": 0.318,
    "peak_flops": 2.1e11, "peak_source": "measured matmul", "device": "cpu", "devices": 1,
    "seconds": {"data": 1.9, "step": 141.0, "checkpoint": 3.1, "evaluation": 12.7, "compile": 9.4},
    "peak_memory_bytes": 1_310_000_000,
}  # fmt: skip
BASE_EVAL: dict[str, Any] = {
    "bits_per_byte": {"code": 1.684, "english": 2.149},
    "xz_bits_per_byte": {"code": 2.313, "english": 2.871},
    "core": None,
}
CORE: dict[str, Any] = {
    "core": 0.0213,
    "tasks": {
        "hellaswag": {"accuracy": 0.271, "baseline": 0.25, "centered": 0.028, "examples": 500},
        "arc_easy": {"accuracy": 0.302, "baseline": 0.25, "centered": 0.069, "examples": 500},
        "lambada": {"accuracy": 0.012, "baseline": 0.0, "centered": 0.012, "examples": 500},
    },
}
SYNTH: dict[str, Any] = {
    "gates": {
        "expert": {
            "pairs": 61,
            "scenarios": 2000,
            "kept": 1951,
            "check failed": 7,
            "breaks SOUL 5": 12,
            "duplicate": 30,
        }
    },
    "seconds": 44.0,
    "soul": (
        "# SOUL\n\nA guest in a folder.\n\n1. Look before you change. [check: look-first]\n2. Be kind.\n"
        "3. Stop when done. [check: no-soliciting]\n"
    ),
}
SFT: dict[str, Any] = {
    **PRETRAIN, "steps": 40, "tokens": 40 * BATCH_TOKENS, "loss": 0.41, "tokens_per_second": 14_545.0,
    "validation_loss": 0.352, "bits_per_byte": {"code": 1.911, "english": 2.301}, "waste": 0.028,
    "conversations": {"find": 990, "fix": 950, "too long": 11},
}  # fmt: skip
PREFERENCE: dict[str, Any] = {
    **PRETRAIN, "steps": 20, "tokens": 20 * 2 * BATCH_TOKENS, "loss": 0.33,
    "bits_per_byte_before": {"code": 1.911, "english": 2.301}, "bits_per_byte": {"code": 1.93, "english": 2.3},
    "pairs": {"from synthesis": 61, "attempts": 400, "passed": 233, "tasks with a pair": 47, "too long": 3, "used": 105},
}  # fmt: skip


def rate(passed: int, total: int) -> dict[str, Any]:
    return Rate(passed=passed, total=total).to_json()


def suite(
    families: dict[str, tuple[int, int]],
    adherence: dict[str, tuple[int, int]] | None = None,
    transcripts: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """One model on one suite, by how many of how many tasks it passed."""
    rates = {family: Rate(passed=passed, total=total) for family, (passed, total) in families.items()}
    mean, interval = macro_average(rates)
    return {
        "pass@1": mean, "interval": list(interval), "families": {name: one.to_json() for name, one in rates.items()},
        "adherence": {check: rate(*counts) for check, counts in (adherence or {}).items()},
        "steps": 3.25, "failed_calls": 0.04, "transcripts": transcripts or [],
    }  # fmt: skip


def transcript(family: str, passed: bool, *messages: dict[str, Any], reason: str = "") -> dict[str, Any]:
    return {
        "id": f"eval-0/{family}/0", "family": family, "passed": passed, "reason": reason, "messages": list(messages),
    }  # fmt: skip


FIXED = transcript(
    "fix", True,
    {"user": "The test of `total` fails, can you look?"},
    {"assistant": "", "tool": "Bash", "arguments": {"command": "python3 -m unittest -q"}},
    {"result": "error: exit status 1\nAssertionError: 3 != 4"},
    {"assistant": "", "tool": "Read", "arguments": {"path": "shop.py", "start": "1", "end": "2"}},
    {"result": "    1→def total(a, b):\n    2→    return a - b"},
    {"assistant": "The sign is wrong.", "tool": "Edit", "arguments": {
        "path": "shop.py", "old": "def total(a, b):\n    return a - b", "new": "def total(a, b):\n    return a + b"}},
    {"result": "edited shop.py"},
    {"assistant": "Fixed `total` in shop.py."},
)  # fmt: skip
NOT_FOUND = transcript(
    "find", False,
    {"user": "Where is `total`?"},
    {"assistant": "", "tool": "Grep", "arguments": {"pattern": "def total", "path": "src"}},
    {"result": "error: no such file: src"},
    {"assistant": "Nowhere."},
    reason="the answer does not match shop",
)  # fmt: skip
AGENT_EVAL: dict[str, Any] = {
    "models": {
        "pretrain": {"fresh": suite({"find": (0, 50), "fix": (3, 50)}, {"no-soliciting": (100, 100)})},
        "sft": {"fresh": suite({"find": (47, 50), "fix": (45, 50)}, {"look-first": (30, 60), "no-soliciting": (98, 100)})},
        "preference": {
            "fresh": suite(
                {"find": (47, 50), "fix": (46, 50)}, {"look-first": (58, 60), "no-soliciting": (99, 100)}, [NOT_FOUND, FIXED]
            ),
            "new words": suite({"find": (42, 50), "fix": (41, 50)}),
            "new phrasings": suite({"find": (33, 50), "fix": (35, 50)}),
            "all new": suite({"find": (30, 50), "fix": (29, 50)}),
            "transfer": suite({"config": (0, 50), "count": (6, 50)}),
        },
        "do nothing": {"fresh": suite({"find": (0, 50), "fix": (0, 50)})},
        "copy the request": {"fresh": suite({"find": (1, 50), "fix": (0, 50)})},
    }
}  # fmt: skip
METRICS = {
    "tokenizer": TOKENIZER, "corpus": CORPUS, "pretrain": PRETRAIN, "base-eval": BASE_EVAL, "synth": SYNTH, "sft": SFT,
    "preference": PREFERENCE, "agent-eval": AGENT_EVAL,
}  # fmt: skip

PROMPTS = ["def read_lines(path):\n", "The capital of France is", "class Stack:\n    def push(self, item):\n"]
EARLY = [" t e se r\n  in s,e( r a se", " the in a the of s re the an", " re s( e)t, s r\n n"]
LATE = [
    '    """Return the lines of a file."""\n    with open(path) as file:\n        return file.readlines()\n',
    " the first of the most common name of the file, and the default is used when it is not given.",
    "        self.items.append(item)\n        return self\n\n    def pop(self):\n        return self.items.pop()\n",
]


def begin(folder: Path, name: str = "demo", overrides: Iterable[str] = ()) -> RunDirectory:
    run = RunDirectory(LocalStore(folder / name))
    run.add_config(load("demo", overrides, environment={}).to_yaml())
    return run


def finish(run: RunDirectory, stage: str, metrics: dict[str, Any] | None = None, **fields: Any) -> None:
    """Mark a stage done; it is claimed first unless it was."""
    claims = run.attempts(stage)
    attempt = claims[-1].attempt if claims else run.claim(stage, DIGEST[stage], "laptop")
    marker = {
        "input_digest": DIGEST[stage], "attempt": attempt, "metrics": METRICS[stage] if metrics is None else metrics,
        "versions": {"nanocode": "0.1.0", "jax": "0.10.2", "python": "3.11.7"}, "chip_seconds": 168.0,
        "cost_dollars": 0.0125, "started": STARTED, "ended": STARTED + timedelta(seconds=168),
    }  # fmt: skip
    run.finish(stage, Marker(stage=stage, **{**marker, **fields}))


def train(
    run: RunDirectory, first: int, last: int, digest: str = DIGEST["pretrain"], loss: float = 0.0, steps: int = STEPS
) -> int:
    """One attempt at pretrain that does the steps from `first` to `last`; its number."""
    attempt = run.claim("pretrain", digest, "laptop")
    dice = random.Random(first)
    with SegmentWriter(run.store, "pretrain", attempt, "metrics", 0) as writer:
        for step in range(first, last + 1):
            tokens = step * BATCH_TOKENS
            shape = 2.6 + 4.3 * math.exp(-step / steps * 14) + 0.8 * math.exp(-step / steps * 2.5)
            rate = 0.02 * min(1.0, step / (0.02 * steps), (steps - step) / (0.4 * steps))
            writer.write({
                "kind": "step", "step": step, "loss": shape + dice.gauss(0, 0.07) + loss, "tokens": tokens,
                "gradient_norm": 0.4 + 3 * math.exp(-step / steps * 20) + abs(dice.gauss(0, 0.05)), "learning_rate": rate,
            })  # fmt: skip
            if step % 10 == 0:
                speed = 15_300 + dice.gauss(0, 250) - (4000 if step == first + 9 else 0)
                writer.write({
                    "kind": "time", "step": step, "steps_timed": 10, "data": 0.02, "step_seconds": 2.0,
                    "checkpoint": 0.05, "evaluation": 0.18, "tokens_per_second": speed, "mfu": speed / 15_300 * 0.318,
                })  # fmt: skip
            if step % (steps // 7) == 0:
                bits = {"code": 0.62 * shape + 0.07, "english": 0.74 * shape + 0.21}
                writer.write({"kind": "eval", "step": step, "tokens": tokens, "bits_per_byte": bits})
            if step in (steps // 7, steps):
                texts = EARLY if step < steps else LATE
                pairs = [{"prompt": p, "text": p + t} for p, t in zip(PROMPTS, texts, strict=True)]
                writer.write({"kind": "samples", "step": step, "samples": pairs})
    return attempt


def fine_tune(run: RunDirectory, steps: int = 40) -> None:
    """One attempt at sft: held-out loss before and after, steps counted from 0 as `fit` counts them."""
    attempt = run.claim("sft", DIGEST["sft"], "laptop")
    with SegmentWriter(run.store, "sft", attempt, "metrics", 0) as writer:
        for done in range(steps + 1):
            tokens = done * BATCH_TOKENS
            if done in (0, steps):
                bits = PRETRAIN["bits_per_byte"] if done == 0 else SFT["bits_per_byte"]
                validation = 4.4 if done == 0 else SFT["validation_loss"]
                writer.write({
                    "kind": "eval", "step": done, "tokens": tokens, "bits_per_byte": bits, "validation": validation,
                })  # fmt: skip
            if done < steps:
                loss = 0.4 + 4 * math.exp(-done / 8)
                writer.write({"kind": "step", "step": done, "loss": loss, "tokens": tokens + BATCH_TOKENS})


def prefer(run: RunDirectory, steps: int = 20) -> None:
    attempt = run.claim("preference", DIGEST["preference"], "laptop")
    with SegmentWriter(run.store, "preference", attempt, "metrics", 0) as writer:
        for step in range(steps):
            writer.write({
                "kind": "step", "step": step, "tokens": (step + 1) * 2 * BATCH_TOKENS, "loss": 0.69 - 0.018 * step,
                "margin": 0.3 * step, "accuracy": min(1.0, 0.5 + 0.03 * step), "chosen_gain": -0.05 * step,
            })  # fmt: skip


def finished(folder: Path) -> RunDirectory:
    """All stages done, those of the agent included."""
    run = pretrained(folder)
    finish(run, "synth")
    fine_tune(run)
    finish(run, "sft")
    prefer(run)
    finish(run, "preference")
    finish(run, "agent-eval")
    return run


def pretrained(folder: Path) -> RunDirectory:
    """All stages of the base model done; pretrain was interrupted at step 420 and went on from a checkpoint at 350."""
    run = begin(folder, overrides=["seed=7"])
    finish(run, "tokenizer")
    finish(run, "corpus")
    train(run, 1, 420, loss=0.05)
    train(run, 351, STEPS)
    finish(run, "pretrain", started=STARTED, ended=STARTED + timedelta(minutes=3))
    finish(run, "base-eval")
    return run


def half(folder: Path) -> RunDirectory:
    """Tokenizer and corpus are done, pretrain is on its way."""
    run = begin(folder, "half")
    finish(run, "tokenizer")
    finish(run, "corpus")
    train(run, 1, 250)
    return run
