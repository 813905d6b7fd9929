"""A store that reads an object which can never change only once: for whoever looks at a run again and again."""

from typing import Any, cast

from nanocode.storage.objects import Store

NEVER_CHANGE = (".jsonl", "/claim.json", "/STOP.json", "/EXIT.json", "/END.json")


class _Remembered:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, bytes] = {}

    def read(self, name: str) -> bytes:
        if name in self._known:
            return self._known[name]
        data = self._store.read(name)
        if name.endswith(NEVER_CHANGE):
            self._known[name] = data
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def remembered(store: Store) -> Store:
    """The same store; segments and the records of attempts are kept in memory once they were read."""
    return cast(Store, _Remembered(store))
