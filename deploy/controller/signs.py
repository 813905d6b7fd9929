"""What a live attempt publishes, looked at again and again: one listing, and of segments only the newest, once each."""

from nanocode.run.segments import KINDS, records
from nanocode.storage.objects import Store

WORK = {"metrics": ("step", "time"), "events": ("progress",)}
"""Kinds of records that say that work was done, by kind of segment."""


class Signs:
    """Signs of life of one attempt."""

    def __init__(self, store: Store, stage: str, attempt: int) -> None:
        self._store, self._folder = store, f"{stage}/attempts/{attempt}"
        self._names: set[str] = set()
        self._read: dict[str, str] = {}
        self.newest_checkpoint = 0
        """Step of the newest one that is whole."""
        self.first_step: float | None = None
        self.last_sign: float | None = None

    def has(self, name: str) -> bool:
        """Whether the attempt's folder held this object at the last look."""
        return name in self._names

    def look(self) -> None:
        """Bring everything up to now."""
        stem = self._folder + "/"
        names = [name.removeprefix(stem) for name in self._store.list(stem)]
        self._names = {name for name in names if "/" not in name}
        newest: dict[str, str] = {}
        for name in names:
            kind, _, rest = name.partition("/")
            if kind == "checkpoints" and rest.endswith(".json") and rest[:-5].isdecimal():
                self.newest_checkpoint = max(self.newest_checkpoint, int(rest[:-5]))
            elif kind in KINDS:
                newest[f"{kind}/{rest.rpartition('-')[0]}"] = name  # names are sorted: the last of a host is its newest
        for writer, name in newest.items():
            if self._read.get(writer) != name:
                self._read[writer] = name
                self._take(name)

    def _take(self, name: str) -> None:
        kinds = WORK.get(name.partition("/")[0], ())
        for record in records(self._store, f"{self._folder}/{name}"):
            time = record.get("time")
            if not isinstance(time, int | float):
                continue
            self.last_sign = max(time, self.last_sign or time)
            if record.get("kind") in kinds:
                self.first_step = min(time, self.first_step or time)
