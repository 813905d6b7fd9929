"""CORE: 22 in-context tasks, each accuracy centered on guessing (Li et al. 2024, arXiv 2406.11794, section 3.4).

Multiple choice and schema tasks: the option whose scored tokens have the lowest mean loss. Language modelling: every
token of the continuation is the likeliest one. Shuffling, few-shot draws and prompts are nanochat's, answer for answer.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from nanocode.evals.bundle import Bundle, CoreTask, read_bundle
from nanocode.model.transformer import Transformer
from nanocode.train import mesh as meshes
from nanocode.train.step import make_score

__all__ = ["Bundle", "Evaluator", "TaskResult", "core_metric", "read_bundle", "rendered"]

SHUFFLE_SEED = 1337
FEWSHOT_SEED = 1234
LENGTH_MULTIPLE = 128
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class TaskResult:
    """The answers of one task, in shuffled order."""

    label: str
    baseline: float
    correct: list[bool]

    @property
    def accuracy(self) -> float:
        return sum(self.correct) / len(self.correct)

    @property
    def centered(self) -> float:
        """0 for guessing, 1 for all right."""
        guessing = 0.01 * self.baseline
        return (self.accuracy - guessing) / (1 - guessing)


@dataclass(frozen=True)
class Scored:
    """A row of tokens and the part of it that counts."""

    tokens: list[int]
    start: int
    end: int

    def cropped(self, longest: int) -> "Scored":
        """The last `longest` tokens."""
        cut = max(0, len(self.tokens) - longest)
        return Scored(self.tokens[cut:], self.start - cut, self.end - cut)


def core_metric(results: list[TaskResult]) -> float:
    """Mean of the centered accuracies."""
    return sum(one.centered for one in results) / len(results)


def rendered(task: CoreTask, items: list[dict[str, Any]], number: int) -> list[str]:
    """The prompts of an item: one per option, or for language modelling without and with the continuation."""
    item, delimiter = items[number], task.delimiter
    others = [i for i in range(len(items)) if i != number]
    shots = (
        [items[i] for i in random.Random(FEWSHOT_SEED + number).sample(others, task.fewshot)] if task.fewshot else []
    )
    if task.kind == "multiple_choice":
        before = "".join(f"{s['query']}{delimiter}{s['choices'][s['gold']]}\n\n" for s in shots)
        return [f"{before}{item['query']}{delimiter}{choice}" for choice in item["choices"]]
    if task.kind == "schema":
        before = "".join(f"{s['context_options'][s['gold']]}{delimiter}{s['continuation']}\n\n" for s in shots)
        return [f"{before}{option}{delimiter}{item['continuation']}" for option in item["context_options"]]
    before = "".join(f"{s['context'].strip()}{delimiter}{s['continuation']}\n\n" for s in shots)
    context = f"{before}{item['context'].strip()}{delimiter}"
    # A trailing space would be a token of its own, where with the continuation it is the beginning of one.
    return [context.strip(), context + item["continuation"]]


def scored(task: CoreTask, prompts: list[str], encode: Encode, bos: int) -> list[Scored]:
    """The rows to score, and which of their tokens count."""
    rows = [[bos, *encode(prompt)] for prompt in prompts]
    if task.kind == "language_modeling":
        without, whole = rows
        # Where the shorter prompt is no prefix (a merge across its end), the difference begins where they part.
        start = _common(without, whole)
        return [Scored(whole, start, len(whole))]
    if task.kind == "multiple_choice":
        start = min(_common(rows[0], row) for row in rows[1:]) if len(rows) > 1 else 1
        return [Scored(row, start, len(row)) for row in rows]
    shared = min(_common(rows[0][::-1], row[::-1]) for row in rows[1:]) if len(rows) > 1 else 1
    return [Scored(row, len(row) - shared, len(row)) for row in rows]


def _common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class Evaluator:
    """Scores tasks by batches of about equal length, rows spread over the mesh; every host makes the same calls."""

    def __init__(
        self, mesh: Mesh, model: Transformer, encode: Encode, bos: int, batch_rows: int, longest: int | None = None
    ) -> None:
        """Rows of more than `longest` tokens (None: the model's context) lose their beginning."""
        self._mesh, self._encode, self._bos = mesh, encode, bos
        self._longest = longest or model.shape.context
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        self._batch_rows = -(-batch_rows // ways) * ways
        self._score = jax.jit(make_score(model, bos), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, weights: PyTree, task: CoreTask, most: int | None = None) -> TaskResult:
        """The answers to (at most `most` of) the task's items."""
        items = list(task.items)
        random.Random(SHUFFLE_SEED).shuffle(items)
        items = items[:most]
        rows: list[Scored] = []
        owners: list[int] = []
        for number in range(len(items)):
            mine = scored(task, rendered(task, items, number), self._encode, self._bos)
            rows += [row.cropped(self._longest) for row in mine]
            owners += [number] * len(mine)
        found = self._score_rows(weights, rows)
        correct = []
        for number, item in enumerate(items):
            own = [one for one, owner in zip(found, owners, strict=True) if owner == number]
            if task.kind == "language_modeling":
                correct.append(own[0][1])
            else:
                losses = [loss for loss, _ in own]
                correct.append(losses.index(min(losses)) == item["gold"])
        return TaskResult(task.label, task.baseline, correct)

    def _score_rows(self, weights: PyTree, rows: list[Scored]) -> list[tuple[float, bool]]:
        """Per row: mean loss of what counts, and whether all of it was the likeliest."""
        found: dict[int, tuple[float, bool]] = {}
        for numbers, length in self._batches(rows):
            batch = np.full((self._batch_rows, length + 1), self._bos, np.int32)
            for place, number in enumerate(numbers):
                batch[place, : len(rows[number].tokens)] = rows[number].tokens
            share = self._batch_rows // jax.process_count()
            first = jax.process_index() * share
            mine = meshes.global_batch(self._mesh, batch[first : first + share])
            losses, _, likeliest = jax.device_get(self._score(weights, mine))
            for place, number in enumerate(numbers):
                row = rows[number]
                span = slice(max(row.start, 1) - 1, row.end - 1)  # target t stands at position t - 1
                hits = likeliest[place, span] == batch[place, 1:][span]
                found[number] = (float(losses[place, span].mean()), bool(hits.all()))
        return [found[number] for number in range(len(rows))]

    def _batches(self, rows: list[Scored]) -> Iterator[tuple[list[int], int]]:
        """Row numbers of each batch, longest first, and the padded length: few lengths, few compilations."""
        order = sorted(range(len(rows)), key=lambda number: (-len(rows[number].tokens), number))
        for start in range(0, len(order), self._batch_rows):
            numbers = order[start : start + self._batch_rows]
            longest = len(rows[numbers[0]].tokens) - 1
            length = LENGTH_MULTIPLE
            while length < longest:
                length *= 2
            yield numbers, min(length, max(self._longest, LENGTH_MULTIPLE))
