"""A user's own tasks: a file with one JSON object a line.

    {"id": "add", "family": "maths", "prompt": "Write add.py ...", "files": {"README": "..."}, "check": {"bash": "..."}}
    {"id": "who", "prompt": "Who wrote this?", "check": {"answer": "a regular expression over the last message"}}

`family` and `files` may be left out. Whatever is wrong is refused with file, line and key, before anything is played.
"""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nanocode.config.refusals import cause, requirement
from nanocode.run.exits import ConfigurationError
from nanocode.tasks.task import Check, Task


class _Check(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bash: str | None = None
    answer: str | None = None

    @field_validator("answer")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _checks_something(self) -> "_Check":
        if not self.bash and not self.answer:
            raise ValueError('needs "bash" or "answer": without one every agent passes')
        return self


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1)
    family: str = Field(default="tasks", min_length=1)
    prompt: str = Field(min_length=1)
    files: dict[str, str] = {}
    check: _Check

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, value: dict[str, str]) -> dict[str, str]:
        for path in value:
            if path.startswith("/") or not path.strip("/.") or ".." in path.split("/"):
                raise ValueError(f"path {path!r} is not inside the workspace")
        return value


def read_suite(path: Path) -> list[Task]:
    """The tasks of a file; `ConfigurationError` that names file, line and key."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read --suite {path} ({cause(error)}): give `agent` or a JSONL file") from None
    tasks: dict[str, Task] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        task = _task(line, f"{path}, line {number}")
        if task.id in tasks:
            raise ConfigurationError(f"{path}, line {number}: id {task.id!r} is used twice: give every task its own")
        tasks[task.id] = task
    if not tasks:
        raise ConfigurationError(f"{path} holds no tasks: write one JSON object a line")
    return list(tasks.values())


def _task(line: str, where: str) -> Task:
    try:
        values: Any = json.loads(line)
    except ValueError as error:
        raise ConfigurationError(f"{where}: not JSON ({error}): write one object on one line") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{where}: holds {type(values).__name__}, not an object: begin with {{")
    try:
        one = _Line.model_validate(values, strict=True)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {_explain(error)}") from None
    check = Check(bash=one.check.bash, answer=(one.check.answer,) if one.check.answer else ())
    return Task(id=one.id, family=one.family, prompt=one.prompt, files=one.files, check=check)


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong, by its key."""
    one = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in one["loc"])
    match one["type"]:
        case "missing":
            return f"key {key!r} is missing"
        case "extra_forbidden":
            return f"key {key!r} is unknown: a task has id, family, prompt, files and check (bash or answer)"
    return f"key {key!r}: {requirement(one)}"
