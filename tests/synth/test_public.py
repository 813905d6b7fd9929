"""Public instruction sets in each of their shapes, and in none."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanocode.agent.conversation import Message, Result, Step, User
from nanocode.agent.tools import Call
from nanocode.config.settings import PublicSet
from nanocode.synth.public import read_pairs, read_rollouts
from nanocode.text.sources import SourceError

Row = dict[str, Any]


def write(folder: Path, rows: list[Row], suffix: str) -> str:
    path = folder / f"train{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)
    return str(path)


def chat(*texts: str, roles: tuple[str, str] = ("user", "assistant")) -> list[Row]:
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


def tool_chat(arguments: Any) -> list[Row]:
    call = {"id": "c1", "type": "function", "function": {"name": "Read", "arguments": arguments}}
    return [
        {"role": "system", "content": "You have tools.", "tool_calls": None, "tool_call_id": None},
        {"role": "user", "content": "What is in a.py?", "tool_calls": None, "tool_call_id": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "tool_call_id": None},
        {"role": "tool", "content": "    1→x", "tool_calls": None, "tool_call_id": "c1"},
        {"role": "assistant", "content": "An x.", "tool_calls": None, "tool_call_id": None},
    ]


READ = [User("What is in a.py?"), Step("", Call("Read", {"path": "a.py"})), Result("    1→x"), Step("An x.")]
HELLO = [User("Hi"), Step("Hello.")]
SHAPES: dict[str, tuple[Row, list[Message]]] = {
    "smohammadi/nanocode-*: a chat with tool calls": ({"messages": tool_chat('{"path": "a.py"}')}, READ),
    "arguments as an object": ({"conversations": tool_chat({"path": "a.py", "start": None})}, READ),
    "allenai/tulu-3-sft-personas-code": ({"id": "1", "prompt": "Hi", "messages": chat("Hi", "Hello.")}, HELLO),
    "HuggingFaceTB/smoltalk": (
        {"messages": [{"role": "system", "content": "Be kind."}, *chat("Hi", "Hello.")], "source": "x"},
        [User("Be kind.\n\nHi"), Step("Hello.")],
    ),
    "bigcode/self-oss-instruct-sc2-exec-filter-50k": (
        {"fingerprint": None, "sha1": "x", "seed": "s", "instruction": "Hi", "response": "Hello."},
        HELLO,
    ),
    "theblackcat102/evol-codealpaca-v1": ({"instruction": "Hi", "output": "Hello."}, HELLO),
    "alpaca with an input": (
        {"instruction": "Greet", "input": "Ann", "output": "Hello."},
        [User("Greet\n\nAnn"), Step("Hello.")],
    ),
    "alpaca with an empty input": ({"instruction": "Hi", "input": "", "output": "Hello."}, HELLO),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}, HELLO),
}
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("row", "messages"), SHAPES.values(), ids=SHAPES)
def test_a_rollout_is_read(tmp_path: Path, row: Row, messages: list[Message], suffix: str) -> None:
    location = write(tmp_path, [row] * 3, suffix)
    found = list(read_rollouts(PublicSet(location=location)))
    assert [one.messages for one in found] == [messages] * 3
    first = 0 if suffix == ".parquet" else 1
    assert [one.origin for one in found] == [f"{location}:{number}" for number in range(first, first + 3)]


PAIRS: dict[str, tuple[Row, list[Message], list[Message]]] = {
    "two chats": (
        {"chosen": chat("Hi", "Hello."), "rejected": chat("Hi", "What?")},
        HELLO,
        [User("Hi"), Step("What?")],
    ),
    "two chats beside their prompt": (
        {"prompt": "Hi", "chosen": chat("Hi", "Hello."), "rejected": chat("Hi", "What?"), "score": 1.0},
        HELLO,
        [User("Hi"), Step("What?")],
    ),
    "two answers after a prompt": (
        {"prompt": "Hi", "chosen": chat("Hello.", roles=("assistant", "user")), "rejected": chat("What?", roles=("assistant", "user"))},
        HELLO,
        [User("Hi"), Step("What?")],
    ),
    "two texts after a prompt": ({"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}, HELLO, [User("Hi"), Step("What?")]),
    "two texts after a chat": (
        {"prompt": chat("Hi"), "chosen": "Hello.", "rejected": "What?"},
        HELLO,
        [User("Hi"), Step("What?")],
    ),
    "with tool calls": (
        {"chosen": tool_chat('{"path": "a.py"}'), "rejected": chat("What is in a.py?", "No idea.")},
        READ,
        [User("What is in a.py?"), Step("No idea.")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("row", "chosen", "rejected"), PAIRS.values(), ids=PAIRS)
def test_a_pair_is_read(tmp_path: Path, row: Row, chosen: list[Message], rejected: list[Message], suffix: str) -> None:
    (found,) = read_pairs(PublicSet(location=write(tmp_path, [row], suffix), kind="pairs"))
    assert (found.chosen, found.rejected) == (chosen, rejected)


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    write(tmp_path, [{"instruction": "Hi", "output": "Hello."}], ".jsonl")
    write(tmp_path, [{"messages": chat("Hi", "Hello.")}], ".parquet")
    assert [one.messages for one in read_rollouts(PublicSet(location=str(tmp_path)))] == [HELLO, HELLO]


GOOD = {"messages": chat("Hi", "Hello.")}
SHAPELESS: dict[str, tuple[list[Row], str]] = {
    "a chat that is a text": ([GOOD, {"messages": "Hi"}], "train.jsonl row 2: column 'messages' is str, not a list"),
    "a message that is a text": ([{"messages": ["Hi"]}], "row 1: column 'messages', message 0 is str, not an object"),
    "a message without a role": ([{"messages": [{"content": "Hi"}]}], "message 0 has neither role nor from"),
    "an answer that is a list": ([{"instruction": "Hi", "output": ["x"]}], "row 1: column 'output' is list, not str"),
    "other columns": ([{"question": "Hi", "answer": "x"}], "row 1: no messages, .*; only question, answer$"),
    "pairs where rollouts are wanted": ([{"chosen": [], "rejected": []}], "these are pairs, set kind to pairs"),
    "nothing but passed over": ([{"messages": chat("Hi")}] * 3, r"gives no conversation \(the last message is no answer\)"),
    "no rows": ([], "it has no rows"),
    "nothing but passed over, without end": ([{"messages": []}] * 1500, r"gives no conversation \(no messages\)"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "words"), SHAPELESS.values(), ids=SHAPELESS)
def test_another_shape_is_an_error(tmp_path: Path, rows: list[Row], words: str) -> None:
    with pytest.raises(SourceError, match=words) as raised:
        list(read_rollouts(PublicSet(location=write(tmp_path, rows, ".jsonl"))))
    assert "\n" not in str(raised.value)


def test_another_shape_in_parquet_names_row_and_column(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"train.parquet row 0: column 'messages' is str, not a list"):
        list(read_rollouts(PublicSet(location=write(tmp_path, [{"messages": "Hi"}], ".parquet"))))
    with pytest.raises(SourceError, match=r"train.parquet row 0: no messages, .*; only text$"):
        list(read_rollouts(PublicSet(location=write(tmp_path, [{"text": "Hi"}], ".parquet"))))
    with pytest.raises(SourceError, match="row 0: no column 'chosen'; only prompt"):
        list(read_pairs(PublicSet(location=write(tmp_path, [{"prompt": "Hi"}], ".parquet"), kind="pairs")))


def test_a_line_that_is_no_json_names_file_and_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for text, words in (
        ('{"messages": [', "a.jsonl row 1: not JSON"),
        ("[1]", "row 1: list, not an object"),
        ("[" * 100_000, "not JSON"),
    ):
        path.write_text(text + "\n")
        with pytest.raises(SourceError, match=words):
            list(read_rollouts(PublicSet(location=str(path))))


def test_a_damaged_file_and_a_missing_one_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    for name, words in (("a.parquet", "damaged or truncated"), ("b.parquet", "is not there")):
        with pytest.raises(SourceError, match=words):
            list(read_rollouts(PublicSet(location=str(tmp_path / name))))


UNFIT: dict[str, tuple[list[Row], str]] = {
    "an unknown tool": ([*tool_chat('{"path": "a"}')[:2], {"role": "assistant", "tool_calls": [{"function": {"name": "WebSearch", "arguments": "{}"}}]}], "no tool is called 'WebSearch'"),
    "an empty answer": (chat("Hi", " "), "an empty answer"),
    "an empty request": (chat("", "Hello."), "an empty request"),
    "a request without an answer": (chat("Hi", "Hello.", "And?"), "the last message is no answer"),
    "no message": ([], "no messages"),
    "half a surrogate pair": (chat("Hi", "\ud800"), "no UTF-8"),
    "nesting that is too deep": (chat("Hi", json.loads("[" * 400 + "]" * 400)), "has to be text in quotes|recursion"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize(("messages", "words"), UNFIT.values(), ids=UNFIT)
def test_a_row_that_is_no_conversation_of_ours_is_passed_over_and_counted(
    tmp_path: Path, messages: list[Row], words: str
) -> None:
    passed: Counter[str] = Counter()
    location = write(tmp_path, [GOOD, {"messages": messages}, {"messages": None}, GOOD], ".jsonl")
    found = list(read_rollouts(PublicSet(location=location), passed))
    assert [one.messages for one in found] == [HELLO, HELLO]
    assert passed.total() == 2
    (reason,) = [reason for reason in passed if reason != "messages is null"]
    assert re.search(words, reason)


def test_pairs_without_a_common_request_are_passed_over(tmp_path: Path) -> None:
    rows = [
        {"chosen": chat("Hi", "Hello."), "rejected": chat("Ho", "What?")},
        {"chosen": chat("Hi", "Hello."), "rejected": chat("Hi", "Hello.")},
        {"chosen": chat("Hi", "Hello."), "rejected": chat("Hi", "What?")},
    ]
    passed: Counter[str] = Counter()
    found = list(read_pairs(PublicSet(location=write(tmp_path, rows, ".jsonl"), kind="pairs"), passed))
    assert len(found) == 1
    assert passed == {"chosen and rejected begin differently": 1, "chosen and rejected are the same": 1}
