"""The run directory: its content is the only state that matters, and whoever comes next reads it and goes on.

    config/<n>.yaml                       the resolved configuration, with the SOUL's text; the highest number counts
    accepted.json                         what somebody has agreed to have run again (`nanocode.run.settling`)
    <stage>/attempts/<n>/claim.json       who runs attempt n, and the input digest; created only if absent
    <stage>/DONE.json                     the completion marker, written last, by generation match
    <stage>/DONE.<digest>.json            a stale marker, set aside (DONE.damaged-<hash>.json: one that cannot be read)

No step holds a lock between calls, so any process may die at any point.
"""

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from nanocode.storage.objects import AlreadyExists, NotFound, StaleGeneration, Store

log = structlog.get_logger()

# Hex digits of a digest in a name: 48 bits, enough to tell the few digests of one stage apart.
PREFIX_DIGITS = 12


class Marker(BaseModel):
    """`DONE.json`: the proof that a stage is complete, and what it took."""

    # Fields that a later version adds must not make its markers unreadable.
    model_config = ConfigDict(frozen=True, extra="ignore")

    stage: str
    input_digest: str = Field(min_length=PREFIX_DIGITS, pattern="^[0-9a-f]+$")
    attempt: int
    outputs: dict[str, str] = {}
    """Name -> path in the run directory."""
    metrics: dict[str, JsonValue] = {}
    versions: dict[str, str] = {}
    chip_seconds: float = 0.0
    cost_dollars: float = 0.0
    started: AwareDatetime
    ended: AwareDatetime

    def fingerprint(self) -> str:
        """32 hex digits of the whole marker: the report is made again when any of it changes."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]


class Claim(BaseModel):
    """`claim.json`: one attempt at a stage."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    stage: str
    attempt: int
    input_digest: str
    who: str
    claimed: AwareDatetime
    slice: str | None = None
    """The slice it runs on, where it runs on one."""


class RunDirectory:
    """The documents of one run. Attempts share nothing that is written, so a zombie can only hurt itself."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def latest_config(self) -> tuple[int, str] | None:
        """Number and text of the configuration that counts; None in a new run directory."""
        numbers = self._config_numbers()
        return (numbers[-1], self.store.read(f"config/{numbers[-1]}.yaml").decode()) if numbers else None

    def add_config(self, text: str) -> int:
        """Make `text` the configuration that counts, under the number returned; earlier ones stay."""
        n = max(self._config_numbers(), default=0) + 1
        while True:
            try:
                self.store.create(f"config/{n}.yaml", text.encode())
                return n
            except AlreadyExists:
                n += 1

    def claim(self, stage: str, digest: str, who: str) -> int:
        """Begin an attempt that nobody else has: its number, from 1."""
        n = max(self._attempt_numbers(stage), default=0) + 1
        while True:
            try:
                return self.claim_number(stage, n, digest, who).attempt
            except AlreadyExists:
                n += 1

    def claim_number(self, stage: str, attempt: int, digest: str, who: str, slice: str | None = None) -> Claim:
        """Begin exactly this attempt; `AlreadyExists` when somebody has. Whoever begins it, and only who, starts it."""
        claimed = datetime.now(UTC)
        claim = Claim(stage=stage, attempt=attempt, input_digest=digest, who=who, claimed=claimed, slice=slice)
        self.store.create(f"{self.attempt_folder(stage, attempt)}/claim.json", _as_json(claim))
        return claim

    def attempts(self, stage: str) -> list[Claim]:
        """The claims of a stage by number; one that cannot be read is left out, loudly."""
        claims = (self.claimed(stage, n) for n in self._attempt_numbers(stage))
        return [claim for claim in claims if claim is not None]

    def claimed(self, stage: str, attempt: int) -> Claim | None:
        """The claim of one attempt; None where there is none, or none that can be read."""
        name = f"{self.attempt_folder(stage, attempt)}/claim.json"
        try:
            return Claim.model_validate_json(self.store.read(name))
        except NotFound:
            return None
        except ValidationError:
            log.warning("claim cannot be read: its attempt is ignored", claim=f"{self.store.url}/{name}")
            return None

    def output_folder(self, stage: str, digest: str) -> str:
        """Where the stage's outputs go: named by its digest, so attempts write the same bytes to the same names."""
        return f"{stage}/{digest[:PREFIX_DIGITS]}"

    def attempt_folder(self, stage: str, attempt: int) -> str:
        """Where attempt n of the stage writes everything that is its own."""
        return f"{stage}/attempts/{attempt}"

    def done(self, stage: str) -> Marker | None:
        """The stage's marker, stale or not: compare its digest. One that cannot be read is set aside: not done."""
        name = f"{stage}/DONE.json"
        generation = self.store.generation(name)  # before reading: what is read is this one or newer, never older
        if not generation:
            return None
        try:
            data = self.store.read(name)
        except NotFound:
            return None
        marker = self._parse(stage, data)
        if marker is None:
            self._set_aside_damaged(stage, data)
            try:
                self.store.delete(name, generation)
            except StaleGeneration:
                return self.done(stage)  # somebody published a whole one meanwhile
        return marker

    def marker(self, stage: str) -> Marker | None:
        """The same for whoever only looks: nothing is set aside."""
        try:
            return self._parse(stage, self.store.read(f"{stage}/DONE.json"))
        except NotFound:
            return None

    def finish(self, stage: str, marker: Marker) -> Marker:
        """Publish the marker, last of all writes of a stage; the marker that counts is returned.

        The first marker of a digest wins over later ones. One with another digest is set aside, and never is there
        a moment without a marker.
        """
        assert marker.stage == stage, f"marker of {marker.stage} published for {stage}"
        name = f"{stage}/DONE.json"
        while True:
            generation = self.store.generation(name)
            try:
                data = self.store.read(name) if generation else b""
                if not generation:
                    self.store.create(name, _as_json(marker))
                    return marker
                there = self._parse(stage, data)
                if there is None:
                    self._set_aside_damaged(stage, data)
                elif there.input_digest == marker.input_digest:
                    return there
                else:
                    self.store.write(f"{stage}/DONE.{there.input_digest[:PREFIX_DIGITS]}.json", data)
                self.store.replace(name, _as_json(marker), generation)
                return marker
            except (AlreadyExists, NotFound, StaleGeneration):
                continue  # somebody else published, or set a damaged one aside: look again

    def _parse(self, stage: str, data: bytes) -> Marker | None:
        try:
            marker = Marker.model_validate_json(data)
        except ValidationError:
            return None
        return marker if marker.stage == stage else None

    def _set_aside_damaged(self, stage: str, data: bytes) -> None:
        kept = f"{stage}/DONE.damaged-{hashlib.sha256(data).hexdigest()[:PREFIX_DIGITS]}.json"
        self.store.write(kept, data)
        log.warning(
            "marker cannot be read: the stage counts as not done",
            marker=f"{self.store.url}/{stage}/DONE.json",
            set_aside_as=f"{self.store.url}/{kept}",
        )

    def _config_numbers(self) -> list[int]:
        return numbers(self.store.children("config"), ".yaml")

    def _attempt_numbers(self, stage: str) -> list[int]:
        return numbers(self.store.children(f"{stage}/attempts"))


def numbers(names: Iterable[str], suffix: str = "") -> list[int]:
    """The numbers among names such as `12.yaml`, in order."""
    stems = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdecimal())


def _as_json(document: BaseModel) -> bytes:
    return document.model_dump_json(indent=1).encode() + b"\n"
