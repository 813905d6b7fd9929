"""The journal in the run directory.

    slices/<name>/REQUEST.json       zone, price, and the bucket near it, before anything is asked for
    slices/<name>/<fact>.json        `ready`, `released`, `gone`, or the trouble that it came to: when, and why
    controller/told/<key>            what the user was told
    controller/status.json           the last decision, for people and programs that ask; nothing is decided on it

All but the last are created only if absent and never change, so each is read once. What is done stays done while the
digests are the same. A look costs a handful of requests, however long the run has been going on: one tells which
folders there are, and only those are looked into.
"""

import json
import os
import socket
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from deploy.controller.backend import Unreachable
from deploy.controller.decision import Decision
from deploy.controller.journal import Written
from deploy.controller.observed import Attempt, Slice, Stage, Trouble
from deploy.controller.signs import Signs
from nanocode.config import prices
from nanocode.config.settings import Controller, Settings, from_yaml
from nanocode.run import copied, near, stored
from nanocode.run.attempts import End, Stop, record, recorded
from nanocode.run.digests import digests_beside
from nanocode.run.directory import Claim, Marker, RunDirectory, numbers
from nanocode.run.graph import STAGES, order
from nanocode.run.intent import Intent, latest_intent
from nanocode.storage.objects import AlreadyExists, NotFound, StorageError

STATUS = "controller/status.json"
SECONDS_BETWEEN_SHOWS = 10.0
T = TypeVar("T")


@dataclass
class _Known:
    """One attempt, as far as it was read."""

    attempt: Attempt
    signs: Signs | None
    """None once it has ended."""


class RunJournal:
    """`Journal` over a run directory. It remembers only what cannot change."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._who = f"controller {socket.gethostname()}:{os.getpid()} {uuid.uuid4().hex[:8]}"
        self._config: tuple[int, Settings] | None = None
        self._control: tuple[int, Intent] = (0, Intent())
        self._markers: dict[str, Marker | None] = {}
        self._digests: tuple[Any, dict[str, str]] = (None, {})
        self._attempts: dict[str, dict[int, _Known]] = {name: {} for name in order()}
        self._slices: dict[str, Slice] = {}
        self._told: set[str] | None = None
        self._folders: tuple[str, ...] = ()
        self._shown: tuple[float, str] = (0.0, "")
        self._shown_before: float | None = None
        self._asked_when_shown = False
        self.maker: Callable[[], str] = lambda: ""
        """The provisioner that is asked for slices now."""
        self._stored: list[tuple[float, int]] | None = None

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self) -> Written:
        return _answered(self._read)

    def _read(self) -> Written:
        self._folders = self._run.store.children()
        settings, intent = self._settings(), self._intent()
        before = self._digests_now(settings, intent)
        for name in order():
            if self._may_change(name, before):
                self._markers[name] = self._run.done(name) if name in self._folders else None
                self._look_at_attempts(name)
        digests = self._digests_now(settings, intent)
        stages = tuple(self._stage(name, digests[name]) for name in order())
        self._look_at_slices()
        if self._told is None:
            self._told = set(self._children("controller/told"))
        policy = prices.priced(settings)
        slices = tuple(_priced(self._slices[name], policy) for name in sorted(self._slices))
        at_work = prices.dollars_per_hour_at_work(settings.prices)
        kept, shown = self._dollars_stored(settings), self._last_shown()
        crossed = copied.dollars(settings.prices, copied.total(self._children(copied.FOLDER))) or 0.0
        told = frozenset(self._told)
        return Written(intent, policy, settings.budget, stages, slices, told, at_work, kept, shown, crossed)

    def _last_shown(self) -> float | None:
        """When the controller before us published its last status; read once, and never decided on."""
        if not self._asked_when_shown:
            self._asked_when_shown = True
            with suppress(NotFound, ValueError, KeyError, TypeError):
                self._shown_before = float(json.loads(self._run.store.read(STATUS))["at"])
        return self._shown_before

    def _dollars_stored(self, settings: Settings) -> float:
        """Up to the last measurement; the next one, within the hour, brings the rest."""
        if not stored.is_billed(self._run, settings.prices):
            return 0.0
        if self._stored is None:
            self._stored = stored.measurements(self._children(stored.FOLDER))
        last = self._stored[-1][0] if self._stored else 0.0
        return stored.dollars(self._run, settings.prices, self._stored, last)

    def _weigh(self, at: float) -> None:
        """Once an hour. Without an answer the estimate stays as it was until the next look: the round has acted."""
        if self._stored is None or (self._stored and 0 <= at - self._stored[-1][0] < stored.SECONDS_BETWEEN):
            return
        with suppress(StorageError):
            settings = self.settings
            elsewhere = near.addresses(settings, self._run.store.url) if settings is not None else ()
            self._stored.append(stored.measure(self._run, at, elsewhere))

    def _children(self, folder: str) -> tuple[str, ...]:
        """What is in it; no question where this look found no folder that it could be in."""
        return self._run.store.children(folder) if folder.partition("/")[0] in self._folders else ()

    @property
    def settings(self) -> Settings | None:
        """Those of the last look."""
        return self._config[1] if self._config is not None else None

    def _settings(self) -> Settings:
        number = max(numbers(self._children("config"), ".yaml"), default=0)
        if self._config is None or self._config[0] != number:
            name = f"config/{number}.yaml"
            text = self._run.store.read(name).decode()
            self._config = (number, from_yaml(text, f"{self._run.store.url}/{name}"))
        return self._config[1]

    def _intent(self) -> Intent:
        number = max(numbers(self._children("control"), ".json"), default=0)
        if self._control[0] != number:
            self._control = (number, latest_intent(self._run))
        return self._control[1]

    def _digests_now(self, settings: Settings, intent: Intent) -> dict[str, str]:
        """The digests, computed again only when something they cover has changed."""
        marked = tuple(marker and marker.fingerprint() for marker in self._markers.values())
        key = (self._config and self._config[0], self._control[0], marked)
        if self._digests[0] != key:
            self._digests = (key, digests_beside(settings, self._markers.get, intent.again))
        return self._digests[1]

    def _may_change(self, name: str, digests: dict[str, str]) -> bool:
        """Whether anything can have happened to a stage: all but those that are done, or whose turn has not come."""
        if name not in self._markers or any(known.signs is not None for known in self._attempts[name].values()):
            return True
        marker = self._markers[name]
        if marker is not None and marker.input_digest == digests[name]:
            return False
        stage = STAGES[name]
        asked = self._control[1].stages if stage.reads_what_is_there else ()
        return all(self._is_done(other, digests) for other in stage.reads if not asked or other in asked)

    def _is_done(self, name: str, digests: dict[str, str]) -> bool:
        marker = self._markers.get(name)
        return marker is not None and marker.input_digest == digests[name]

    def _look_at_attempts(self, name: str) -> None:
        known = self._attempts[name]
        for number in numbers(self._children(f"{name}/attempts")):
            if number not in known and (claim := self._run.claimed(name, number)) is not None:
                known[number] = self._newly(name, claim)
        for one in known.values():
            if one.signs is not None:
                one.signs.look()
                one.attempt = self._with_facts(name, one.attempt, one.signs)
                if one.attempt.end is not None:
                    one.signs = None

    def _newly(self, name: str, claim: Claim) -> _Known:
        """An attempt seen for the first time; of one that has ended its claim and its end are all that matters."""
        new = Attempt(claim.attempt, claim.input_digest, claim.claimed.timestamp(), slice=claim.slice)
        end = recorded(self._run, name, claim.attempt, End)
        return _Known(replace(new, end=end), Signs(self._run.store, name, claim.attempt) if end is None else None)

    def _with_facts(self, name: str, attempt: Attempt, signs: Signs) -> Attempt:
        stop = attempt.stop or (recorded(self._run, name, attempt.number, Stop) if signs.has("STOP.json") else None)
        end = recorded(self._run, name, attempt.number, End) if signs.has("END.json") else None
        facts: dict[str, Any] = {"stop": stop, "end": end, "first_step": signs.first_step, "last_sign": signs.last_sign}
        facts["copying"] = signs.copying
        return Attempt(attempt.number, attempt.digest, attempt.claimed, slice=attempt.slice, **facts)

    def _stage(self, name: str, digest: str) -> Stage:
        graph, marker = STAGES[name], self._markers.get(name)
        known = [one for _, one in sorted(self._attempts[name].items())]
        mine = [one for one in known if one.attempt.digest == digest]
        safe = [one.attempt.end.progress for one in mine if one.attempt.end is not None]
        if live := [one.signs for one in mine if one.signs is not None]:
            safe += [signs.newest_checkpoint for signs in live]
            if not any(signs.newest_checkpoint for signs in live):
                safe.append(len(self._run.store.list(self._run.output_folder(name, digest) + "/")))
        return Stage(
            name=name,
            machine=graph.machine,
            reads=graph.reads,
            digest=digest,
            reads_what_is_there=graph.reads_what_is_there,
            marked=marker.input_digest if marker is not None else None,
            progress=max(safe, default=0),
            attempts=tuple(one.attempt for one in known),
        )

    def _look_at_slices(self) -> None:
        for name in self._children("slices"):
            known = self._slices.get(name)
            if known is None or known.gone is None:
                facts = {stem: self._fact(name, stem) for stem in self._new_facts(name, known)}
                self._slices[name] = _slice(name, known, facts)

    def _new_facts(self, name: str, known: Slice | None) -> list[str]:
        stems = [child.removesuffix(".json") for child in self._run.store.children(f"slices/{name}")]
        return [stem for stem in stems if known is None or stem not in _facts_of(known)]

    def _fact(self, name: str, stem: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._run.store.read(f"slices/{name}/{stem}.json"))
        return found

    # -- writing -------------------------------------------------------------------------------------------------------

    def claim(self, stage: str, attempt: int, digest: str, slice: str | None) -> bool:
        return self._first(lambda: self._run.claim_number(stage, attempt, digest, self._who, slice))

    def stop(self, stage: str, attempt: int, stop: Stop) -> None:
        if self._attempts[stage][attempt].attempt.stop is None:
            _answered(lambda: record(self._run, stage, attempt, stop))

    def end(self, stage: str, attempt: int, end: End) -> None:
        _answered(lambda: record(self._run, stage, attempt, end))

    def request(self, name: str, zone: str, dollars_per_hour: float | None, at: float) -> str:
        wish = {"zone": zone, "dollars_per_hour": dollars_per_hour, "at": at}
        wish |= {"maker": maker} if (maker := self.maker()) else {}
        wish |= {"near": place} if (place := self._near(zone)) is not None else {}
        if self._create(f"slices/{name}/REQUEST.json", wish):
            return zone
        return str(_answered(lambda: self._fact(name, "REQUEST"))["zone"])

    def _near(self, zone: str) -> str | None:
        """Where a slice there reads and saves, if not in the run directory."""
        buckets = self.settings.cloud.buckets if self.settings is not None else {}
        return near.address(buckets, near.region_of(zone), self._run.store.url)

    def note(self, name: str, fact: str, at: float, reason: str = "") -> None:
        known = self._slices.get(name)
        if known is None or fact not in _facts_of(known):
            self._create(f"slices/{name}/{fact}.json", {"at": at, **({"reason": reason} if reason else {})})

    def told(self, key: str) -> bool:
        first = self._create(f"controller/told/{key}", {})
        self._told = {*(self._told or ()), key}  # only now: without an answer the next round tries again
        return first

    def show(self, decision: Decision, at: float) -> None:
        stages = {name: {"state": one.state, "reason": one.reason} for name, one in decision.stages.items()}
        status = {"state": decision.state, "reason": decision.reason, "stages": stages}
        text = json.dumps(status)
        if text == self._shown[1] and 0 <= at - self._shown[0] < SECONDS_BETWEEN_SHOWS:
            return
        whole = json.dumps({**status, "spent_dollars": decision.spent_dollars, "at": at})
        _answered(lambda: self._run.store.write(STATUS, whole.encode()))
        self._shown = (at, text)
        self._weigh(at)

    def _create(self, name: str, fact: dict[str, Any]) -> bool:
        return self._first(lambda: self._run.store.create(name, json.dumps(fact).encode()))

    @staticmethod
    def _first(create: Callable[[], Any]) -> bool:
        """Whether we were the first to create it."""
        try:
            _answered(create)
        except AlreadyExists:
            return False
        return True


FACTS = {"REQUEST": "requested", "ready": "ready", "released": "released", "gone": "gone"}
"""Name of the object -> field of `Slice` that says when."""


def _facts_of(known: Slice) -> set[str]:
    """The facts that were read of a slice already."""
    found = {stem for stem, field in FACTS.items() if getattr(known, field) is not None}
    return found | ({known.trouble.value} if known.trouble is not None else set())


def _slice(name: str, known: Slice | None, facts: dict[str, dict[str, Any]]) -> Slice:
    values: dict[str, Any] = dict(vars(known)) if known is not None else {"name": name, "zone": ""}
    for stem, fact in facts.items():
        if stem in FACTS:
            values[FACTS[stem]] = fact["at"]
            values |= {key: fact[key] for key in ("zone", "dollars_per_hour", "maker") if key in fact}
        else:
            values["trouble"], values["reason"] = Trouble(stem), str(fact.get("reason", ""))
    return Slice(**values)


def _priced(one: Slice, policy: Controller) -> Slice:
    """One that was asked for when nobody had said what it costs has the price that is known by now."""
    if one.dollars_per_hour is not None:
        return one
    return replace(one, dollars_per_hour=policy.dollars_per_slice_hour.get(one.zone))


def _answered(ask: Callable[[], T]) -> T:
    """What the store answers; `Unreachable` when it gives no answer. A lost race is one."""
    try:
        return ask()
    except (AlreadyExists, NotFound):
        raise
    except StorageError as error:
        raise Unreachable(str(error)) from error
