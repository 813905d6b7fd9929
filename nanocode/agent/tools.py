"""The four tools, defined once.

From this table follow the tokens of a call (`conversation`), the grammar that constrains decoding (`grammar`), the
system prompt and the JSON schemas for OpenAI-style endpoints, and what is executed (`execute`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nanocode.agent.workspace import ToolError, Workspace

REJECTED = "rejected by user"
LINE_DIGITS = 6
"""Digits of the largest line number: more lines than a file may have."""


@dataclass(frozen=True)
class Parameter:
    """One typed argument of a tool."""

    name: str
    description: str
    kind: Literal["text", "line"] = "text"
    """`line` is a line number from 1: decimal digits and nothing else."""
    required: bool = True


@dataclass(frozen=True)
class Tool:
    """A tool as the model is told of it; optional parameters come last."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            "Read",
            "Show a text file with line numbers.",
            (
                Parameter("path", "file, relative to the workspace"),
                Parameter("start", "first line to show", "line", required=False),
                Parameter("end", "last line to show", "line", required=False),
            ),
        ),
        Tool(
            "Edit",
            "Replace a text that occurs exactly once in a file; an empty `old` creates the file.",
            (
                Parameter("path", "file, relative to the workspace"),
                Parameter("old", "the text to replace, as it stands in the file, without line numbers"),
                Parameter("new", "the text to put in its place"),
            ),
        ),
        Tool(
            "Grep",
            "Find the lines that match a regular expression, as path:line:text.",
            (
                Parameter("pattern", "a Python regular expression"),
                Parameter("path", "file or folder to look in; the whole workspace if left out", required=False),
            ),
        ),
        Tool("Bash", "Run a shell command in the workspace.", (Parameter("command", "the command"),)),
    )
}


@dataclass(frozen=True)
class Call:
    """A tool call whose arguments fit the tool: see `checked`."""

    tool: str
    arguments: Mapping[str, str] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.tool, frozenset(self.arguments.items())))  # equal in whatever order


def checked(name: str, arguments: Mapping[str, Any]) -> Call:
    """The call, its arguments in the tool's order; `ValueError` in words a model can act on when it does not fit."""
    if name not in TOOLS:
        raise ValueError(f"no tool is called {name!r}: use {', '.join(TOOLS)}")
    tool = TOOLS[name]
    unknown = sorted(set(arguments) - {parameter.name for parameter in tool.parameters})
    if unknown:
        raise ValueError(f"{name} takes no argument {unknown[0]!r}")
    kept: dict[str, str] = {}
    for parameter in tool.parameters:
        value = arguments.get(parameter.name)
        if value is None:
            if parameter.required:
                raise ValueError(f"{name} needs the argument {parameter.name!r}")
            continue
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(text, str):
            raise ValueError(f"{name}: {parameter.name} is {type(value).__name__}, not text")
        if parameter.kind == "line" and not (text.isascii() and text.isdecimal() and len(text) <= LINE_DIGITS):
            raise ValueError(f"{name}: {parameter.name} is {text!r}, not a line number")
        kept[parameter.name] = text
    return Call(name, kept)


def execute(workspace: Workspace, call: Call) -> str:
    """What the tool returns, as the model sees it; errors begin with `error:`."""
    arguments = dict(call.arguments)
    try:
        match call.tool:
            case "Read":
                lines = {key: int(arguments[key]) for key in ("start", "end") if key in arguments}
                return workspace.read(arguments["path"], **lines)
            case "Edit":
                return workspace.edit(arguments["path"], arguments["old"], arguments["new"])
            case "Grep":
                return workspace.grep(arguments["pattern"], arguments.get("path", "."))
            case "Bash":
                return workspace.bash(arguments["command"])
    except ToolError as error:
        return f"error: {error}"
    raise ValueError(f"no tool is called {call.tool!r}: use {', '.join(TOOLS)}")


def json_schemas() -> list[dict[str, Any]]:
    """The tools as the `tools` of an OpenAI-style chat completion."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": {
                    "type": "object",
                    "properties": {
                        parameter.name: {
                            "type": "integer" if parameter.kind == "line" else "string",
                            "description": parameter.description,
                        }
                        for parameter in tool.parameters
                    },
                    "required": [parameter.name for parameter in tool.parameters if parameter.required],
                    "additionalProperties": False,
                },
            },
        }
        for tool in TOOLS.values()
    ]


def system_prompt(soul: str) -> str:
    """What a model that was not trained on these tools has to be told; a trained one knows it by heart."""
    tools = "\n".join(
        f"- {tool.name}({', '.join(p.name + ('' if p.required else '?') for p in tool.parameters)}): {tool.description}"
        for tool in TOOLS.values()
    )
    return (
        "You are a coding agent. You work in a folder, the workspace, with these tools, one call at a time:\n"
        f"{tools}\n"
        "Results that begin with `error:` say what went wrong. When the user rejects a call, its result is "
        f"`{REJECTED}`: do not try again. End your turn with a short message that says what you found or did.\n\n"
        f"{soul.strip()}\n"
    )
