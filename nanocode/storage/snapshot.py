"""A store as it was at one moment, for whoever looks at a run again and again.

One listing says what is there, and an object is read once as long as its generation stays. So a look costs one request
per 1,000 names and one per object that is new: in a bucket each takes a twentieth of a second.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from nanocode.storage.objects import NotFound, Store, checked_prefix

AT_ONCE = 8
"""Requests: the client library keeps ten connections."""


class Snapshot:
    """What `look` last found; to write is to write to the store itself, and is seen at the next look."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._there: dict[str, int] = {}
        self._names: list[str] = []
        self._read: dict[str, tuple[int, bytes]] = {}

    def look(self, wanted: Callable[[str], bool] = lambda name: False) -> None:
        """Let this be the moment; objects with a name that is wanted are read now, several at once."""
        self._there = self._store.generations()
        self._names = sorted(self._there)
        self._read = {name: known for name, known in self._read.items() if self._there.get(name) == known[0]}
        new = [name for name in self._names if name not in self._read and wanted(name)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._try, new))

    def read(self, name: str) -> bytes:
        if name not in self._there:
            raise NotFound(f"{self._store.url}/{name} is not there: check the name")
        if name not in self._read:
            # Never older than the listing; if it is newer, the next look reads it again.
            self._read[name] = (self._there[name], self._store.read(name))
        return self._read[name][1]

    def exists(self, name: str) -> bool:
        return name in self._there

    def generation(self, name: str) -> int:
        """Of this very moment; what was read before is dropped, for somebody may be about to replace or delete it."""
        self._read.pop(name, None)
        return self._store.generation(name)

    def list(self, prefix: str = "", after: str = "") -> list[str]:
        return [name for name in self._below(checked_prefix(prefix)) if name > after]

    def children(self, folder: str = "") -> tuple[str, ...]:
        stem = checked_prefix(folder).removesuffix("/")
        stem = f"{stem}/" if stem else ""
        return tuple(sorted({name.removeprefix(stem).partition("/")[0] for name in self._below(stem)}))

    def _below(self, prefix: str) -> Iterator[str]:
        for index in range(bisect_left(self._names, prefix), len(self._names)):
            if not self._names[index].startswith(prefix):
                return
            yield self._names[index]

    def _try(self, name: str) -> None:
        with suppress(NotFound):  # gone since the listing
            self.read(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
