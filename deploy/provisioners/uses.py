"""Who uses a slice, from the run directory that its labels name: run, stage, attempt, and when anybody was heard of.

Labels hold a short name of the run, which nobody can turn back into an address: a run is found by the address that a
thing itself knows, else among the folders that the user names.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import structlog

from deploy.controller.record import STATUS
from deploy.provisioners.labels import run_label
from nanocode.config.settings import Settings
from nanocode.run.attempts import End, recorded
from nanocode.run.directory import Claim, RunDirectory
from nanocode.run.exits import ConfigurationError
from nanocode.run.graph import STAGES
from nanocode.run.liveness import last_sign
from nanocode.run.settling import read_settings
from nanocode.storage.objects import NotFound, StorageError, open_store

log = structlog.get_logger()


@dataclass(frozen=True)
class Use:
    """What a run says of one of its slices."""

    run: str
    """Its address."""
    settings: Settings
    asked_for: bool = True
    """It is written that the run asked for the slice: that is written before anything is asked."""
    stage: str | None = None
    attempt: int | None = None
    """Of the attempt that lives on it."""
    heard: float = 0.0
    """When the run's controller, or an attempt on this slice, last gave a sign of life; 0: never."""
    controlled: float = 0.0
    """The same of the controller alone."""
    signed: float = 0.0
    """The same of the attempt alone."""
    released: float | None = None
    """When it was given back."""
    dollars_per_hour: float | None = None
    """As it was when it was asked for."""

    @property
    def what(self) -> str:
        """In words; empty while no attempt lives on it."""
        return f"{self.stage} runs on it, attempt {self.attempt}" if self.stage is not None else ""

    @property
    def unattended_seconds(self) -> float:
        return self.settings.cloud.unattended_minutes * 60

    def lives(self, now: float, bound: float) -> bool:
        """Whether an attempt on it has given a sign of life."""
        return self.stage is not None and now - self.signed <= bound


class Runs:
    """The runs that somebody may be asked about."""

    def __init__(self, locations: Iterable[str]) -> None:
        """Each a run directory, or a folder of them."""
        self._known = {run_label(url): url for location in locations for url in _runs_at(location)}

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(self._known.values())

    def zones(self) -> list[str]:
        """Where these runs may have slices: zones that they name now, and those in which they have any left."""
        found: dict[str, None] = {}
        for url in self.urls:
            run = RunDirectory(open_store(url))
            with _warned(url):
                found |= dict.fromkeys((*read_settings(run).controller.zones, *_zones_of_what_is_left(run)))
        return list(found)

    def use(self, run: str, slice: str, url: str | None = None) -> Use | None:
        """Of a slice by its labels; None where the run is not known or cannot be read."""
        where = url if url is not None and run_label(url) == run else self._known.get(run)
        if where is None:
            return None
        with _warned(where):
            return read_use(RunDirectory(open_store(where)), slice)
        return None


@contextmanager
def _warned(run: str) -> Iterator[None]:
    """A run that cannot be read is said, and passed over."""
    try:
        yield
    except (StorageError, ConfigurationError, ValueError) as error:
        log.warning("a run cannot be read", run=run, error=str(error))


def read_use(run: RunDirectory, slice: str) -> Use:
    """What the directory says; raises where it cannot be read, for that is not the same as silence."""
    settings = read_settings(run)
    wish, released = _fact(run, f"slices/{slice}/REQUEST.json"), _fact(run, f"slices/{slice}/released.json")
    status = _fact(run, STATUS)
    live = [claim for claim in _claims(run) if claim.slice == slice and _lives(run, claim)]
    signs = {claim: last_sign(run, claim) for claim in live}
    newest = max(live, key=lambda claim: signs[claim], default=None)
    signed = max(signs.values(), default=0.0)
    controlled = max(_at(status), _at(wish))
    price = wish.get("dollars_per_hour")
    return Use(
        run=run.store.url,
        settings=settings,
        asked_for=bool(wish),
        stage=newest.stage if newest is not None else None,
        attempt=newest.attempt if newest is not None else None,
        heard=max(controlled, signed),
        controlled=controlled,
        signed=signed,
        released=_at(released) or None,
        dollars_per_hour=float(price) if isinstance(price, int | float) else None,
    )


def _zones_of_what_is_left(run: RunDirectory) -> Iterator[str]:
    for slice in run.store.children("slices"):
        facts = run.store.children(f"slices/{slice}")
        zone = _fact(run, f"slices/{slice}/REQUEST.json").get("zone")
        if "gone.json" not in facts and isinstance(zone, str):
            yield zone


def _claims(run: RunDirectory) -> Iterator[Claim]:
    for name, stage in STAGES.items():
        if stage.machine == "accelerator":
            yield from run.attempts(name)


def _lives(run: RunDirectory, claim: Claim) -> bool:
    return recorded(run, claim.stage, claim.attempt, End) is None


def _fact(run: RunDirectory, name: str) -> dict[str, object]:
    """One that is not there says nothing; one that cannot be parsed raises `ValueError`."""
    try:
        found = json.loads(run.store.read(name))
    except NotFound:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{run.store.url}/{name} holds no object")
    return found


def _at(fact: dict[str, object]) -> float:
    at = fact.get("at", 0.0)
    if isinstance(at, bool) or not isinstance(at, int | float):
        raise ValueError(f"{at!r} is no time")
    return float(at)


def _runs_at(location: str) -> list[str]:
    store = open_store(location)
    if store.children("config"):
        return [store.url]
    found = []
    for name in store.children():
        with suppress(StorageError):  # a file, or a folder that is not ours to read: then it is not known
            if store.child(name).children("config"):
                found.append(store.child(name).url)
    return found
