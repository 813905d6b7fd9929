"""Named objects in a local folder or under `gs://`, with one set of promises for both.

An object is there whole or not at all, whatever kills the writer. `create` has exactly one winner. `replace` and a
conditional `delete` succeed only on the generation that was looked at; generation 0 means absent. Nothing is appended
to, and no folder is renamed: objects have no folders. Names are '/'-separated, relative, and cannot leave the store.

Locally an object is written aside in the folder it belongs to (`.aside-*`, never listed), fsynced, and then linked
(create) or renamed (replace) into place.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Bucket

ASIDE = ".aside-"
# EFBIG is what a file size limit (ulimit -f) answers: for the user the same trouble as a full disk.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Seconds without a byte from GCS before a request counts as lost and the client's retry takes over.
TIMEOUT_SECONDS = 60.0
# Metadata key by which a writer recognises its own object after a lost reply was retried into "already exists".
WRITER = "nanocode-writer"
Names = list[str]  # inside the stores `list` is the method


class StorageError(Exception):
    """The store cannot do it; the message is one line with the path and the next move."""


class NotFound(StorageError):
    """No object has this name."""


class AlreadyExists(StorageError):
    """`create` lost: an object of this name is there."""


class StaleGeneration(StorageError):
    """The object changed since its generation was looked at: read it again and decide anew."""


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
        """Publish an immutable output whose name fixes its content: whoever comes last changes nothing."""

    def delete(self, name: str, generation: int | None = None) -> None:
        """Remove the object, if given only at this generation; an absent one is no error without a generation."""

    def list(self, prefix: str = "") -> Names:
        """All names that begin with `prefix`, sorted; the prefix may end in the middle of a part."""

    def children(self, folder: str = "") -> tuple[str, ...]:
        """The next part of every name below `folder`, sorted, once each: cheap however deep the store is."""

    def upload(self, path: Path, name: str) -> None:
        """Publish a local file of any size, streamed, as `write` does."""

    def download(self, name: str, path: Path) -> None:
        """Copy the object to a local file, streamed; the file is there whole or not at all."""


def open_store(location: str | Path) -> Store:
    """The store at a local path or a `gs://bucket/prefix`; nothing is created before the first write."""
    text = str(location)
    if text.startswith("gs://"):
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

    def list(self, prefix: str = "") -> Names:
        folder = self.root / checked_prefix(prefix).rpartition("/")[0]
        names = []
        for parent, _, files in os.walk(folder):
            base = Path(parent).relative_to(self.root)
            names += [(base / file).as_posix() for file in files if not file.startswith(ASIDE)]
        return sorted(name for name in names if name.startswith(prefix))

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

    def _path(self, name: str) -> Path:
        return self.root / checked(name)

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


class GcsStore:
    """Objects in a bucket below a prefix. `STORAGE_EMULATOR_HOST` is honoured, then without credentials."""

    def __init__(self, url: str, bucket: "Bucket | None" = None) -> None:
        scheme, _, rest = url.partition("://")
        name, _, prefix = rest.strip("/").partition("/")
        if scheme != "gs" or not name:
            raise ValueError(f"{url!r} is no bucket: give gs://bucket or gs://bucket/prefix")
        self._prefix = f"{checked(prefix)}/" if prefix else ""
        self._bucket = bucket if bucket is not None else open_bucket(name)

    @property
    def url(self) -> str:
        return f"gs://{self._bucket.name}/{self._prefix}".rstrip("/")

    def child(self, name: str) -> "GcsStore":
        return GcsStore(f"{self.url}/{checked(name)}", self._bucket)

    def read(self, name: str) -> bytes:
        blob = self._blob(name)
        with translated_gcs(self._where(name)):
            data: bytes = blob.download_as_bytes(timeout=TIMEOUT_SECONDS)
            return data

    def exists(self, name: str) -> bool:
        blob = self._blob(name)
        with translated_gcs(self._where(name)):
            return bool(blob.exists(timeout=TIMEOUT_SECONDS))

    def generation(self, name: str) -> int:
        where = self._where(name)
        with translated_gcs(where):
            blob = self._bucket.get_blob(self._prefix + name, timeout=TIMEOUT_SECONDS)
            return int(blob.generation) if blob is not None else 0

    def create(self, name: str, data: bytes) -> None:
        if not self._swap(name, data, 0):
            raise AlreadyExists(f"{self._where(name)} is there already: read it, or choose another name")

    def replace(self, name: str, data: bytes, generation: int) -> None:
        if not self._swap(name, data, generation):
            raise StaleGeneration(f"{self._where(name)} changed meanwhile: read it again before deciding")

    def write(self, name: str, data: bytes) -> None:
        blob = self._blob(name)
        with translated_gcs(self._where(name), writing=True):
            # Named by content, so repeating the upload is harmless, which the client cannot know by itself.
            blob.upload_from_string(data, "application/octet-stream", timeout=TIMEOUT_SECONDS, retry=gcs_retry())

    def delete(self, name: str, generation: int | None = None) -> None:
        from google.api_core.exceptions import PreconditionFailed

        blob = self._blob(name)
        try:
            with translated_gcs(self._where(name)):
                blob.delete(if_generation_match=generation, timeout=TIMEOUT_SECONDS, retry=gcs_retry())
        except NotFound:
            if generation:
                raise StaleGeneration(f"{self._where(name)} is gone: read it again before deciding") from None
        except PreconditionFailed:
            raise StaleGeneration(f"{self._where(name)} changed meanwhile: read it again before deciding") from None

    def list(self, prefix: str = "") -> Names:
        full = self._prefix + checked_prefix(prefix)
        with translated_gcs(f"{self.url}/{prefix}"):
            blobs = self._bucket.list_blobs(prefix=full, fields="items(name),nextPageToken", timeout=TIMEOUT_SECONDS)
            return sorted(blob.name.removeprefix(self._prefix) for blob in blobs)

    def children(self, folder: str = "") -> tuple[str, ...]:
        stem = checked_prefix(folder).removesuffix("/")
        full = f"{self._prefix}{stem}/" if stem else self._prefix
        with translated_gcs(f"{self.url}/{stem}"):
            blobs = self._bucket.list_blobs(prefix=full, delimiter="/", timeout=TIMEOUT_SECONDS)
            names = {blob.name.removeprefix(full) for blob in blobs}  # `prefixes` is filled by going through the pages
            names |= {name.removeprefix(full).removesuffix("/") for name in blobs.prefixes}
        return tuple(sorted(names - {""}))

    def upload(self, path: Path, name: str) -> None:
        blob = self._blob(name)
        with translated(path), translated_gcs(self._where(name), writing=True):
            blob.upload_from_filename(str(path), timeout=TIMEOUT_SECONDS, retry=gcs_retry())

    def download(self, name: str, path: Path) -> None:
        blob = self._blob(name)
        with translated_gcs(self._where(name)):
            with aside(path, lambda file: blob.download_to_file(file, timeout=TIMEOUT_SECONDS)) as temporary:
                os.replace(temporary, path)

    def _blob(self, name: str) -> "Blob":
        return self._bucket.blob(self._prefix + checked(name))

    def _where(self, name: str) -> str:
        return f"{self.url}/{checked(name)}"

    def _swap(self, name: str, data: bytes, generation: int) -> bool:
        """Upload if the generation still is this one; whether it is our data that is there now."""
        from google.api_core.exceptions import PreconditionFailed

        token = uuid.uuid4().hex
        blob = self._blob(name)
        blob.metadata = {WRITER: token}
        with translated_gcs(self._where(name), writing=True):
            try:
                blob.upload_from_string(
                    data,
                    "application/octet-stream",
                    if_generation_match=generation,
                    timeout=TIMEOUT_SECONDS,
                    retry=gcs_retry(),
                )
                return True
            except PreconditionFailed:
                # The reply to our first try may have been lost: then it is our own object that stands in the way.
                there = self._bucket.get_blob(self._prefix + name, timeout=TIMEOUT_SECONDS)
                return there is not None and (there.metadata or {}).get(WRITER) == token


def open_bucket(name: str) -> "Bucket":
    """A handle on the bucket; asks nothing of the network yet."""
    from google.auth.credentials import AnonymousCredentials
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud.storage import Client

    try:
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            return Client(project="emulator", credentials=AnonymousCredentials()).bucket(name)
        return Client().bucket(name)
    except (DefaultCredentialsError, OSError) as error:  # OSError: no project set and none to be inferred
        move = "run `gcloud auth application-default login`, or use a local path"
        raise StorageError(f"gs://{name}: no Google Cloud credentials or project found: {move}") from error


def gcs_retry() -> object:
    """The client library's own retry policy: transient errors, exponential back-off, 120 s in all."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY


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
def translated_gcs(where: str, *, writing: bool = False) -> Iterator[None]:
    """The same for what the GCS client raises, except a failed precondition, whose meaning the caller knows."""
    from google.api_core import exceptions as api
    from google.auth.exceptions import GoogleAuthError
    from requests.exceptions import RequestException

    try:
        yield
    except api.PreconditionFailed:
        raise
    except api.NotFound as error:
        if writing:
            raise StorageError(f"cannot write {where}: the bucket does not exist: create it first") from error
        raise NotFound(f"{where} is not there: check bucket and name") from error
    except (api.Forbidden, api.Unauthorized, GoogleAuthError) as error:
        move = "check the credentials, and that they may read and write objects in this bucket"
        raise StorageError(f"not allowed to use {where}: {move}") from error
    except (api.GoogleAPIError, RequestException) as error:
        reason = " ".join(str(error).split())[:200]
        raise StorageError(f"cannot use {where} ({reason}): check the network and try again") from error


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
