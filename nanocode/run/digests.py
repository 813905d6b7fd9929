"""The input digest of every stage of a run, from its settings and from the content of what it reads."""

import glob
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from nanocode.config.settings import Settings
from nanocode.config.soul import soul_text
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.exits import ConfigurationError
from nanocode.run.graph import STAGES, input_digest, order
from nanocode.run.intent import latest_intent

BLOCK_BYTES = 1 << 20


def stage_digests(settings: Settings, run: RunDirectory) -> dict[str, str]:
    """What each stage's marker has to say to be current; `ConfigurationError` for a file that is not there."""
    return digests_beside(settings, run.done, latest_intent(run).again)


def digests_beside(
    settings: Settings, done: Callable[[str], Marker | None], again: Mapping[str, int]
) -> dict[str, str]:
    """The same for whoever has the markers, and knows how often the user began each stage again."""
    digests: dict[str, str] = {}
    for name in order():
        stage = STAGES[name]
        if stage.reads_what_is_there:
            upstream = current_fingerprints(done, stage.reads, digests)
        else:
            upstream = {other: digests[other] for other in stage.reads}
        files = source_digests(settings) if any(part.startswith("corpus") for part in stage.settings) else {}
        if stage.reads_soul:
            files["soul"] = soul_digest(settings)
        if "synth" in stage.settings:
            files |= public_digests(settings)
        if "base_eval" in stage.settings:
            files |= bundle_digest(settings)
        if again.get(name):
            files["begun again"] = str(again[name])
        digests[name] = input_digest(name, settings.digested(stage.settings), files, upstream)
    return digests


def current_fingerprints(
    done: Callable[[str], Marker | None], stages: tuple[str, ...], digests: Mapping[str, str]
) -> dict[str, str]:
    """The fingerprint of each stage's marker, of those that are done and not stale."""
    markers = {name: done(name) for name in stages}
    return {
        name: marker.fingerprint()
        for name, marker in markers.items()
        if marker is not None and marker.input_digest == digests[name]
    }


def source_digests(settings: Settings) -> dict[str, str]:
    """A digest of the content of each source that has no revision of its own."""
    found = {}
    for source in settings.corpus.sources:
        if source.location == "embedded":
            if source.revision is None:  # else it is among the settings
                found[source.location] = embedded_revision()
        elif "://" not in source.location:
            found[source.location] = _path_digest(Path(source.location), "corpus.sources")
    return found


def local_files(settings: Settings) -> list[tuple[str, str]]:
    """Each setting that names a file or folder of this machine, and that; not the SOUL, whose text is a setting too."""
    named = [("corpus.sources", one.location) for one in settings.corpus.sources if one.location != "embedded"]
    named += [("synth.public", one.location) for one in settings.synth.public]
    named += [("base_eval.core_bundle", settings.base_eval.core_bundle)] if settings.base_eval.core_bundle else []
    return [(setting, location) for setting, location in named if "://" not in location]


def public_digests(settings: Settings) -> dict[str, str]:
    """A digest of the content of each public set that is on this machine."""
    locations = [one.location for one in settings.synth.public if "://" not in one.location]
    return {location: _path_digest(Path(location), "synth.public") for location in locations}


def soul_digest(settings: Settings) -> str:
    """A digest of the SOUL, as the run took it up; of what it says now where the run has not yet."""
    text = settings.soul_text if settings.soul_text is not None else soul_text(settings.soul)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def bundle_digest(settings: Settings) -> dict[str, str]:
    """A digest of the content of the CORE bundle, where it is a folder or file of this machine."""
    bundle = settings.base_eval.core_bundle
    if bundle is None or "://" in bundle:
        return {}
    return {bundle: _path_digest(Path(bundle), "base_eval.core_bundle")}


@cache
def embedded_revision() -> str:
    """The interpreter and the packages by version: the embedded source is what they carry."""
    packages = sorted({f"{d.name}=={d.version}" for d in importlib.metadata.distributions() if d.name != "nanocode"})
    return hashlib.sha256("\n".join([platform.python_version(), *packages]).encode()).hexdigest()[:32]


@cache
def _path_digest(path: Path, setting: str) -> str:
    """Names and contents of a file, of everything in a folder, or of what a pattern matches."""
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise ConfigurationError(f"{setting} {str(path)!r} is not there: correct it")
    digest = hashlib.sha256()
    try:
        for file in [file for one in found for file in ([one] if one.is_file() else _files(one))]:
            digest.update(f"{file}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
            with file.open("rb") as content:
                while block := content.read(BLOCK_BYTES):
                    digest.update(block)
    except OSError as error:
        raise ConfigurationError(
            f"{setting}: cannot read {error.filename!r} ({error.strerror}): check its permissions"
        ) from error
    return digest.hexdigest()[:32]


def _files(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != ".git"]
        found += [Path(parent, name) for name in names]
    return sorted(path for path in found if path.is_file())
