"""Named objects in a local folder or under `gs://`, with one set of promises for both.

An object is there whole or not at all, whatever kills the writer. `create` has exactly one winner. `replace` and a
conditional `delete` succeed only on the generation that was looked at; generation 0 means absent. Nothing is appended
to, and no folder is renamed: objects have no folders. Names are '/'-separated, relative, and cannot leave the store.

Locally an object is written aside in the folder it belongs to (`.aside-*`, never listed), fsynced, and then linked
(create) or renamed (replace) into place.
"""

import base64
import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

import google_crc32c

ASIDE = ".aside-"
# EFBIG is what a file size limit (ulimit -f) answers: for the user the same trouble as a full disk.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
PAGE = 1_000  # names in one answer of Google Cloud Storage to a listing
Names = list[str]  # inside the stores `list` is the method


class StorageError(Exception):
    """The store cannot do it; the message is one line with the path and the next move."""


class Refused(StorageError):
    """It will be answered like this until somebody grants a permission, or makes the bucket."""


class NotFound(StorageError):
    """No object has this name."""


class AlreadyExists(StorageError):
    """`create` lost: an object of this name is there."""


class StaleGeneration(StorageError):
    """The object changed since its generation was looked at: read it again and decide anew."""


@runtime_checkable
class Store(Protocol):
    """What a run directory stands on. Every method may raise `StorageError`, and `ValueError` for a bad name."""

    @property
    def url(self) -> str:
        """Where the store is, as `open_store` takes it."""

    def child(self, name: str) -> "Store":
        """The store whose names all begin with `name/` here."""

    def read(self, name: str) -> bytes:
        """The whole object; `NotFound` if there is none."""

    def exists(self, name: str) -> bool:
        """Whether an object has exactly this name; a folder is no object."""

    def generation(self, name: str) -> int:
        """A number that changes with the content; 0 if absent. Ask for it before `read`, so a race is refused."""

    def create(self, name: str, data: bytes) -> None:
        """Publish a new object; `AlreadyExists` for all but the first writer."""

    def replace(self, name: str, data: bytes, generation: int) -> None:
        """Publish over the given generation; `StaleGeneration` if another one is there by now."""

    def write(self, name: str, data: bytes) -> None:
        """Publish an immutable output whose name fixes its content: whoever comes last changes nothing.

        Without a generation, so what a lost request does late may be put over what came after it. Of objects that
        change it is for notes that are written again and again, where an older one is as good for a moment.
        """

    def delete(self, name: str, generation: int | None = None) -> None:
        """Remove the object, if given only at this generation; an absent one is no error without a generation."""

    def list(self, prefix: str = "", after: str = "") -> Names:
        """All names that begin with `prefix`, sorted, if given only those that sort after a name.

        The prefix may end in the middle of a part. A bucket is asked once per `PAGE` names.
        """

    def generations(self) -> dict[str, int]:
        """Every name, with a number that changes with the object: for showing, not for `replace` or `delete`."""

    def size(self) -> int:
        """Bytes of all objects. A bucket is asked once per `PAGE` names, so not often."""

    def children(self, folder: str = "") -> tuple[str, ...]:
        """The next part of every name below `folder`, sorted, once each: cheap however deep the store is."""

    def upload(self, path: Path, name: str) -> None:
        """Publish a local file of any size, streamed, as `write` does."""

    def download(self, name: str, path: Path) -> None:
        """Copy the object to a local file, streamed; the file is there whole or not at all."""

    def checksums(self, prefix: str = "") -> dict[str, Names]:
        """Size in bytes and CRC-32C in base64 of every object whose name begins with `prefix`.

        A bucket knows them, and is asked once per `PAGE` names; local files are read for it.
        """

    def copy(self, name: str, to: "Store") -> None:
        """Publish the object in another store under the same name, as `write` does.

        From bucket to bucket the bytes go from server to server, and never through this machine.
        """


def open_store(location: str | Path) -> Store:
    """The store at a local path or a `gs://bucket/prefix`; nothing is created before the first write."""
    store = _opened(str(location))
    if "SLOW_STORAGE" not in os.environ:
        return store
    from nanocode.storage.slow import slowed  # trouble that somebody has asked for

    return slowed(store, os.environ["SLOW_STORAGE"])


def _opened(text: str) -> Store:
    if text.startswith("gs://"):
        from nanocode.storage.gcs import GcsStore  # late: a laptop's run needs no cloud client

        return GcsStore(text)
    if "://" in text:
        raise ValueError(f"cannot store at {text!r}: give a local path or gs://bucket/prefix")
    return LocalStore(Path(text))


def checked(name: str) -> str:
    """The name itself, when it is one that stays inside the store; `ValueError` otherwise."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or part.startswith(ASIDE) for part in parts) or "\\" in name or "\0" in name:
        raise ValueError(f"bad object name {name!r}: give a relative one, parts separated by '/', without '..'")
    return name


def checked_prefix(prefix: str) -> str:
    """The same for the beginning of a name, which may be empty or end in '/'."""
    if prefix:
        checked(prefix.removesuffix("/"))
    return prefix


class LocalStore:
    """Objects as files below `root`. Needs hard links and flock, which every POSIX file system has."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def url(self) -> str:
        return str(self.root)

    def child(self, name: str) -> "LocalStore":
        return LocalStore(self._path(name))

    def read(self, name: str) -> bytes:
        path = self._path(name)
        with translated(path):
            return path.read_bytes()

    def exists(self, name: str) -> bool:
        return self._path(name).is_file()

    def generation(self, name: str) -> int:
        # Of the content, not of inode and mtime: those repeat when files are replaced within one clock tick.
        try:
            digest = hashlib.sha256(self.read(name)).digest()
        except NotFound:
            return 0
        return 1 + int.from_bytes(digest[:7])

    def create(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with aside(path, lambda file: file.write(data)) as temporary:
            self._link(temporary, path)

    def replace(self, name: str, data: bytes, generation: int) -> None:
        path = self._path(name)
        with aside(path, lambda file: file.write(data)) as temporary, self._locked(path):
            self._expect(name, generation)
            os.replace(temporary, path)

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with aside(path, lambda file: file.write(data)) as temporary:
            os.replace(temporary, path)

    def delete(self, name: str, generation: int | None = None) -> None:
        path = self._path(name)
        if not path.parent.is_dir():
            if generation:
                raise StaleGeneration(f"{path} is gone: read it again before deciding")
            return
        with translated(path), self._locked(path):
            if generation is not None:
                self._expect(name, generation)
            path.unlink(missing_ok=True)
            sync_folder(path.parent)

    def list(self, prefix: str = "", after: str = "") -> Names:
        folder = self.root / checked_prefix(prefix).rpartition("/")[0]
        names = []
        for parent, _, files in os.walk(folder):
            base = Path(parent).relative_to(self.root)
            names += [(base / file).as_posix() for file in files if not file.startswith(ASIDE)]
        return sorted(name for name in names if name.startswith(prefix) and name > after)

    def generations(self) -> dict[str, int]:
        found = {}
        for name in self.list():
            with suppress(FileNotFoundError):  # pruned meanwhile
                status = (self.root / name).stat()
                found[name] = hash((status.st_mtime_ns, status.st_ino, status.st_size))
        return found

    def size(self) -> int:
        total = 0
        for name in self.list():
            with suppress(OSError):  # deleted meanwhile
                total += self._path(name).stat().st_size
        return total

    def children(self, folder: str = "") -> tuple[str, ...]:
        path = self.root / checked_prefix(folder)
        try:
            with translated(path), os.scandir(path) as entries:
                return tuple(sorted(entry.name for entry in entries if not entry.name.startswith(ASIDE)))
        except NotFound:
            return ()

    def upload(self, path: Path, name: str) -> None:
        target = self._path(name)
        with translated(path), path.open("rb") as source:
            with aside(target, lambda file: shutil.copyfileobj(source, file, 1 << 20)) as temporary:
                os.replace(temporary, target)

    def download(self, name: str, path: Path) -> None:
        origin = self._path(name)
        with translated(origin), origin.open("rb") as source:
            with aside(path, lambda file: shutil.copyfileobj(source, file, 1 << 20)) as temporary:
                os.replace(temporary, path)

    def checksums(self, prefix: str = "") -> dict[str, Names]:
        found = {}
        for name in self.list(prefix):
            with suppress(NotFound):  # deleted meanwhile
                found[name] = self._checksum(name)
        return found

    def copy(self, name: str, to: Store) -> None:
        to.upload(self._path(name), name)

    def sweep(self, older_than_seconds: float = 86_400.0) -> int:
        """Remove what killed writers left aside, if older than any living writer's (a day); how many there were."""
        limit = time.time() - older_than_seconds
        old = []
        for path in self.root.rglob(f"{ASIDE}*"):
            with suppress(NotFound), translated(path):  # its writer may finish just now
                if path.stat().st_mtime < limit:
                    path.unlink()
                    old.append(path)
        return len(old)

    def _path(self, name: str) -> Path:
        return self.root / checked(name)

    def _checksum(self, name: str) -> Names:
        path = self._path(name)
        crc = google_crc32c.Checksum()
        with translated(path), path.open("rb") as file:
            while block := file.read(1 << 22):
                crc.update(block)
            return [str(file.tell()), base64.b64encode(crc.digest()).decode()]

    def _expect(self, name: str, generation: int) -> None:
        if self.generation(name) != generation:
            raise StaleGeneration(f"{self._path(name)} changed meanwhile: read it again before deciding")

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold the folder: compare and swap are two steps here. The kernel lets go when the holder dies."""
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _link(self, temporary: Path, path: Path) -> None:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise AlreadyExists(f"{path} is there already: read it, or choose another name") from None


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into a `StorageError` of one line with the next move."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise  # not from the operating system: what requests raises is an OSError too
        if error.errno in FULL:
            raise StorageError(f"no space left to write {path}: free some, or choose another run directory") from error
        if isinstance(error, FileNotFoundError):
            raise NotFound(f"{path} is not there: check the name") from error
        move = "check its permissions and that no file stands where a folder belongs"
        raise StorageError(f"cannot use {path} ({error.strerror or error}): {move}") from error


@contextmanager
def aside(path: Path, fill: Callable[[IO[bytes]], object]) -> Iterator[Path]:
    """A durable temporary file beside `path`, filled; the body links or renames it into place."""
    temporary = path.with_name(f"{ASIDE}{uuid.uuid4().hex}")
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in the folder survive a power cut, not only a kill."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
