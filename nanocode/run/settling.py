"""Which configuration of a run counts, and what a new one may change: whoever starts a run settles that first.

Another preset or another model is another run, and is refused. Other settings that make finished stages stale need
somebody's word; what those stages have made is kept.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nanocode.config.settings import Settings, from_yaml, load
from nanocode.config.soul import soul_text
from nanocode.run.digests import digests_beside, embedded_revision, stage_digests
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError
from nanocode.run.graph import STAGES, order
from nanocode.run.intent import earlier_intents, latest_intent
from nanocode.storage.objects import NotFound

ACCEPTED = "accepted.json"


def read_settings(run: RunDirectory) -> Settings:
    """The configuration that counts; `ConfigurationError` where there is none."""
    settings = latest_settings(run)
    if settings is None:
        raise ConfigurationError(
            f"{run.store.url} is no run directory (it holds no config/<n>.yaml): check the path; "
            "`nanocode run --run-dir DIR` makes one, and `make demo` makes runs/demo"
        )
    return settings


def latest_settings(run: RunDirectory) -> Settings | None:
    """The same; None in a new run directory."""
    config = run.latest_config()
    return from_yaml(config[1], f"{run.store.url}/config/{config[0]}.yaml") if config is not None else None


def proposed(
    run: RunDirectory, preset: str | None, overrides: Sequence[str], config: Path | None
) -> tuple[Settings, Settings | None]:
    """The settings that are asked for, on top of those the run has, and those; writes nothing."""
    before = latest_settings(run)
    if before is None:
        settings = with_soul(pinned(load(preset, overrides, config), run), None)
        stage_digests(settings, run)  # a source that is not there is refused before anything is written
        return settings, None
    settings = load(preset, overrides, config, base=before.model_dump(mode="json"))
    refuse_another(run, settings, before)
    return with_soul(pinned(settings, run), before), before


def settle(
    run: RunDirectory,
    settings: Settings,
    before: Settings | None,
    accept_stale: Callable[[str], None],
    heading: str = "",
) -> Settings:
    """Make these settings the ones that count, if they are others than before; `heading`: a comment above them.

    Where finished stages become stale, `accept_stale` is told so in one line, and raises where nobody agrees. What was
    agreed to last is in accepted.json, stage -> input digest: nobody is asked for it twice.
    """
    if before is not None and (names := ", ".join(to_accept(run, settings))):
        accept_stale(f"settings or sources have changed and make {names} stale: they run again, what they made is kept")
    digests = digests_beside(settings, run.marker, latest_intent(run).again)
    agreed = {name: digest for name, digest in digests.items() if not STAGES[name].reads_what_is_there}
    if agreed != _accepted(run):
        run.store.write(ACCEPTED, json.dumps(agreed).encode())
    if settings != before:
        run.add_config(heading + settings.to_yaml())
    return settings


def to_accept(run: RunDirectory, settings: Settings) -> list[str]:
    """The finished stages that would run again under these settings, and that nobody has agreed to."""
    if not (stale := stale_stages(run, settings)):
        return []
    accepted, possible = _accepted(run), _digests(run, settings)
    return [name for name in stale if not any(digests[name] == accepted.get(name) for digests in possible)]


def _digests(run: RunDirectory, settings: Settings) -> list[dict[str, str]]:
    """Of the stages now, and as they were before a user had some of them begun again."""
    return [digests_beside(settings, run.marker, one.again) for one in (latest_intent(run), *earlier_intents(run))]


def _accepted(run: RunDirectory) -> dict[str, str]:
    try:
        found = json.loads(run.store.read(ACCEPTED))
    except (NotFound, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def refuse_another(run: RunDirectory, settings: Settings, before: Settings) -> None:
    """`ConfigurationError` for another preset or model than the run's."""
    if settings.preset != before.preset:
        raise ConfigurationError(
            f"{run.store.url} is a run of preset {before.preset}, not {settings.preset}: choose another run directory"
        )
    if settings.model != before.model:
        changed = [key for key, value in settings.model if value != getattr(before.model, key)]
        raise ConfigurationError(
            f"model.{changed[0]} {getattr(settings.model, changed[0])} is another model than this run's "
            f"({getattr(before.model, changed[0])}): choose another run directory"
        )


def pinned(settings: Settings, run: RunDirectory) -> Settings:
    """The settings with every embedded source at a revision: the one that made what is done, else today's."""
    embedded = [source for source in settings.corpus.sources if source.location == "embedded"]
    if not embedded or (all(source.revision for source in embedded) and _is_in_use(settings, run)):
        return settings
    return with_revision(settings, embedded_revision())


def with_soul(settings: Settings, before: Settings | None) -> Settings:
    """The settings with what the SOUL says now; on a machine without the file, what it said when it was taken up."""
    if settings.soul is None:
        return settings.model_copy(update={"soul_text": None})
    try:
        text = soul_text(settings.soul)
    except ConfigurationError:
        if before is not None and before.soul != settings.soul:
            raise  # what is known is the text of another one
        known = [one.soul_text for one in (settings, before) if one is not None and one.soul_text is not None]
        if not known:
            raise
        text = known[0]
    return settings.model_copy(update={"soul_text": text})


def with_revision(settings: Settings, revision: str) -> Settings:
    """The settings with every embedded source at this revision."""
    sources = tuple(
        source.model_copy(update={"revision": revision}) if source.location == "embedded" else source
        for source in settings.corpus.sources
    )
    return settings.model_copy(update={"corpus": settings.corpus.model_copy(update={"sources": sources})})


def stale_stages(run: RunDirectory, settings: Settings) -> list[str]:
    """The finished stages that would run again under these settings, but for those that a user began again."""
    accepted = _digests(run, settings)
    markers = {name: run.marker(name) for name in order() if not STAGES[name].reads_what_is_there}
    return [
        name
        for name, marker in markers.items()
        if marker is not None and not any(marker.input_digest == current[name] for current in accepted)
    ]


def done(run: RunDirectory, settings: Settings, stages: Iterable[str]) -> list[str]:
    """Those of the stages whose markers are there, and of these settings."""
    digests = stage_digests(settings, run)
    markers = {name: run.done(name) for name in stages}
    return [name for name, one in markers.items() if one is not None and one.input_digest == digests[name]]


def _is_in_use(settings: Settings, run: RunDirectory) -> bool:
    """Whether corpus or pretrain is done with these sources; an imported run has no corpus when it begins."""
    return bool(done(run, settings, ("corpus", "pretrain")))
