"""`nanocode run`: settle what is to be done, then be the controller of the run on this machine."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.local.chaos import parse_chaos, supervise
from deploy.local.loop import control
from jobs.console import set_up_logging
from nanocode.config.settings import Settings, from_yaml, load
from nanocode.run.attempts import End, recorded
from nanocode.run.digests import digests_beside, embedded_revision, stage_digests
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError, Exit, UsageError
from nanocode.run.graph import STAGES, Stage, order, select
from nanocode.run.intent import change_intent, earlier_intents, forgive
from nanocode.run.liveness import last_sign, seems_alive
from nanocode.storage.objects import open_store


def dry_run(location: str, preset: str | None, overrides: Sequence[str], config: Path | None) -> int:
    """Print what synth would make, take and spend; nothing is written and nobody is asked."""
    from nanocode.synth.plan import plan

    settings, _ = proposed(RunDirectory(open_store(location)), preset, overrides, config)
    print(plan(settings))
    return Exit.DONE


def run(
    location: str,
    preset: str | None,
    overrides: Sequence[str],
    config: Path | None,
    stages: str | None,
    yes: bool,
    chaos: str | None = None,
) -> int:
    """Settle the configuration, then be the run's controller until there is nothing left to do."""
    chosen = select(stages.split(",") if stages else order())
    trouble = parse_chaos(chaos) if chaos is not None else None
    directory = RunDirectory(open_store(location))
    settings = settle(directory, preset, overrides, config, yes)
    code: int = Exit.DONE
    if not all(_is_done(directory, stage, settings) for stage in chosen):
        wanted = tuple(stage.name for stage in chosen) if stages else ()
        change_intent(directory, want="run", stages=wanted, forgiven=forgive(directory, order()))
        _tell_of_others(directory, chosen)
        set_up_logging()
        code = control(directory) if trouble is None else supervise(directory, trouble, settings.pretrain.grace_seconds)
    if code == Exit.DONE:
        summarize(directory)
    return code


def settle(
    directory: RunDirectory, preset: str | None, overrides: Sequence[str], config: Path | None, yes: bool
) -> Settings:
    """The settings that count from here on, written into the run directory if they changed.

    Names the stages that become stale, and asks, or needs `--yes`.
    """
    settings, before = proposed(directory, preset, overrides, config)
    if before is not None:
        _accept_stale(directory, settings, yes)
    if settings != before:
        directory.add_config(settings.to_yaml())
    return settings


def proposed(
    directory: RunDirectory, preset: str | None, overrides: Sequence[str], config: Path | None
) -> tuple[Settings, Settings | None]:
    """The settings that are asked for, and those the run has; refuses another preset or model, and writes nothing."""
    current = directory.latest_config()
    if current is None:
        settings = pinned(load(preset, overrides, config), directory)
        stage_digests(settings, directory)  # a source that is not there is refused before anything is written
        return settings, None
    number, text = current
    before = from_yaml(text, f"{directory.store.url}/config/{number}.yaml")
    settings = load(preset, overrides, config, base=before.model_dump(mode="json"))
    if settings.preset != before.preset:
        raise ConfigurationError(
            f"{directory.store.url} is a run of preset {before.preset}, not {settings.preset}: "
            "choose another run directory"
        )
    if settings.model != before.model:
        changed = [key for key, value in settings.model if value != getattr(before.model, key)]
        raise ConfigurationError(
            f"model.{changed[0]} {getattr(settings.model, changed[0])} is another model than this run's "
            f"({getattr(before.model, changed[0])}): choose another run directory"
        )
    return pinned(settings, directory), before


def pinned(settings: Settings, directory: RunDirectory) -> Settings:
    """The settings with every embedded source at a revision: the one that made what is done, else today's."""
    embedded = [source for source in settings.corpus.sources if source.location == "embedded"]
    if not embedded or (all(source.revision for source in embedded) and _is_in_use(settings, directory)):
        return settings
    sources = tuple(
        source.model_copy(update={"revision": embedded_revision()}) if source in embedded else source
        for source in settings.corpus.sources
    )
    return settings.model_copy(update={"corpus": settings.corpus.model_copy(update={"sources": sources})})


def _is_in_use(settings: Settings, directory: RunDirectory) -> bool:
    """Whether corpus or pretrain is done with these sources; an imported run has no corpus when it begins."""
    return any(_is_done(directory, STAGES[name], settings) for name in ("corpus", "pretrain"))


def _accept_stale(directory: RunDirectory, settings: Settings, yes: bool) -> None:
    digests = stage_digests(settings, directory)
    markers = {name: directory.done(name) for name in order() if not STAGES[name].reads_what_is_there}
    accepted = [digests] + [digests_beside(settings, directory.done, one.again) for one in earlier_intents(directory)]
    stale = [
        name
        for name, marker in markers.items()
        # What `nanocode retry` has made stale was asked for.
        if marker is not None and not any(marker.input_digest == current[name] for current in accepted)
    ]
    if not stale or yes:
        return
    line = f"settings or sources have changed and make {', '.join(stale)} stale: they run again, what they made is kept"
    if not sys.stdin.isatty():
        raise UsageError(f"{line}; say --yes to go on, or put them back as they were")
    if input(f"{line}. Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was changed")


def _is_done(directory: RunDirectory, stage: Stage, settings: Settings) -> bool:
    marker = directory.done(stage.name)
    return marker is not None and marker.input_digest == stage_digests(settings, directory)[stage.name]


def _tell_of_others(directory: RunDirectory, stages: Sequence[Stage]) -> None:
    """One line for each attempt that somebody else has begun and that may still be alive."""
    now = time.time()
    for stage in stages:
        for claim in directory.attempts(stage.name):
            sign = last_sign(directory, claim)
            over = recorded(directory, stage.name, claim.attempt, End) is not None
            if not over and seems_alive(claim, sign, now):
                told = f"attempt {claim.attempt} of {stage.name} by {claim.who} wrote {max(0, now - sign):.0f} s ago"
                print(f"nanocode: {told}; if it is alive, its end is awaited", file=sys.stderr)


def summarize(directory: RunDirectory) -> None:
    """The last lines of a run: how good the model is, and where to read more."""
    evaluated, report = directory.done("base-eval"), directory.done("report")
    if evaluated is not None:
        bits, xz = evaluated.metrics.get("bits_per_byte"), evaluated.metrics.get("xz_bits_per_byte")
        if isinstance(bits, dict) and isinstance(xz, dict):
            print("\nbits per byte on held-out text, lower is better:")
            for kind, value in bits.items():
                print(f"  {kind:<8} {value:.3f}   xz -9e, document by document: {xz[kind]:.3f}")
    summarize_agent(directory)
    if report is not None:
        print(f"\nreport: {os.path.join(directory.store.url, report.outputs['html'])}")


def summarize_agent(directory: RunDirectory) -> None:
    """How many unseen tasks each model does, and how to talk to the last one."""
    evaluated = directory.done("agent-eval")
    if evaluated is None:
        return
    models: Any = evaluated.metrics["models"]
    print("\ntasks done (greedy, tools really executed, instances never seen; mean over families, 95% interval):")
    for stage, suites in models.items():
        for suite, found in suites.items():
            low, high = found["interval"]
            label = stage if suite == "fresh" else f"{stage}, {suite}"
            print(f"  {label:<26} {found['pass@1']:4.0%}   {low:.0%} to {high:.0%}")
    print(f"\ntalk to it: nanocode chat {directory.store.url}")
