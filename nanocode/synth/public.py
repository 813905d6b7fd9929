"""Public instruction sets as conversations: rows of parquet or JSONL, local, `gs://...` or `hf://datasets/...`.

    rollouts   `messages` or `conversations` (OpenAI's form with tool calls, or `from`/`value`),
               or `instruction` with `response` or `output`
    pairs      `chosen` and `rejected`: messages, or texts after a `prompt`

The shape is read off the columns. A column of another type is an error with file, row and column; a row that is no
conversation of ours (an unknown tool, an empty answer, a request without one) is passed over and counted.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from nanocode.agent.conversation import Message, Step, User
from nanocode.agent.messages import REASON_CHARACTERS, from_messages, plain
from nanocode.config.settings import PublicSet
from nanocode.text.sources import ROW_BATCH, SourceError, matching, named, opened

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz")
CHAT = ("messages", "conversations")
ANSWERS = ("response", "output")
PAIR = ("chosen", "rejected")
USED = frozenset({*CHAT, *ANSWERS, *PAIR, "instruction", "input", "prompt"})
# `from` in the form that ShareGPT's exports have.
SPEAKERS = {"human": "user", "gpt": "assistant", "observation": "tool"}
# Rows in a row that give nothing: then it is the set, not its rows.
HOPELESS_ROWS = 1000


T = TypeVar("T")


class Rollout(NamedTuple):
    """One conversation, and the file and row it is from."""

    messages: list[Message]
    origin: str


class Pair(NamedTuple):
    """Two conversations that begin with the same request."""

    chosen: list[Message]
    rejected: list[Message]
    origin: str


class Row(NamedTuple):
    """One row, with the columns that we use."""

    path: str
    number: int
    values: Mapping[str, Any]
    columns: tuple[str, ...]
    """All columns of the file, or keys of the line."""

    def error(self, words: str) -> SourceError:
        """An error about this row."""
        return SourceError(f"{self.path} row {self.number}: {words}")


Passed = Counter[str]
"""Why rows were passed over, and how many."""


def read_rollouts(public: PublicSet, passed: Passed | None = None) -> Iterator[Rollout]:
    """Every row that is a conversation, in order; `SourceError` for a set of another shape or one without any."""
    for row, messages in _kept(public.location, _rollout, passed if passed is not None else Counter()):
        yield Rollout(messages, f"{row.path}:{row.number}")


def read_pairs(public: PublicSet, passed: Passed | None = None) -> Iterator[Pair]:
    """Every row that is a pair of conversations, in order; `SourceError` as `read_rollouts`."""
    for row, (chosen, rejected) in _kept(public.location, _pair, passed if passed is not None else Counter()):
        yield Pair(chosen, rejected, f"{row.path}:{row.number}")


def _kept(location: str, read: Callable[[Row], T], passed: Passed) -> Iterator[tuple[Row, T]]:
    found, reasons = 0, Counter[str]()
    for row in rows(location):
        try:
            value = read(row)
        except SourceError:
            raise
        except (ValueError, RecursionError) as error:
            reason = str(error)[:REASON_CHARACTERS]
            passed[reason] += 1
            reasons[reason] += 1
            if not found and reasons.total() >= HOPELESS_ROWS:
                break
            continue
        found += 1
        yield row, value
    if not found:
        ((why, _),) = reasons.most_common(1) or [("it has no rows", 0)]
        raise SourceError(f"{location} gives no conversation ({why}): leave it out or convert it first")


def rows(location: str) -> Iterator[Row]:
    """All rows, numbered from 0 in parquet and from 1, as lines, in JSONL."""
    for path in matching(location, SUFFIXES):
        yield from _parquet_rows(path) if path.endswith(".parquet") else _lines(path)


def _lines(path: str) -> Iterator[Row]:
    with named(path), opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{path} row {number}: not JSON ({error}): mend or remove the line") from None
            if not isinstance(values, dict):
                raise SourceError(f"{path} row {number}: {type(values).__name__}, not an object of columns")
            yield Row(path, number, values, tuple(values))


def _parquet_rows(path: str) -> Iterator[Row]:
    import pyarrow.parquet as pq

    number = 0
    with named(path), opened(path) as raw, pq.ParquetFile(raw) as file:
        columns = tuple(file.schema_arrow.names)
        used = [name for name in columns if name in USED]
        if not used:
            yield Row(path, number, {}, columns)  # its reader will say what is missing
        for batch in file.iter_batches(ROW_BATCH, columns=used or columns[:1]):
            for values in batch.to_pylist():
                yield Row(path, number, values, columns)
                number += 1


def _rollout(row: Row) -> list[Message]:
    for column in CHAT:
        if column in row.values:
            return _finished(_chat(row, column))
    answer = next((column for column in ANSWERS if column in row.values), None)
    if "instruction" in row.values and answer is not None:
        request, said = _text(row, "instruction"), _text(row, answer)
        more = _text(row, "input") if row.values.get("input") is not None else ""
        return _finished([User(f"{request}\n\n{more}" if more.strip() else request), Step(said)])
    hint = ": these are pairs, set kind to pairs" if set(PAIR) <= set(row.values) else ""
    raise row.error(f"no messages, conversations, or instruction with response; only {', '.join(row.columns)}{hint}")


def _pair(row: Row) -> tuple[list[Message], list[Message]]:
    for column in PAIR:
        if column not in row.values:
            raise row.error(f"no column {column!r}; only {', '.join(row.columns)}")
    chosen, rejected = (_finished(_side(row, column)) for column in PAIR)
    if chosen[0] != rejected[0]:
        raise ValueError("chosen and rejected begin differently")
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same")
    return chosen, rejected


def _side(row: Row, column: str) -> list[Message]:
    """One side of a pair: a whole conversation, or what follows the prompt."""
    prompt: list[Any] = []
    if isinstance(row.values.get("prompt"), str):
        prompt = [{"role": "user", "content": row.values["prompt"]}]
    elif row.values.get("prompt") is not None:
        prompt = _list(row, "prompt")
    if isinstance(row.values[column], str):
        if not prompt:
            raise row.error(f"column {column!r} is str, not a list, and there is no prompt")
        return from_messages([*prompt, {"role": "assistant", "content": row.values[column]}])
    values = [_openai(value) for value in _list(row, column)]
    begins = values[0].get("role") in ("user", "system", "developer") if values else False
    return from_messages(values if begins else [*map(_openai, prompt), *values])


def _chat(row: Row, column: str) -> list[Message]:
    return from_messages([_openai(value) for value in _list(row, column)])


def _list(row: Row, column: str) -> list[dict[str, Any]]:
    values = row.values[column]
    if values is None:
        raise ValueError(f"{column} is null")
    if not isinstance(values, list):
        raise row.error(f"column {column!r} is {type(values).__name__}, not a list")
    for place, value in enumerate(values):
        if not isinstance(value, dict):
            raise row.error(f"column {column!r}, message {place} is {type(value).__name__}, not an object")
        if not ({"role", "from"} & set(value)):
            raise row.error(f"column {column!r}, message {place} has neither role nor from")
    return values


def _text(row: Row, column: str) -> str:
    value = row.values[column]
    if value is None:
        raise ValueError(f"{column} is null")
    if not isinstance(value, str):
        raise row.error(f"column {column!r} is {type(value).__name__}, not str")
    return plain(value)


def _openai(value: dict[str, Any]) -> dict[str, Any]:
    """A message in OpenAI's form; parquet gives every message every key, so what is null was not there."""
    value = _without_nulls(value)
    if "role" in value or "from" not in value:
        return value
    speaker = str(value["from"])
    return {"role": SPEAKERS.get(speaker, speaker), "content": value.get("value")}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _finished(messages: list[Message]) -> list[Message]:
    """The messages, if they are a whole conversation: requests and answers that say something, an answer at last."""
    if not messages:
        raise ValueError("no messages")
    last = messages[-1]
    if not isinstance(last, Step) or last.call is not None:
        raise ValueError("the last message is no answer")
    for message in messages:
        if isinstance(message, User) and not message.text.strip():
            raise ValueError("an empty request")
        if isinstance(message, Step) and message.call is None and not message.text.strip():
            raise ValueError("an empty answer")
    return messages
