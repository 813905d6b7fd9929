"""What the user wants of a run, as numbered documents: `control/<n>.json`, the highest number counts.

`nanocode suspend`, `resume`, `cancel`, `retry` and `run` add one; the controller reads the last. It says as well up to
which attempt of each stage failures are forgiven, and how often each stage was begun again: that number is part of the
stage's input digest, so nothing of before is reused. (In Kubernetes the same fields are in the TrainingRun's spec.)
"""

import json
from contextlib import suppress
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nanocode.run.directory import RunDirectory, numbers
from nanocode.storage.objects import AlreadyExists, NotFound

Want = Literal["run", "suspend", "cancel"]


class Intent(BaseModel):
    """The last word."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    want: Want = "run"
    stages: tuple[str, ...] = ()
    """Only these; empty: all."""
    forgiven: dict[str, int] = {}
    """Stage -> the number of its last attempt whose failures do not count any more."""
    again: dict[str, int] = {}
    """Stage -> how many times a user has begun it again."""


def latest_intent(run: RunDirectory) -> Intent:
    """What counts; a run that was told nothing wants to run."""
    for number in reversed(numbers(run.store.children("control"), ".json")):
        try:
            return Intent.model_validate_json(run.store.read(f"control/{number}.json"))
        except ValidationError:
            continue  # a damaged word is none
    return Intent()


def earlier_intents(run: RunDirectory) -> list[Intent]:
    """What the user wanted before a stage was begun again: one for each time, without the last word."""
    found = {json.dumps(Intent().again): Intent()}
    for number in numbers(run.store.children("control"), ".json"):
        with suppress(ValidationError, NotFound):
            intent = Intent.model_validate_json(run.store.read(f"control/{number}.json"))
            found[json.dumps(intent.again, sort_keys=True)] = intent
    found.pop(json.dumps(latest_intent(run).again, sort_keys=True), None)
    return list(found.values())


def change_intent(run: RunDirectory, **changes: object) -> Intent:
    """Add a document that differs from the last one by these fields; nothing is added where nothing differs."""
    while True:
        known = numbers(run.store.children("control"), ".json")
        before = latest_intent(run)
        intent = before.model_copy(update=changes)
        if intent == before:
            return before
        try:
            run.store.create(f"control/{max(known, default=0) + 1}.json", intent.model_dump_json().encode())
            return intent
        except AlreadyExists:
            continue  # somebody else was faster: change what they said


def forgive(run: RunDirectory, stages: tuple[str, ...]) -> dict[str, int]:
    """`forgiven` after which every attempt so far of these stages is: for `change_intent`."""
    return {stage: max((claim.attempt for claim in run.attempts(stage)), default=0) for stage in stages}


def begun_again(before: Intent, stages: tuple[str, ...]) -> dict[str, int]:
    """`again` with one more for each of these stages."""
    return {**before.again, **{stage: before.again.get(stage, 0) + 1 for stage in stages}}
