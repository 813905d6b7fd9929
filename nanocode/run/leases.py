"""A stage split over workers of which none has to be there: a share is worked at by whoever holds its lease.

    <share>-of-<n>.json     {"worker": 2, "process": "9f3c...", "sign": "07aa..."}: written anew while it is worked at

A worker begins with the share of its own number, and takes another one over once nobody has given a sign for it for
PATIENCE_SECONDS. One that comes after that may take its own share back, where doing a part twice costs nothing. Whoever
finds that every part is there finishes the stage, and one that finds all that is missing in the hands of others leaves:
so no worker waits for one that cannot be scheduled.

Leases are taken by generation match, so each has one holder. Signs are counted by the clock of whoever looks.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import structlog

from nanocode.storage.objects import NotFound, StaleGeneration, StorageError, Store

log = structlog.get_logger()

SECONDS_BETWEEN_SIGNS = 10.0
PATIENCE_SECONDS = 60.0
"""Six signs: longer than a bucket's bad moment. A pool with room for one worker loses it once a stage."""


@dataclass
class _Held:
    generation: int
    signed: float


@dataclass
class _Watched:
    generation: int
    since: float
    moved: bool = False
    """Somebody has given a sign while we looked."""


class Leases:
    """The leases of one worker. Without a store it is alone, and holds the only share there is."""

    def __init__(
        self,
        store: Store | None = None,
        worker: int = 0,
        of: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert store is not None or of == 1, f"{of} workers need a place for their leases"
        self._store, self._worker, self.of, self._clock = store, worker, of, clock
        self._process = uuid.uuid4().hex
        self._lock = threading.RLock()
        self._held: dict[int, _Held] = {}
        self.changes = 0
        """How often a share has become ours, or was lost."""
        self._watched: dict[int, _Watched] = {}
        self._looked = clock()
        self._over = threading.Event()
        self._signing = threading.Thread(target=self._sign_until_over, name="leases", daemon=True)

    def __enter__(self) -> Self:
        if self._store is not None and self.of > 1:
            for share in range(self.of):
                self._watched[share] = _Watched(self._generation(share), self._clock())
            if self._read(self._worker).get("worker", self._worker) == self._worker:  # a process of before us had it
                self._take(self._worker, self._watched[self._worker].generation)
            self._signing.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self._signing.is_alive():
            self._signing.join()

    # -- what is ours --------------------------------------------------------------------------------------------------

    @property
    def held(self) -> tuple[int, ...]:
        """Our shares, in order."""
        with self._lock:
            return tuple(sorted(self._held)) if self.of > 1 else (0,)

    def holds(self, share: int) -> bool:
        """Whether nobody else can have taken it over: for what must not be done twice."""
        with self._lock:
            one = self._held.get(share)
            surely = PATIENCE_SECONDS - 2 * SECONDS_BETWEEN_SIGNS
            return self.of == 1 or (one is not None and self._clock() - one.signed < surely)

    def sign(self) -> None:
        """Say of each share of ours that it is worked at; the thread does, while we are in the `with` block."""
        with self._lock:
            mine = {share: one.generation for share, one in self._held.items()}
        for share, generation in mine.items():
            try:
                if not self._take(share, generation):
                    log.warning("somebody has taken a share of ours over", share=share, worker=self._worker)
            except StorageError as error:
                log.warning("no sign can be given, the next one may", share=share, error=str(error))

    def take_back(self) -> None:
        """Our own share, of whoever took it over before we came.

        For work that may be done twice: for a moment both are at it, until the other's next sign.
        """
        while self._worker not in self.held:  # a sign of theirs may come between
            self._take(self._worker, self._generation(self._worker))

    def take_over(self, among: Collection[int]) -> int | None:
        """One of these shares that nobody has worked at for so long, now ours. Looks once in the time of a sign."""
        now = self._clock()
        if now - self._looked < SECONDS_BETWEEN_SIGNS:
            return None
        others = [share for share in among if share not in self.held]
        # Each begins after its own, so that two of us do not always want the same one.
        for share in sorted(others, key=lambda share: (share - self._worker) % self.of):
            seen, generation = self._watched[share], self._generation(share)
            if generation != seen.generation:
                # After a long time without a look, the sign may be an old one.
                self._watched[share] = _Watched(generation, now, moved=now - self._looked <= PATIENCE_SECONDS)
            elif now - seen.since > PATIENCE_SECONDS and self._take(share, generation):
                log.info("a share that nobody works at is taken over", share=share, of=self.of, worker=self._worker)
                return share
        self._looked = now
        return None

    def work_off(
        self, work: Callable[[int], None], missing: Callable[[], Collection[int]], wait: Callable[[], None]
    ) -> bool:
        """Work at every share of ours, and at those taken over, until nothing is missing.

        False when others are at work at all that is: the last of them finishes the stage. `missing` says which shares
        have parts that are not there; `wait` is called where somebody has to be waited for, and takes a moment.
        """
        begun: set[int] = set()
        while True:
            while new := [share for share in self.held if share not in begun]:
                begun.add(new[0])
                work(new[0])
            left = set(missing())
            if not left:
                return True
            if self.take_over(left) is None:
                if not left & set(self.held) and all(self._watched[share].moved for share in left):
                    log.info("others work at what is missing, and the last of them ends the stage", shares=sorted(left))
                    return False
                wait()
            begun -= left

    # -- the objects ---------------------------------------------------------------------------------------------------

    def _name(self, share: int) -> str:
        return f"{share}-of-{self.of}.json"

    def _read(self, share: int) -> dict[str, Any]:
        assert self._store is not None
        with suppress(NotFound, ValueError):
            found = json.loads(self._store.read(self._name(share)))
            return found if isinstance(found, dict) else {}
        return {}

    def _generation(self, share: int) -> int:
        assert self._store is not None
        return self._store.generation(self._name(share))

    def _take(self, share: int, generation: int) -> bool:
        """Put our sign over this generation; whether the share is ours from then on."""
        assert self._store is not None
        while True:
            sign, signed = uuid.uuid4().hex, self._clock()
            lease = {"worker": self._worker, "process": self._process, "sign": sign}
            with suppress(StaleGeneration):
                self._store.replace(self._name(share), json.dumps(lease).encode(), generation)
            # Before reading, and read even where our sign was accepted: we may have stood still since.
            generation = self._generation(share)
            there = self._read(share)
            if there.get("sign") == sign:
                with self._lock:
                    self.changes += share not in self._held
                    self._held[share] = _Held(generation, signed)
                return True
            if there.get("process") != self._process:
                with self._lock:
                    self.changes += self._held.pop(share, None) is not None
                self._watched[share] = _Watched(generation, self._clock(), moved=True)
                return False
            # The reply to an earlier sign of ours was lost. Others count from that one, so it is signed anew.

    def _sign_until_over(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_SIGNS):
            self.sign()
