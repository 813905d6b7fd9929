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
from jobs.planned import limit, planned
from nanocode.agent.soul import read_soul
from nanocode.config.settings import Settings
from nanocode.run import settling
from nanocode.run.attempts import End, recorded
from nanocode.run.digests import local_files
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import Exit, UsageError
from nanocode.run.graph import Stage, order, select
from nanocode.run.intent import change_intent, forgive
from nanocode.run.liveness import last_sign, seems_alive
from nanocode.run.streams import outlive_listeners
from nanocode.storage.objects import open_store


def dry_run(
    location: str, preset: str | None, overrides: Sequence[str], config: Path | None, stages: str | None
) -> int:
    """Print what `run` would do, and refuse what it would refuse; nothing is written, and no slice asked for."""
    chosen = select(stages.split(",") if stages else order())
    directory = RunDirectory(open_store(location))
    settings, _ = _possible(directory, preset, overrides, config)
    if settings.provisioner != "local":
        from deploy.provisioners.laptop import refuse_unavailable  # late: cloud clients take a second to import

        refuse_unavailable(settings)
    print(planned(directory, settings, chosen))
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
    names = [stage.name for stage in chosen]
    if settling.done(directory, settings, names) != names:
        wanted = tuple(names) if stages else ()
        change_intent(directory, want="run", stages=wanted, forgiven=forgive(directory, order()))
        outlive_listeners()
        _tell_of_others(directory, chosen)
        if budget := limit(settings):
            print(f"nanocode: {budget}", file=sys.stderr)
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

    def accept(line: str) -> None:
        if yes:
            return
        if not sys.stdin.isatty():
            raise UsageError(f"{line}; say --yes to go on, or put them back as they were")
        try:
            answer = input(f"{line}. Go on? [y/N] ")
        except EOFError:  # Ctrl-D
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            raise UsageError("nothing was changed")

    settings, before = _possible(directory, preset, overrides, config)
    return settling.settle(directory, settings, before, accept)


def _possible(
    directory: RunDirectory, preset: str | None, overrides: Sequence[str], config: Path | None
) -> tuple[Settings, Settings | None]:
    """The settings that are asked for, and those of before; refused before anybody is asked or anything is written."""
    settings, before = settling.proposed(directory, preset, overrides, config)
    read_soul(settings.soul, settings.soul_text)
    if settings.provisioner != "local":
        from deploy.provisioners.laptop import refuse_impossible  # late: cloud clients take a second to import

        if not directory.store.url.startswith("gs://"):
            raise UsageError(f"slices of a cloud cannot reach {directory.store.url}: give --run-dir gs://BUCKET/NAME")
        for setting, location in local_files(settings):
            raise UsageError(
                f"{setting}: slices of a cloud cannot read {location}: copy it to gs://BUCKET/..., name that"
            )
        refuse_impossible(directory, settings)
    return settings, before


def _tell_of_others(directory: RunDirectory, stages: Sequence[Stage]) -> None:
    """One line for each attempt that somebody else has begun and that may still be alive."""
    now = time.time()
    for stage in stages:
        for claim in directory.attempts(stage.name):
            if recorded(directory, stage.name, claim.attempt, End) is not None:
                continue
            if seems_alive(claim, sign := last_sign(directory, claim), now):
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
