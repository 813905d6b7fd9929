"""`nanocode run`: the stages as child processes on this machine, in order, until one cannot be done."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from nanocode.config.settings import Settings, from_yaml, load
from nanocode.run.digests import embedded_revision, stage_digests
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError, Exit, UsageError
from nanocode.run.graph import STAGES, Stage, order, select
from nanocode.run.liveness import last_sign, seems_alive
from nanocode.storage.objects import open_store


def dry_run(location: str, preset: str | None, overrides: Sequence[str], config: Path | None) -> int:
    """Print what synth would make, take and spend; nothing is written and nobody is asked."""
    from nanocode.synth.plan import plan

    settings, _ = proposed(RunDirectory(open_store(location)), preset, overrides, config)
    print(plan(settings))
    return Exit.DONE


def run(
    location: str, preset: str | None, overrides: Sequence[str], config: Path | None, stages: Iterable[str], yes: bool
) -> int:
    """Settle the configuration, then run what is not done; the exit code of the first stage that fails."""
    chosen = select(stages)
    directory = RunDirectory(open_store(location))
    settings = settle(directory, preset, overrides, config, yes)
    for stage in chosen:
        while not _is_done(directory, stage, settings):
            _warn_of_others(directory, stage)
            code = _child(directory, stage)
            if code in (Exit.PREEMPTED, Exit.CONFIGURATION, Exit.USAGE):
                return code
            if code != Exit.DONE or not _is_done(directory, stage, settings):
                print(f"nanocode: stage {stage.name} failed with exit code {code}; its log is above", file=sys.stderr)
                return Exit.FAILED
    summarize(directory)
    return Exit.DONE


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
    stale = [name for name, marker in markers.items() if marker is not None and marker.input_digest != digests[name]]
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


def _warn_of_others(directory: RunDirectory, stage: Stage) -> None:
    """One line for an attempt that may still be alive: two at once do no harm, and everything twice."""
    now = time.time()
    for claim in reversed(directory.attempts(stage.name)):
        sign = last_sign(directory, claim)
        if seems_alive(claim, sign, now):
            told = f"attempt {claim.attempt} of {stage.name} by {claim.who} wrote {max(0, now - sign):.0f} s ago"
            print(f"nanocode: {told}; if it is alive, both do the same work", file=sys.stderr)
            return


def _child(directory: RunDirectory, stage: Stage) -> int:
    """Run a stage to its end; SIGTERM and Ctrl-C are passed on, and waited for: the stage says what it saved."""
    command = [sys.executable, "-m", stage.module, "--run-dir", directory.store.url]
    # Large pages for large arrays, which a step allocates anew each time: a tenth of its time on a CPU.
    # A stage that leaves at once leaves its pool's semaphores to Python's tracker, which removes them and complains.
    quiet = "ignore:resource_tracker:UserWarning"
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "PYTHONWARNINGS": quiet, **os.environ}
    # A child is born deaf to the terminal's Ctrl-C, and listens once it can save: until then our SIGTERM ends it.
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(command, env=environment)
    told = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal told
        process.send_signal(signal.SIGINT if told and number == signal.SIGINT else signal.SIGTERM)
        told = True

    terminated = signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, terminated)
        signal.signal(signal.SIGINT, interrupted)
        if process.poll() is None:
            process.kill()
    if told and code == -signal.SIGTERM:
        print("nanocode: told to leave; the same command goes on from here", file=sys.stderr)
    return Exit.PREEMPTED if told and code != Exit.DONE else code


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
