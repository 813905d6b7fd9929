"""The tools as one table: schemas, prompt and checks agree, and what is executed is what was called."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from nanocode.agent.sandbox import Grade, best_grade
from nanocode.agent.tools import TOOLS, Call, checked, execute, json_schemas, system_prompt
from nanocode.agent.workspace import Workspace
from tests.agent.strategies import calls

SCHEMAS = {one["function"]["name"]: one["function"]["parameters"] for one in json_schemas()}


def fits(schema: dict[str, Any], value: dict[str, Any]) -> bool:
    """JSON Schema, as much of it as our schemas use."""
    assert set(schema) == {"type", "properties", "required", "additionalProperties"}
    assert schema["type"] == "object" and schema["additionalProperties"] is False
    kinds = {"string": lambda x: isinstance(x, str), "integer": lambda x: isinstance(x, int) and type(x) is not bool}
    return (
        set(schema["required"]) <= set(value)
        and set(value) <= set(schema["properties"])
        and all(kinds[schema["properties"][key]["type"]](one) for key, one in value.items())
    )


def as_endpoints_send(call: Call) -> dict[str, Any]:
    """Line numbers are JSON integers there."""
    kinds = {parameter.name: parameter.kind for parameter in TOOLS[call.tool].parameters}
    return {key: int(value) if kinds[key] == "line" else value for key, value in call.arguments.items()}


@given(call=calls())
def test_every_call_fits_its_schema_and_is_taken_back(call: Call) -> None:
    sent = as_endpoints_send(call)
    assert fits(SCHEMAS[call.tool], sent)
    assert checked(call.tool, sent) == call
    assert checked(call.tool, dict(call.arguments)) == call


@given(call=calls())
def test_what_the_schema_refuses_is_refused(call: Call) -> None:
    sent = as_endpoints_send(call)
    broken = [{**sent, "other": "x"}, *({**sent, key: None} for key in SCHEMAS[call.tool]["required"])]
    broken += [{**sent, key: wrong} for key in sent for wrong in ([], {}, 1.5, True)]
    for arguments in broken:
        assert not fits(SCHEMAS[call.tool], arguments)
        with pytest.raises(ValueError):
            checked(call.tool, arguments)


def test_the_tools_are_these_and_the_optional_arguments_come_last() -> None:
    """As issues, prompts and trained models know them."""
    described = {
        tool.name: [parameter.name + "?" * (not parameter.required) for parameter in tool.parameters]
        for tool in TOOLS.values()
    }
    assert described == {
        "Read": ["path", "start?", "end?"],
        "Edit": ["path", "old", "new"],
        "Grep": ["pattern", "path?"],
        "Bash": ["command"],
    }


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("Write", {}, "no tool is called 'Write': use Read, Edit, Grep, Bash"),
        ("read", {"path": "a"}, "no tool is called 'read'"),
        ("Read", {}, "Read needs the argument 'path'"),
        ("Read", {"path": None}, "Read needs the argument 'path'"),
        ("Edit", {"path": "a", "old": ""}, "Edit needs the argument 'new'"),
        ("Bash", {"command": "ls", "cwd": "/"}, "Bash takes no argument 'cwd'"),
        ("Bash", {"command": ["ls"]}, "Bash: command is list, not text"),
        ("Bash", {"command": True}, "Bash: command is bool, not text"),
        ("Read", {"path": "a", "start": "one"}, "Read: start is 'one', not a line number"),
        ("Read", {"path": "a", "start": -1}, "Read: start is '-1', not a line number"),
        ("Read", {"path": "a", "start": 1.0}, "Read: start is float, not text"),
        ("Read", {"path": "a", "end": "²"}, "not a line number"),
        ("Read", {"path": "a", "end": ""}, "not a line number"),
        ("Read", {"path": "a", "end": 10_000_000}, "Read: end is '10000000', not a line number"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_in_words_a_model_can_act_on(
    name: str, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError) as caught:
        checked(name, arguments)
    assert told in str(caught.value)


def test_arguments_are_put_in_the_tools_order_and_absent_ones_left_out() -> None:
    call = checked("Read", {"end": 9, "start": None, "path": "a"})
    assert list(call.arguments.items()) == [("path", "a"), ("end", "9")]


@given(call=calls())
def test_equal_calls_have_equal_hashes(call: Call) -> None:
    turned = Call(call.tool, dict(reversed(call.arguments.items())))
    assert turned == call
    assert hash(turned) == hash(call)
    assert len({turned, call}) == 1


def test_the_prompt_names_every_tool_with_its_arguments_and_ends_with_the_soul() -> None:
    text = system_prompt("  Be kind.\n")
    assert all(f"- {name}({', '.join(described)})" in text for name, described in {
        "Read": ["path", "start?", "end?"], "Edit": ["path", "old", "new"], "Bash": ["command"]
    }.items())  # fmt: skip
    assert text.endswith("\n\nBe kind.\n")


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (Call("Read", {"path": "a.py"}), "    1→one = 1\n    2→two = 2"),
        (Call("Read", {"path": "a.py", "start": "2"}), "    2→two = 2"),
        (Call("Read", {"path": "a.py", "end": "1"}), "    1→one = 1"),
        (Call("Read", {"path": "a.py", "start": "0"}), "error: bad line range 0-2"),
        (Call("Read", {"path": "b.py"}), "error: no such file: b.py"),
        (Call("Edit", {"path": "a.py", "old": "1", "new": "3"}), "    1→one = 3"),
        (Call("Edit", {"path": "a.py", "old": "0", "new": "3"}), "error: old text found 0 times in a.py"),
        (Call("Grep", {"pattern": "t.o"}), "a.py:2:two = 2"),
        (Call("Grep", {"pattern": "t.o", "path": "c"}), "error: no such file: c"),
        (Call("Read", {"path": "../a.py"}), "error: outside the workspace: ../a.py"),
    ],
)
def test_a_call_answers_in_the_format_of_its_tool(tmp_path: Path, call: Call, answer: str) -> None:
    (tmp_path / "a.py").write_text("one = 1\ntwo = 2\n")
    assert execute(Workspace(tmp_path), call).startswith(answer)


@pytest.mark.skipif(best_grade() is Grade.NONE, reason="commands run only where something holds them")
@pytest.mark.parametrize(
    ("command", "answer"), [("echo hi", "hi\n"), ("echo no; exit 3", "error: exit status 3\nno\n")]
)
def test_a_command_answers_with_its_raw_output(tmp_path: Path, command: str, answer: str) -> None:
    assert execute(Workspace(tmp_path), Call("Bash", {"command": command})) == answer


def test_a_tool_that_is_none_is_a_mistake_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tool is called 'Write'"):
        execute(Workspace(tmp_path), Call("Write", {}))
