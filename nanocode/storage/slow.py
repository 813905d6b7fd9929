"""A store that is slow on purpose, for `nanocode run --chaos slow-storage=...`: `SLOW_STORAGE=SECONDS,SEED`."""

import random
import time
from typing import Any, cast

from nanocode.storage.objects import Store


class Slow:
    """Every operation waits first, up to so many seconds."""

    def __init__(self, store: Store, seconds: float, seed: str) -> None:
        self._store, self._seconds, self._seed = store, seconds, seed
        self._dice = random.Random(seed)

    def child(self, name: str) -> Store:
        return slowed(self._store.child(name), f"{self._seconds},{self._seed}")

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def late(*arguments: Any, **named: Any) -> Any:
            time.sleep(self._dice.uniform(0, self._seconds))
            return found(*arguments, **named)

        return late


def slowed(store: Store, how: str) -> Store:
    """The store behind such a wait; `how` is what the variable says."""
    seconds, _, seed = how.partition(",")
    return cast(Store, Slow(store, float(seconds), seed))
