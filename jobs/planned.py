"""What `nanocode run` would do, in words: a line for each stage, and what synth would make. Writes nothing."""

from collections.abc import Sequence

from deploy.controller.policies import cannot_be_kept
from deploy.local.backend import ZONE
from nanocode.config import prices
from nanocode.config.settings import Settings
from nanocode.report.words import quantity
from nanocode.run import settling
from nanocode.run.digests import digests_beside
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError
from nanocode.run.graph import Stage
from nanocode.run.intent import latest_intent


def planned(run: RunDirectory, settings: Settings, stages: Sequence[Stage]) -> str:
    """The lines to print; `ConfigurationError` where one of the stages could never run.

    What is done and stays is said, and synth is explained where it would run.
    """
    digests = digests_beside(settings, run.marker, latest_intent(run).again)
    made = {name: marker.input_digest for name in digests if (marker := run.marker(name)) is not None}
    done = {name for name, digest in made.items() if digest == digests[name]}
    names = {stage.name for stage in stages}
    # What reads what is there is made again once any of that is.
    done -= {stage.name for stage in stages if stage.reads_what_is_there and (names & set(stage.reads)) - done}
    for stage in stages:
        missing = [] if stage.reads_what_is_there or stage.name in done else set(stage.reads) - done - names
        for name in sorted(missing):
            raise ConfigurationError(
                f"stage {stage.name} needs stage {name}, which is not done and not among the stages asked for: add it "
                "to --stages"
            )
    lines = [f"{run.store.url}: preset {settings.preset}, {quantity(settings.model.parameters())} parameters"]
    for stage in stages:
        what = _work(run, settings, stage, digests[stage.name], made.get(stage.name))
        lines.append(f"  {stage.name:<12} {'is done' if stage.name in done else what}")
    lines += filter(None, [limit(settings)])
    if run.latest_config() is not None and (stale := settling.to_accept(run, settings)):
        lines.append(f"it asks first whether {', '.join(stale)} shall run again; --yes agrees")
    if "synth" in names - done:
        from nanocode.synth.plan import plan  # late: a run needs no numpy, its stages do

        lines.append(plan(settings))
    return "\n".join(lines)


def _work(run: RunDirectory, settings: Settings, stage: Stage, digest: str, made: str | None) -> str:
    """`made`: the digest that it is done with, if it is."""
    attempts = run.attempts(stage.name)
    goes_on = made != digest and any(claim.input_digest == digest for claim in attempts)
    verb = "goes on" if goes_on else "runs again" if made is not None else "begins anew" if attempts else "runs"
    here = settings.provisioner == "local" or stage.machine == "cpu"
    what = f"{verb} on {'this machine' if here else _slice(settings)}"
    if stage.name != "pretrain":
        return what
    steps, tokens = settings.pretrain_steps, settings.pretrain.batch_tokens
    return f"{what}: {steps:,} steps of {tokens:,} tokens, {quantity(steps * tokens)} in all"


def _slice(settings: Settings) -> str:
    kind = "a spot slice" if settings.cloud.spot else "a slice"
    return f"{kind} {settings.cloud.accelerator_type} in {' or '.join(settings.controller.zones)}"


def limit(settings: Settings) -> str:
    """What `budget.dollars` does; empty without one."""
    budget = settings.budget.dollars
    if budget is None:
        return ""
    known = prices.priced(settings).dollars_per_slice_hour
    if settings.provisioner == "local":
        if not known.get(ZONE):
            what = f"controller.dollars_per_slice_hour.{ZONE} (what an hour of this machine costs)"
            return f"budget.dollars limits nothing here without {what}"
    elif unpriced := [zone for zone in settings.controller.zones if known.get(zone) is None]:
        return cannot_be_kept(unpriced, budget)
    return f"it ends before it costs more than ${budget:,.2f}"
