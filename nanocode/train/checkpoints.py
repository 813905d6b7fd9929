"""Checkpoints of one stage: Orbax writes them in the background, a marker says that one is whole.

    <stage>/attempts/<n>/checkpoints/<step>/         what Orbax wrote
    <stage>/attempts/<n>/checkpoints/<step>.json     published last: input digest, position of the batches, size and
                                                     CRC-32C of every file, and, where a machine of another region
                                                     saved them, the store that they are `at`

Only a marked checkpoint with the wanted digest counts. Restoring tries the newest of any attempt, checks it against
its marker, and falls back to the one before, loudly, when it is damaged. An attempt that a later one has overtaken
marks nothing more: what it writes can be removed under its hands.
"""

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import structlog
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from nanocode.run.directory import RunDirectory
from nanocode.storage.objects import NotFound, StorageError, Store
from nanocode.train.nearby import Nearby
from nanocode.train.preemption import Preempted
from nanocode.train.restored import location, restored

log = structlog.get_logger()


@dataclass(frozen=True)
class Found:
    """A marked checkpoint."""

    attempt: int
    step: int
    marker: dict[str, Any]
    name: str
    """Of the folder, in the run's store and in every other."""
    at: str
    """The store that has its files."""


class Checkpoints:
    """Saves into one attempt; restores from all. With several hosts, every host makes the same calls."""

    def __init__(
        self, run: RunDirectory, stage: str, attempt: int, digest: str, keep: int = 3, nearby: Nearby | None = None
    ) -> None:
        """`nearby`: where this machine saves; None: in the run directory."""
        self._near = nearby if nearby is not None else Nearby(run, stage, attempt)
        self._run, self._stage, self._digest, self._keep = run, stage, digest, keep
        self._attempt = attempt
        self._damaged: set[str] = set()
        """Names of what could not be restored: kept for nobody."""
        self.save_seconds: float | None = None
        """How long the last save took until it was whole and marked."""
        self._saver = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._publisher = ThreadPoolExecutor(1, "checkpoint")
        self._publishing: Future[None] | None = None

    def save(self, step: int, state: PyTree, position: dict[str, Any]) -> float:
        """Begin a save and return the seconds that the loop was held up; the state may be donated afterwards.

        A save that is still under way is waited for, and its failure raised here.
        """
        held = time.monotonic()
        self.wait()
        began = time.monotonic()
        name = self._name(self._attempt, step)
        marker = {"step": step, "input_digest": self._digest, "position": position}
        with _one_line(name):
            self._saver.save(epath.Path(location(self._near.store, name)), args=ocp.args.PyTreeSave(state), force=True)
        self._publishing = self._publisher.submit(self._publish, name, marker, began)
        return time.monotonic() - held

    def wait(self) -> None:
        """Until the last save is whole and marked; its failure is raised here."""
        publishing, self._publishing = self._publishing, None
        if publishing is not None:
            publishing.result()

    def close(self) -> None:
        self.wait()
        self._publisher.shutdown()
        self._saver.close()

    def found(self) -> list[Found]:
        """The marked checkpoints with this digest, newest step first."""
        return sorted(self._marked(), key=lambda one: (-one.step, -one.attempt))

    def restore(self, like: PyTree) -> tuple[PyTree, Found] | None:
        """The newest whole checkpoint, laid out as `like` (arrays or `ShapeDtypeStruct` with shardings); None if none.

        `ConfigurationError` when one is whole but of another shape.
        """
        found = self._agreed(self._newest_whole())
        if found is None:
            return None
        self._bring(found, self._near.store)
        return restored(self._near.store, found.name, like), found

    def brought_home(self) -> str:
        """Name of the newest one, once its files are in the run directory, as all is that a stage's marker names.

        The hosts wait for each other. `StorageError` when it cannot be had, and so has to be made again.
        """
        found = self._agreed(next(iter(self.found()), None))
        assert found is not None, f"{self._stage} has ended without a checkpoint"
        if "at" in found.marker:
            place, trouble = self._whole(found)
            if place is None:
                raise StorageError(f"checkpoint {found.name} is damaged ({trouble}): the same command makes it again")
            self._bring(replace(found, at=place), self._run.store)
        return found.name

    def remove_half_written(self) -> None:
        """Remove what earlier attempts began to save and never marked; host 0 does it for all.

        One of them may live still and write into what is removed: `_publish` sees that it was overtaken.
        """
        earlier = [claim.attempt for claim in self._run.attempts(self._stage) if claim.attempt < self._attempt]
        for attempt in earlier if jax.process_index() == 0 else ():
            folder = f"{self._stage}/attempts/{attempt}/checkpoints"
            begun: list[tuple[Store, str]] = []
            for store in self._near.stores():
                if store.url != self._run.store.url:
                    with self._near.tolerating(store):
                        begun += [(store, child) for child in store.children(folder)]
            # The markers are looked at last: one that is published meanwhile saves its files.
            there = self._run.store.children(folder)
            begun += [(self._run.store, child) for child in there]
            for store, child in begun:
                if not child.endswith(".json") and f"{child}.json" not in there:
                    with self._near.tolerating(store):
                        _remove(store, f"{folder}/{child}")

    def _newest_whole(self) -> Found | None:
        for found in self.found():
            place, trouble = self._whole(found)
            if place is not None:
                return replace(found, at=place)
            self._damaged.add(found.name)
            log.warning("checkpoint is damaged, falling back to the one before", name=found.name, trouble=trouble)
        return None

    def _agreed(self, found: Found | None) -> Found | None:
        """What host 0 found: hosts that look at different moments must not resume from different steps."""
        if jax.process_count() == 1:
            return found
        own = (found.attempt, found.step) if found else (0, 0)
        attempt, step = multihost_utils.broadcast_one_to_all(np.array(own, np.int64)).tolist()
        if (attempt, step) == own:
            return found
        return next(one for one in self.found() if (one.attempt, one.step) == (attempt, step))

    def _bring(self, found: Found, to: Store) -> None:
        """Have its files in a store; once they are in the run directory, its marker says so."""
        files = {f"{found.name}/{file}": sums for file, sums in found.marker["files"].items()}
        self._near.bring(files, self._near.store_at(found.at), to)
        if "at" in found.marker and to.url == self._run.store.url and jax.process_index() == 0:
            marker = {key: value for key, value in found.marker.items() if key != "at"}
            to.write(found.name + ".json", json.dumps(marker).encode())

    def _publish(self, name: str, marker: dict[str, Any], began: float) -> None:
        """In a thread of its own: once every host's part is on storage, mark the checkpoint, then prune.

        Raises `Preempted` instead when a later attempt is there.
        """
        with _one_line(name):
            self._saver.wait_until_finished()
        self.save_seconds = time.monotonic() - began
        if jax.process_index() != 0:
            return
        store = self._near.store
        files = {file.removeprefix(name + "/"): sums for file, sums in store.checksums(name + "/").items()}
        assert files, f"Orbax left nothing at {name}"
        at = {} if self._near.is_home else {"at": store.url}
        # After the checksums: a later attempt removes files only once it is claimed, so these were whole until now.
        newest = max((claim.attempt for claim in self._run.attempts(self._stage)), default=self._attempt)
        if newest > self._attempt:
            raise Preempted(f"attempt {newest} of {self._stage} has overtaken attempt {self._attempt}, which leaves")
        self._run.store.write(name + ".json", json.dumps({**marker, "files": files, **at}).encode())
        self._prune(name)

    def _prune(self, published: str) -> None:
        """Keep the newest that are not known to be damaged, and whatever its step the one just published."""
        found = self.found()
        kept = {published, *[one.name for one in found if one.name not in self._damaged][: self._keep]}
        for old in found:
            if old.name not in kept:
                self._run.store.delete(old.name + ".json")  # the marker first: half a checkpoint never counts
                for store in self._near.stores(old.at):
                    with self._near.tolerating(store):
                        _remove(store, old.name)

    def _marked(self) -> Iterator[Found]:
        store = self._run.store
        for claim in self._run.attempts(self._stage):
            if claim.input_digest != self._digest:
                continue
            folder = f"{self._stage}/attempts/{claim.attempt}/checkpoints"
            for child in store.children(folder):
                if child.endswith(".json"):
                    try:
                        marker = json.loads(store.read(f"{folder}/{child}"))
                        step = int(marker["step"])
                    except (ValueError, KeyError, TypeError, StorageError) as error:
                        log.warning("checkpoint marker is damaged", name=f"{folder}/{child}", trouble=str(error))
                        continue
                    yield Found(claim.attempt, step, marker, f"{folder}/{step}", marker.get("at", store.url))

    def _whole(self, found: Found) -> tuple[str | None, str]:
        """The store in which its files agree with its marker, that one or any other; None, and what does not.

        `StorageError` where the bucket that should have them gives no answer: that says nothing about them.
        """
        troubles = []
        for store in self._near.stores(found.at):
            try:
                trouble = _damage(found, store)
            except StorageError as error:
                if store.url == found.at and store.url.startswith("gs://") and not isinstance(error, NotFound):
                    raise
                trouble = str(error)
            if trouble is None:
                return store.url, ""
            troubles.append(trouble)
        return None, troubles[0]

    def _name(self, attempt: int, step: int) -> str:
        return f"{self._stage}/attempts/{attempt}/checkpoints/{step}"


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """A full disk, which Orbax reports as `OSError` and tensorstore as a long `ValueError`, as `StorageError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        if "No space left" in str(error) or "Disk quota" in str(error):
            raise StorageError(
                f"no space left to write checkpoint {name}: free some, then the same command goes on"
            ) from error
        raise


def _damage(found: Found, store: Store) -> str | None:
    """What does not agree with the marker; None when all does."""
    files = found.marker.get("files")
    if not isinstance(files, dict) or not files:
        return "its marker lists no files"
    there = store.checksums(found.name + "/")
    for file, wanted in files.items():
        have = there.get(f"{found.name}/{file}")
        if have is None:
            return f"{store.url}/{found.name}/{file} is not there"
        if have != wanted:
            return f"{file} has size and CRC-32C {have}, its marker says {wanted}"
    return None


def _remove(store: Store, name: str) -> None:
    if store.url.startswith("gs://"):
        for file in store.list(name + "/"):
            store.delete(file)
    else:
        shutil.rmtree(Path(store.url) / name, ignore_errors=True)
