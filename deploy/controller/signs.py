"""What a live attempt publishes, looked at again and again: its names, and of segments only the newest, once each.

A listing of everything is the cheapest look at a young attempt and the dearest at one of a week, which has published
60,000 segments of each kind: then each writer is asked for what came after its newest.
"""

from nanocode.run import copied
from nanocode.run.segments import KINDS, records
from nanocode.storage.objects import PAGE, Store

WORK = {"metrics": ("step", "time"), "events": ("progress",)}
"""Kinds of records that say that work was done, by kind of segment."""


class Signs:
    """Signs of life of one attempt."""

    def __init__(self, store: Store, stage: str, attempt: int) -> None:
        self._store, self._folder = store, f"{stage}/attempts/{attempt}"
        self._names: set[str] = set()
        self._read: dict[str, str] = {}
        """Writer, such as `metrics/0` -> its newest segment."""
        self._long = False
        self.newest_checkpoint = 0
        """Step of the newest one that is whole."""
        self.first_step: float | None = None
        self.last_sign: float | None = None
        self.copying: float | None = None
        """When it last said how far it is with what it copies from another region."""

    def has(self, name: str) -> bool:
        """Whether the attempt's folder held this object at the last look."""
        return name in self._names

    def look(self) -> None:
        """Bring everything up to now."""
        names = self._news() if self._long else self._below("")
        self._names = {name for name in names if "/" not in name}
        newest: dict[str, str] = {}
        for name in names:
            kind, _, rest = name.partition("/")
            if kind == "checkpoints" and rest.endswith(".json") and rest[:-5].isdecimal():
                self.newest_checkpoint = max(self.newest_checkpoint, int(rest[:-5]))
            elif rest and kind in KINDS:
                newest[f"{kind}/{rest.rpartition('-')[0]}"] = name  # names are sorted: the last of a host is its newest
        for writer, name in newest.items():
            if self._read.get(writer) != name:
                self._read[writer] = name
                self._take(name)
        self._long = self._long or len(names) > PAGE * (2 + len(self._read))  # requests of the one way and the other

    def _below(self, prefix: str, after: str = "") -> list[str]:
        stem = self._folder + "/"
        found = self._store.list(stem + prefix, stem + after if after else "")
        return [name.removeprefix(stem) for name in found]

    def _news(self) -> list[str]:
        """The records of the attempt, its checkpoints, and the segments since the last look."""
        names = [*self._store.children(self._folder)]
        names += [f"checkpoints/{name}" for name in self._store.children(f"{self._folder}/checkpoints")]
        for writer, newest in self._read.items():
            names += self._below(f"{writer}-", newest)
        return names

    def _take(self, name: str) -> None:
        kinds = WORK.get(name.partition("/")[0], ())
        for record in records(self._store, f"{self._folder}/{name}"):
            time = record.get("time")
            if not isinstance(time, int | float):
                continue
            self.last_sign = max(time, self.last_sign or time)
            if record.get("phase") == copied.PHASE:
                self.copying = max(time, self.copying or time)
            elif record.get("kind") in kinds:
                self.first_step = min(time, self.first_step or time)
