"""What the stages' markers and metric segments say, read leniently.

A report must work on half a run, on one of an older version and on a damaged one: every field may be missing, and one
of another type counts as missing. Texts are cleaned here, once.
"""

from typing import Annotated, Any, Self, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue, ValidationError, field_validator
from pydantic import ValidatorFunctionWrapHandler as Handler

from nanocode.report.words import clean

# A fleet's FLOP per second stay below 1e21, all else far below: what is larger blew up, and would only break a chart.
LARGEST = 1e24


def _finite(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, int | float) and not abs(value) <= LARGEST):
        return None
    return value


def cleaned(value: Any) -> Any:
    """A text without what a browser or terminal could trip over; anything else as it is."""
    return clean(value) if isinstance(value, str) else value


def _clean_keys(value: Any) -> Any:
    return {cleaned(key): one for key, one in value.items()} if isinstance(value, dict) else value


def usable(value: Any) -> Any:
    """A list without what is no table."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
Text = Annotated[str, BeforeValidator(cleaned)]


class Lenient(BaseModel):
    """A value of the wrong type is a value that is missing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @field_validator("*", mode="wrap")
    @classmethod
    def _missing_if_wrong(cls, value: Any, handler: Handler, info: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            return cls.model_fields[info.field_name].get_default(call_default_factory=True)

    @classmethod
    def read(cls, values: dict[str, JsonValue] | None) -> Self:
        return cls.model_validate(values or {})


class ByKind(Lenient):
    """One number for code and one for English."""

    code: Number = None
    english: Number = None

    def __bool__(self) -> bool:
        return self.code is not None or self.english is not None


class TokenizerFacts(Lenient):
    vocab_size: Number = None
    seconds: Number = None
    bytes_per_token: ByKind = ByKind()
    public: Annotated[dict[str, ByKind], BeforeValidator(_clean_keys)] = {}


class ValidText(Lenient):
    bytes: Number = None
    documents: Number = None
    rows: Number = None


class Validation(Lenient):
    code: ValidText = ValidText()
    english: ValidText = ValidText()


class SourceFacts(Lenient):
    name: Text = ""
    location: Text = ""
    licence: Text = ""
    share: Number = None
    wanted_tokens: Number = None
    tokens: Number = None
    documents: Number = None
    bytes: Number = None
    duplicates: Number = None
    dropped: Annotated[dict[str, Number], BeforeValidator(_clean_keys)] = {}

    @property
    def kept_of_wanted(self) -> float | None:
        """Below 1 where the source ran out of text."""
        return self.tokens / self.wanted_tokens if self.tokens is not None and self.wanted_tokens else None


class CorpusFacts(Lenient):
    tokens: Number = None
    documents: Number = None
    bytes: Number = None
    rows: Number = None
    waste: Number = None
    seconds: Number = None
    valid: Validation = Validation()
    held_out: list[Text] = []
    sources: Annotated[list[SourceFacts], BeforeValidator(usable)] = []

    @property
    def drop_reasons(self) -> list[str]:
        """Every reason a filter gave, the most frequent first."""
        totals: dict[str, float] = {}
        for source in self.sources:
            for reason, documents in source.dropped.items():
                totals[reason] = totals.get(reason, 0.0) + (documents or 0.0)
        return sorted(totals, key=lambda reason: (-totals[reason], reason))

    def shares(self) -> list[float | None]:
        """The sources' weights as fractions of their sum."""
        total = sum(source.share or 0.0 for source in self.sources)
        return [source.share / total if source.share is not None and total else None for source in self.sources]


class Seconds(Lenient):
    """Where the wall-clock time of training went."""

    step: Number = None
    data: Number = None
    evaluation: Number = None
    checkpoint: Number = None
    compile: Number = None

    @property
    def total(self) -> float:
        return sum(max(0.0, value or 0.0) for value in self.model_dump().values())


class TrainingFacts(Lenient):
    """What every stage that trains says."""

    steps: Number = None
    parameters: Number = None
    tokens: Number = None
    loss: Number = None
    bits_per_byte: ByKind = ByKind()
    tokens_per_second: Number = None
    mfu: Number = None
    peak_flops: Number = None
    peak_source: Text = ""
    device: Text = ""
    devices: Number = None
    seconds: Seconds = Seconds()
    peak_memory_bytes: Number = None


class CoreTask(Lenient):
    accuracy: Number = None
    baseline: Number = None
    centered: Number = None
    examples: Number = None


class Core(Lenient):
    core: Number = None
    tasks: Annotated[dict[str, CoreTask], BeforeValidator(_clean_keys)] = {}


class BaseEvalFacts(Lenient):
    bits_per_byte: ByKind = ByKind()
    xz_bits_per_byte: ByKind = ByKind()
    core: Core | None = None


class Sample(Lenient):
    prompt: Text = ""
    text: Text = ""

    @property
    def continuation(self) -> str:
        """What the model wrote, without the prompt where the text repeats it."""
        return self.text.removeprefix(self.prompt)


class Record(Lenient):
    """One line of a training stage's metrics, of any kind."""

    kind: Text = ""
    time: Number = None
    step: Number = None
    tokens: Number = None
    loss: Number = None
    gradient_norm: Number = None
    learning_rate: Number = None
    data: Number = None
    step_seconds: Number = None
    checkpoint: Number = None
    evaluation: Number = None
    tokens_per_second: Number = None
    mfu: Number = None
    bits_per_byte: ByKind = ByKind()
    validation: Number = None
    margin: Number = None
    accuracy: Number = None
    chosen_gain: Number = None
    samples: Annotated[list[Sample], BeforeValidator(usable)] = []


def record(values: dict[str, Any]) -> Record:
    return Record.read(cast("dict[str, JsonValue]", values))
