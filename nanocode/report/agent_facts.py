"""What the markers of the agent's stages say (synth, sft, preference, agent-eval), read as leniently as `facts`."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from nanocode.report.facts import ByKind, Lenient, Number, Text, TrainingFacts, cleaned, usable
from nanocode.report.words import clean

Interval = tuple[float, float]


def _named(value: Any) -> Any:
    """A table whose values are tables; what is none is left out."""
    return {clean(str(key)): one for key, one in value.items() if isinstance(one, dict)} if _table(value) else value


def _numbered(value: Any) -> Any:
    return {clean(str(key)): one for key, one in value.items()} if _table(value) else value


def _texts(value: Any) -> Any:
    return {clean(str(key)): clean(one) for key, one in value.items() if isinstance(one, str)} if _table(value) else {}


def _table(value: Any) -> bool:
    return isinstance(value, dict)


def _share(value: Any) -> Any:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return value if good else None


def _interval(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2 or None in map(_share, value) or value[0] > value[1]:
        return None
    return value


Counts = Annotated[dict[str, Number], BeforeValidator(_numbered)]
OptionalText = Annotated[str | None, BeforeValidator(cleaned)]


class RateFacts(Lenient):
    """A share of successes, with its 95% interval."""

    share: Annotated[float | None, BeforeValidator(_share)] = Field(default=None, validation_alias="pass@1")
    interval: Annotated[Interval | None, BeforeValidator(_interval)] = None
    passed: Number = None
    total: Number = None

    def __bool__(self) -> bool:
        return self.share is not None


class MessageFacts(Lenient):
    """One message of a transcript, as `nanocode.agent.conversation.to_json` writes it."""

    user: OptionalText = None
    assistant: OptionalText = None
    tool: OptionalText = None
    arguments: Annotated[dict[str, str], BeforeValidator(_texts)] = Field(default_factory=dict)
    result: OptionalText = None


class TranscriptFacts(Lenient):
    id: Text = ""
    family: Text = ""
    passed: bool = False
    reason: Text = ""
    messages: Annotated[list[MessageFacts], BeforeValidator(usable)] = Field(default_factory=list)


class SuiteFacts(RateFacts):
    """One model on one suite: the macro-average over families, and what it is made of."""

    families: Annotated[dict[str, RateFacts], BeforeValidator(_named)] = Field(default_factory=dict)
    adherence: Annotated[dict[str, RateFacts], BeforeValidator(_named)] = Field(default_factory=dict)
    steps: Number = None
    failed_calls: Number = None
    pass_at: Counts = Field(default_factory=dict, validation_alias="pass@k")
    transcripts: Annotated[list[TranscriptFacts], BeforeValidator(usable)] = Field(default_factory=list)

    @property
    def tasks(self) -> float | None:
        """Over all families."""
        known = [one.total for one in self.families.values() if one.total is not None]
        return sum(known) if known else None


class ModelFacts(Lenient):
    suites: Annotated[dict[str, SuiteFacts], BeforeValidator(_named)] = Field(default_factory=dict)


def _models(value: Any) -> Any:
    return {clean(str(key)): {"suites": one} for key, one in value.items()} if _table(value) else value


class AgentEvalFacts(Lenient):
    models: Annotated[dict[str, ModelFacts], BeforeValidator(_models)] = Field(default_factory=dict)

    def suite(self, model: str, suite: str) -> SuiteFacts:
        """Empty where it was not measured."""
        return self.models.get(model, ModelFacts()).suites.get(suite, SuiteFacts())


class SynthFacts(Lenient):
    gates: Annotated[dict[str, Counts], BeforeValidator(_named)] = Field(default_factory=dict)
    """By origin: the expert, public sets, a teacher."""
    seconds: Number = None
    soul: Text = ""

    @property
    def gates_in_order(self) -> dict[str, float | None]:
        """What came in, where it fell, and what is left; the origin's name before it if there are several."""
        ends = ("scenarios", "duplicate", "kept", "pairs")
        found: dict[str, float | None] = {}
        used = {origin: counts for origin, counts in self.gates.items() if counts}
        for origin, counts in used.items():
            falls = sorted(name for name in counts if name not in ends)
            prefix = f"{origin}: " if len(used) > 1 else ""
            found |= {f"{prefix}{name}": counts[name] for name in (ends[0], *falls, *ends[1:]) if name in counts}
        return found

    def total(self, gate: str) -> float | None:
        """Over all origins; None if no origin counts it."""
        found = [counts[gate] for counts in self.gates.values() if gate in counts]
        return sum(one for one in found if one is not None) if found else None


class FineTuningFacts(TrainingFacts):
    validation_loss: Number = None
    conversations: Counts = Field(default_factory=dict)
    """By family, and how many were `too long`."""
    waste: Number = None


class PreferenceFacts(TrainingFacts):
    bits_per_byte_before: ByKind = ByKind()
    pairs: Counts = Field(default_factory=dict)
