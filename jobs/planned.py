"""What `nanocode run` would do, in words: a line for each stage, and what synth would make. Writes and asks nothing."""

from collections.abc import Iterator, Sequence

from nanocode.config.settings import Settings
from nanocode.report.words import quantity
from nanocode.run import settling
from nanocode.run.directory import RunDirectory
from nanocode.run.graph import Stage
from nanocode.synth.plan import plan

HERE = "this machine"


def planned(run: RunDirectory, settings: Settings, stages: Sequence[Stage]) -> str:
    """The lines to print. What is done and would stay is said, and synth is explained where it would run."""
    names = [stage.name for stage in stages]
    done = settling.done(run, settings, names)
    stale = settling.stale_stages(run, settings)
    lines = [
        f"{run.store.url}: preset {settings.preset}, {quantity(settings.model.parameters())} parameters",
        *(_line(run, settings, stage, stage.name in done, stage.name in stale) for stage in stages),
        *_limits(settings),
    ]
    if "synth" in names and "synth" not in done:
        lines.append(plan(settings))
    return "\n".join(lines)


def _line(run: RunDirectory, settings: Settings, stage: Stage, is_done: bool, is_stale: bool) -> str:
    if is_done:
        return f"  {stage.name:<12} is done"
    attempts = len(run.attempts(stage.name))
    verb = "runs again" if is_stale else f"goes on, attempt {attempts + 1}," if attempts else "runs"
    where = HERE if settings.provisioner == "local" or stage.machine == "cpu" else _slice(settings)
    line = f"  {stage.name:<12} {verb} on {where}"
    if stage.name == "pretrain":
        steps, tokens = settings.pretrain_steps, settings.pretrain.batch_tokens
        line += f": {steps:,} steps of {tokens:,} tokens, {quantity(steps * tokens)} in all"
    return line


def _slice(settings: Settings) -> str:
    kind = "a spot slice" if settings.cloud.spot else "a slice"
    return f"{kind} {settings.cloud.accelerator_type} in {' or '.join(settings.controller.zones)}"


def _limits(settings: Settings) -> Iterator[str]:
    if settings.budget.dollars is not None:
        yield f"it ends before it costs more than ${settings.budget.dollars:,.2f}"
