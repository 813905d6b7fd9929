"""What a machine in another region reads, brought into the bucket of its own region object by object, and counted.

`nanocode.run.near` says where that is; a machine that is near the run directory brings nothing. Only what is not there
with the same size and CRC-32C is copied: whoever goes on after a kill, or comes a second time, copies the rest, or
nothing. Of several hosts the first one copies; the others wait until all is there, or nothing more comes.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import structlog

from nanocode.run import copied
from nanocode.run.attempts import superseded
from nanocode.run.directory import RunDirectory
from nanocode.storage.objects import StorageError, Store, open_store
from nanocode.train.preemption import Preempted

log = structlog.get_logger()

Checksums = Mapping[str, list[str]]
"""Name of an object -> its size and CRC-32C."""
GROUP_BYTES = 2**30
"""Counted at a time, before they are copied: the most that a bill is too high by where a machine is taken away."""
AT_ONCE = 8
"""Objects: the client library keeps ten connections."""
SECONDS_BETWEEN_LOOKS = 5.0
PATIENCE_SECONDS = 900.0
"""For which another host may bring nothing before it is given up: an object takes seconds, a first host's start a
minute."""


class Nearby:
    """Where an attempt reads and saves what is bulky."""

    def __init__(
        self,
        run: RunDirectory,
        stage: str,
        attempt: int,
        near: Store | None = None,
        others: Sequence[Store] = (),
        first: bool = True,
        show: Callable[[int, int], object] = lambda done, total: None,
    ) -> None:
        """`near`: the folder in this machine's region; None at home. `others`: where else copies may be.

        `first`: whether this host copies. `show`: is told of bytes that are done, and of all.
        """
        self.home, self.store = run.store, near if near is not None else run.store
        self.first, self._others = first, others
        self._known = {store.url: store for store in (*others, self.store, self.home)}
        self._run, self._stage, self._attempt, self._show = run, stage, attempt, show

    @property
    def is_home(self) -> bool:
        return self.store.url == self.home.url

    def store_at(self, url: str) -> Store:
        """The store at this address."""
        if url not in self._known:
            self._known[url] = open_store(url)
        return self._known[url]

    def stores(self, *more: str) -> list[Store]:
        """Wherever something of the run may be, each once; first what is at `more`, then near here, then at home."""
        known = (*map(self.store_at, more), self.store, self.home, *self._others)
        return list({store.url: store for store in known}.values())

    @contextmanager
    def tolerating(self, store: Store) -> Iterator[None]:
        """What cannot be cleared away in a bucket that this machine does not use stays there, and costs its keeping."""
        try:
            yield
        except StorageError as error:
            if store.url in (self.home.url, self.store.url):
                raise
            log.warning("what is left in another region cannot be cleared away", trouble=str(error))

    def brought(self, folder: str, *beginnings: str) -> Store:
        """The store that has this folder of the run directory near here, or those of it whose names begin so."""
        if not self.is_home:
            there = self.home.checksums(f"{folder}/")
            wanted = tuple(f"{folder}/{beginning}" for beginning in beginnings or ("",))
            self.bring({name: sums for name, sums in there.items() if name.startswith(wanted)}, self.home, self.store)
        return self.store

    def bring(self, wanted: Checksums, origin: Store, to: Store) -> None:
        """Have `to` hold these objects as `origin` has them; `StorageError` where they do not arrive so."""
        if origin.url == to.url or not wanted:
            return
        if not self.first:
            self._wait(wanted, to)
            return
        missing = _missing(wanted, to)
        sizes = {name: int(wanted[name][0]) for name in missing}
        total, done = sum(sizes.values()), 0
        if missing:
            log.info("copying to another region", objects=len(missing), bytes=total, origin=origin.url, to=to.url)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for group in _groups(sizes):
                self._leave_if_superseded()
                self._show(done, total)
                copied.count(self._run, sum(sizes[name] for name in group), self._stage, self._attempt)
                list(threads.map(lambda name: origin.copy(name, to), group))
                done += sum(sizes[name] for name in group)
        if missing and (wrong := _missing(wanted, to)):
            raise StorageError(f"{to.url}/{wrong[0]} is not what {origin.url} has after it was copied: begin again")
        if missing:
            self._show(total, total)

    def _wait(self, wanted: Checksums, to: Store) -> None:
        missing, waited = _missing(wanted, to), 0.0
        while missing:
            self._leave_if_superseded()
            if waited >= PATIENCE_SECONDS:
                raise StorageError(
                    f"the first host has brought nothing to {to.url} for {waited:.0f} s, and {missing[0]} is not "
                    "there: its log says why"
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)
            left = _missing(wanted, to)
            waited = waited + SECONDS_BETWEEN_LOOKS if len(left) == len(missing) else 0.0
            missing = left

    def _leave_if_superseded(self) -> None:
        """`Preempted` where a later attempt brings what it needs itself: nobody pays for both to the end."""
        if reason := superseded(self._run, self._stage, self._attempt):
            raise Preempted(reason)


def _missing(wanted: Checksums, store: Store) -> list[str]:
    """Names of what is not there as it should be, sorted."""
    folder = os.path.commonpath([name.rpartition("/")[0] for name in wanted])
    there = store.checksums(f"{folder}/" if folder else "")
    return sorted(name for name, sums in wanted.items() if there.get(name) != sums)


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """The names in order, as many at a time as have at most `GROUP_BYTES` together, and one at least."""
    group: list[str] = []
    held = 0
    for name, size in sizes.items():
        if group and held + size > GROUP_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group
