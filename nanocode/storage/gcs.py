"""The `gs://` store: what `nanocode.storage.objects` promises, by generation match on Google Cloud Storage.

Every request has a timeout and the client library's own retry. A retry can turn our own success into "already
exists", so what is created or replaced carries its writer's token.
"""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from nanocode.storage.objects import (
    AlreadyExists,
    Names,
    NotFound,
    Refused,
    StaleGeneration,
    StorageError,
    Store,
    aside,
    checked,
    checked_prefix,
    translated,
)

if TYPE_CHECKING:
    from google.api_core.exceptions import GoogleAPICallError
    from google.cloud.storage import Blob, Bucket

# Seconds without a byte from GCS before a request counts as lost and the client's retry takes over.
TIMEOUT_SECONDS = 60.0
# With all that a run does to objects, and to nothing else.
ROLE = "roles/storage.objectUser"
# Metadata key of the writer's token.
WRITER = "nanocode-writer"


class GcsStore:
    """Objects in a bucket below a prefix. `STORAGE_EMULATOR_HOST` is honoured, then without credentials."""

    def __init__(self, url: str, bucket: "Bucket | None" = None) -> None:
        scheme, _, rest = url.partition("://")
        name, _, prefix = rest.strip("/").partition("/")
        if scheme != "gs" or not name:
            raise ValueError(f"{url!r} is no bucket: give gs://bucket or gs://bucket/prefix")
        self._prefix = f"{checked(prefix)}/" if prefix else ""
        self._name, self._opened = name, bucket

    @property
    def _bucket(self) -> "Bucket":
        if self._opened is None:
            self._opened = open_bucket(self._name)
        return self._opened

    def __reduce__(self) -> tuple[type["GcsStore"], tuple[str]]:
        return GcsStore, (self.url,)  # another process opens the bucket itself: clients cannot be sent

    @property
    def url(self) -> str:
        return f"gs://{self._name}/{self._prefix}".rstrip("/")

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
        with translated_gcs(self._where(name), in_bucket=True):
            # By the contract of `write` repeating the upload is harmless, which the client cannot know by itself.
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

    def list(self, prefix: str = "", after: str = "") -> Names:
        full = self._prefix + checked_prefix(prefix)
        with translated_gcs(f"{self.url}/{prefix}", in_bucket=True):
            blobs = self._bucket.list_blobs(
                prefix=full,
                start_offset=self._prefix + checked(after) if after else None,  # itself included
                fields="items(name),nextPageToken",
                timeout=TIMEOUT_SECONDS,
            )
            names = sorted(blob.name.removeprefix(self._prefix) for blob in blobs)
        return names[1:] if after and names[:1] == [after] else names

    def generations(self) -> dict[str, int]:
        with translated_gcs(self.url, in_bucket=True):
            fields = "items(name,generation),nextPageToken"
            blobs = self._bucket.list_blobs(prefix=self._prefix, fields=fields, timeout=TIMEOUT_SECONDS)
            return {blob.name.removeprefix(self._prefix): int(blob.generation) for blob in blobs}

    def size(self) -> int:
        with translated_gcs(self.url, in_bucket=True):
            fields = "items(size),nextPageToken"
            blobs = self._bucket.list_blobs(prefix=self._prefix, fields=fields, timeout=TIMEOUT_SECONDS)
            return sum(int(blob.size or 0) for blob in blobs)

    def children(self, folder: str = "") -> tuple[str, ...]:
        stem = checked_prefix(folder).removesuffix("/")
        full = f"{self._prefix}{stem}/" if stem else self._prefix
        with translated_gcs(f"{self.url}/{stem}", in_bucket=True):
            blobs = self._bucket.list_blobs(prefix=full, delimiter="/", timeout=TIMEOUT_SECONDS)
            names = {blob.name.removeprefix(full) for blob in blobs}  # `prefixes` is filled by going through the pages
            names |= {name.removeprefix(full).removesuffix("/") for name in blobs.prefixes}
        return tuple(sorted(names - {""}))

    def upload(self, path: Path, name: str) -> None:
        blob = self._blob(name)
        with translated(path), translated_gcs(self._where(name), in_bucket=True):
            blob.upload_from_filename(str(path), timeout=TIMEOUT_SECONDS, retry=gcs_retry())

    def download(self, name: str, path: Path) -> None:
        blob = self._blob(name)
        with translated_gcs(self._where(name)):
            with aside(path, lambda file: blob.download_to_file(file, timeout=TIMEOUT_SECONDS)) as temporary:
                os.replace(temporary, path)

    def checksums(self, prefix: str = "") -> dict[str, Names]:
        full = self._prefix + checked_prefix(prefix)
        with translated_gcs(f"{self.url}/{prefix}"):
            fields = "items(name,size,crc32c),nextPageToken"
            blobs = self._bucket.list_blobs(prefix=full, fields=fields, timeout=TIMEOUT_SECONDS)
            return {blob.name.removeprefix(self._prefix): [str(blob.size), str(blob.crc32c)] for blob in blobs}

    def copy(self, name: str, to: Store) -> None:
        if not isinstance(to, GcsStore):
            with TemporaryDirectory() as folder:
                path = Path(folder) / "object"
                self.download(name, path)
                to.upload(path, name)
            return
        source, target = self._blob(name), to._blob(name)
        with translated_gcs(f"{self._where(name)}, which is copied to {to.url},"):
            # A large object takes several calls between regions; each says how the next one goes on.
            token, _, _ = target.rewrite(source, timeout=TIMEOUT_SECONDS, retry=gcs_retry())
            while token is not None:
                token, _, _ = target.rewrite(source, token=token, timeout=TIMEOUT_SECONDS, retry=gcs_retry())

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
        with translated_gcs(self._where(name), in_bucket=True):
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
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud.storage import Client

    # For spans that nobody collects the client would ask about the bucket after each "not found", from a thread of its
    # own: a request more, and a permission (storage.buckets.get) that a run does not need.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    # Nor need gcsfs, which checkpoints and the compile cache are written through, know whether it has real folders.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            return Client.create_anonymous_client().bucket(name)
        return Client().bucket(name)
    except (DefaultCredentialsError, OSError) as error:  # OSError: no project set and none to be inferred
        move = "run `gcloud auth application-default login`, or use a local path"
        if "KUBERNETES_SERVICE_HOST" in os.environ:  # a pod has nobody who could log in
            move = "name a Google service account for this pod at serviceAccounts in the chart's values"
        raise Refused(f"gs://{name}: no Google Cloud credentials or project found: {move}") from error


def bucket_places(url: str) -> tuple[str, ...]:
    """Where a bucket keeps its objects: a region, the two of a dual-region, or `us`, `eu`, `asia`, in lower case.

    Empty where nobody says so: an emulator, a bucket that is not there, or credentials without `storage.buckets.get`,
    which a run does not need. `StorageError` without an answer, for then the bucket may be anywhere.
    """
    from google.api_core.exceptions import Forbidden
    from google.api_core.exceptions import NotFound as NoBucket

    scheme, _, rest = url.partition("://")
    if scheme != "gs" or os.environ.get("STORAGE_EMULATOR_HOST"):
        return ()
    bucket = open_bucket(rest.partition("/")[0])
    with translated_gcs(f"gs://{bucket.name}"):
        try:
            bucket.reload(timeout=TIMEOUT_SECONDS, retry=gcs_retry())
        except (Forbidden, NoBucket):
            return ()
    return tuple(place.lower() for place in bucket.data_locations or [bucket.location] if place)


def gcs_retry() -> object:
    """The client library's own retry policy: transient errors, exponential back-off, 120 s in all."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY


@contextmanager
def translated_gcs(where: str, *, in_bucket: bool = False) -> Iterator[None]:
    """The same for what the GCS client raises, except a failed precondition, whose meaning the caller knows.

    `in_bucket`: for writing and listing, where only the bucket itself can be what is not there.
    """
    from google.api_core import exceptions as api
    from google.auth.exceptions import GoogleAuthError, TransportError
    from requests.exceptions import RequestException

    try:
        yield
    except api.PreconditionFailed:
        raise
    except api.NotFound as error:
        if in_bucket:
            bucket = bucket_of(where)
            move = f"create it (`gcloud storage buckets create {bucket} --location=REGION`), or correct its name"
            raise Refused(f"cannot use {where}: bucket {bucket} does not exist: {move}") from error
        raise NotFound(f"{where} is not there: check bucket and name") from error
    except api.Forbidden as error:
        raise _forbidden(where, error) from error
    except (api.Unauthorized, GoogleAuthError) as error:
        # Without an answer from whoever gives out tokens nothing is said about the credentials.
        if isinstance(error, TransportError) or (isinstance(error, GoogleAuthError) and error.retryable):
            raise _unheard(where, error) from error
        move = "check the credentials, and that they may read and write objects in this bucket"
        raise StorageError(f"not allowed to use {where}: {move}") from error
    except (api.GoogleAPIError, RequestException) as error:
        raise _unheard(where, error) from error


def _forbidden(where: str, error: "GoogleAPICallError") -> StorageError:
    """By the error's words, as cloud.google.com/storage/docs/json_api/v1/status-codes has them."""
    said = f"{error.message} {error.errors}"
    if re.search(r"limitExceeded|quotaExceeded", said, re.IGNORECASE):
        return _unheard(where, error)  # it is refused for a while
    found = re.search(r"([\w.+-]+@[\w.-]+|\w+) does not have (storage\.\w+\.\w+) access", said)
    if found is None:
        reason = " ".join(error.message.split())[:200]
        move = "check the credentials, and that they may read and write objects in this bucket"
        return Refused(f"not allowed to use {where} ({reason}): {move}")
    account = found[1] if "@" in found[1] else ""
    kind = "user" if account and not account.endswith("gserviceaccount.com") else "serviceAccount"
    member, bucket = f"--member={kind}:{account or 'ACCOUNT'}", bucket_of(where)
    grant = f"gcloud storage buckets add-iam-policy-binding {bucket} {member} --role={ROLE}"
    return Refused(
        f"not allowed to use {where}: {account or 'its account'} lacks the permission {found[2]}: grant it (`{grant}`)"
    )


def bucket_of(url: str) -> str:
    """gs://NAME of what is in it."""
    return "/".join(url.split("/")[:3])


def _unheard(where: str, error: Exception) -> StorageError:
    reason = " ".join(str(error).split())[:200]
    return StorageError(f"cannot use {where} ({reason}): check the network and try again")
