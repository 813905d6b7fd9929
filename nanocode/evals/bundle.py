"""A CORE bundle: `core.yaml`, `eval_meta_data.csv` and `eval_data/*.jsonl`, from a folder, a zip, a bucket or a URL.

The format is DCLM's (Li et al. 2024, arXiv 2406.11794), as nanochat's users download it. An archive comes from
elsewhere: no name in it may leave its folder, and what it may unpack to is bounded.
"""

import csv
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import yaml

from nanocode.run.exits import ConfigurationError
from nanocode.storage.objects import StorageError

LARGEST_BUNDLE_BYTES = 2 << 30
DOWNLOAD_SECONDS = 60.0
"""So long may a server say nothing; a slow one that goes on sending is waited for."""
Kind = Literal["multiple_choice", "schema", "language_modeling"]
REQUIRED: dict[Kind, tuple[str, ...]] = {
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
}


@dataclass(frozen=True)
class CoreTask:
    """One in-context task and its items."""

    label: str
    kind: Kind
    fewshot: int
    delimiter: str
    baseline: float
    """Accuracy of guessing, in percent."""
    items: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Bundle:
    tasks: tuple[CoreTask, ...]


def read_bundle(location: str, cache: Path | None = None) -> Bundle:
    """The bundle at a folder, a `.zip`, `gs://...` or a URL; fetched ones are kept in `cache`.

    `ConfigurationError` names what is wrong with it, `StorageError` what could not be fetched.
    """
    folder = Path(location)
    if "://" in location or location.endswith(".zip"):
        folder = _unpacked(location, cache or Path.home() / ".cache" / "nanocode" / "bundles")
    found = [path.parent for path in (folder / "core.yaml", *folder.glob("*/core.yaml")) if path.is_file()]
    if not found:
        raise ConfigurationError(f"no core.yaml in {folder}: give base_eval.core_bundle a CORE bundle")
    return _read(found[0])


def _read(folder: Path) -> Bundle:
    try:
        declared = yaml.safe_load((folder / "core.yaml").read_text())["icl_tasks"]
        with (folder / "eval_meta_data.csv").open(newline="") as file:
            baselines = {row["Eval Task"]: float(row["Random baseline"]) for row in csv.DictReader(file)}
        return Bundle(tuple(_task(folder, one, baselines) for one in declared))
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        if isinstance(error, ConfigurationError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(f"CORE bundle {folder} is damaged ({reason}): fetch it again") from error


def _task(folder: Path, declared: dict[str, Any], baselines: dict[str, float]) -> CoreTask:
    label, kind = declared["label"], declared["icl_task_type"]
    if kind not in get_args(Kind):
        raise ConfigurationError(f"{folder}/core.yaml: task {label} is of unknown type {kind!r}: {', '.join(REQUIRED)}")
    path = folder / "eval_data" / PurePosixPath(declared["dataset_uri"])
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigurationError(f"{folder}/core.yaml: task {label} reads {path}, outside of the bundle: correct it")
    items = []
    with path.open() as file:
        for number, line in enumerate(file, 1):
            try:
                item = json.loads(line)
                if missing := [key for key in REQUIRED[kind] if key not in item]:
                    raise ValueError(f"no {missing[0]!r}")
            except (ValueError, TypeError) as error:
                raise ConfigurationError(f"{path}, line {number} is no {kind} item ({error}): mend the line") from error
            items.append(item)
    fewshot = int(declared["num_fewshot"][0])
    if len(items) <= fewshot:
        raise ConfigurationError(f"{path} has {len(items)} items, too few for {fewshot} examples: add some")
    return CoreTask(label, kind, fewshot, declared.get("continuation_delimiter", " "), baselines[label], tuple(items))


def _unpacked(location: str, cache: Path) -> Path:
    """The folder that holds the unpacked archive; published by one rename, so it is whole or not there."""
    folder = cache / hashlib.sha256(location.encode()).hexdigest()[:16]
    if "://" not in location:
        stat = Path(location).stat() if Path(location).exists() else None
        if stat is None:
            raise ConfigurationError(f"{location} is not there: correct base_eval.core_bundle")
        folder = cache / hashlib.sha256(f"{location} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        target = Path(scratch) / "bundle"
        if location.startswith("gs://") and not location.endswith(".zip"):
            _copy_folder(location, target)
        else:
            archive = Path(scratch) / "bundle.zip"
            _fetch(location, archive)
            unpack(archive, target)
        if not folder.exists():
            os.rename(target, folder)
    return folder


def _fetch(location: str, path: Path) -> None:
    import aiohttp
    import fsspec

    quiet = aiohttp.ClientTimeout(total=None, sock_connect=DOWNLOAD_SECONDS, sock_read=DOWNLOAD_SECONDS)
    options = {"client_kwargs": {"timeout": quiet}} if location.startswith(("http://", "https://")) else {}
    try:
        with fsspec.open(location, "rb", **options) as source, path.open("wb") as file:
            size = 0
            while block := source.read(1 << 20):
                size += len(block)
                if size > LARGEST_BUNDLE_BYTES:
                    raise ConfigurationError(
                        f"{location} is larger than {LARGEST_BUNDLE_BYTES} bytes: not a CORE bundle"
                    )
                file.write(block)
    except ConfigurationError:
        raise
    except Exception as error:  # fsspec raises what its clients raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise StorageError(f"cannot fetch {location} ({reason}): check network and address") from error


def _copy_folder(location: str, target: Path) -> None:
    from nanocode.storage.objects import open_store

    store = open_store(location)
    for name in store.list():
        store.download(name, target / name)


def unpack(archive: Path, target: Path) -> None:
    """Extract a zip; `ConfigurationError` for a name that leaves the folder, a link, or more than 2 GB."""
    try:
        with zipfile.ZipFile(archive) as file:
            if sum(entry.file_size for entry in file.infolist()) > LARGEST_BUNDLE_BYTES:
                raise ConfigurationError(
                    f"{archive.name} unpacks to more than {LARGEST_BUNDLE_BYTES} bytes: not a bundle"
                )
            for entry in file.infolist():
                parts = PurePosixPath(entry.filename).parts
                is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
                if PurePosixPath(entry.filename).is_absolute() or ".." in parts or "\\" in entry.filename or is_link:
                    raise ConfigurationError(
                        f"{archive.name} holds {entry.filename!r}, which leaves its folder: do not use it"
                    )
                if entry.is_dir():
                    continue
                path = target.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                # zipfile stops at the declared size, which the sum above bounds.
                with file.open(entry) as source, path.open("wb") as out:
                    shutil.copyfileobj(source, out)
    except zipfile.BadZipFile as error:
        raise ConfigurationError(f"{archive.name} is no zip archive ({error}): check base_eval.core_bundle") from error
