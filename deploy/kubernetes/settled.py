"""What a TrainingRun's spec asks for, written into the run directory, where jobs and controllers read it."""

import hashlib
from collections.abc import Callable

from deploy.kubernetes.trainingrun import Object, Spec, overrides
from nanocode.config.settings import Settings, from_yaml, load
from nanocode.run import settling
from nanocode.run.digests import stage_digests
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import UsageError
from nanocode.run.graph import STAGES, order, select
from nanocode.run.intent import change_intent, forgive, latest_intent

DECLARED = "# From a TrainingRun: what its spec does not say any more goes back to the preset.\n"


def settle(run: RunDirectory, spec: Spec, refuse: Callable[[Settings], None] = lambda settings: None) -> Settings:
    """The settings that count from here on; `ConfigurationError` or `UsageError` for those that cannot be.

    `refuse` may raise either, before anything is written.
    A configuration that somebody else has begun the run with, such as `nanocode import`, is what ours begins from.
    """
    current = run.latest_config()
    before, base = None, None
    if current is not None:
        before = from_yaml(current[1], f"{run.store.url}/config/{current[0]}.yaml")
        base = None if current[1].startswith(DECLARED) else before.model_dump(mode="json")
    settings = load(spec.preset, overrides(spec), environment={}, base=base)
    if before is not None:
        settling.refuse_another(run, settings, before)
    settings = settling.with_soul(_pinned(settings, before, spec.image), before)
    refuse(settings)
    stage_digests(settings, run)  # a file that is not there is refused before anything is written

    def accept(line: str) -> None:
        if not spec.accept_stale:
            raise UsageError(f"{line}; set acceptStale to true to go on, or put them back as they were")

    return settling.settle(run, settings, before, accept, heading=DECLARED if base is None else "")


def held(run: RunDirectory) -> tuple[str, ...]:
    """The stages that would run again, though nobody has agreed to that, under the configuration that counts: for what
    they read has changed, such as the SOUL of another image. And those that read them."""
    settings = settling.latest_settings(run)
    if settings is None:
        return ()
    found = set(settling.to_accept(run, settings))
    for name in order():
        if found.intersection(STAGES[name].reads):
            found.add(name)
    return tuple(name for name in order() if name in found)


def wish(run: RunDirectory, spec: Spec) -> None:
    """Write down what `spec.retry` asks for, and forgive what failed under an earlier spec."""
    select(spec.retry)
    before = latest_intent(run)
    again = {**before.again, **{stage: max(n, before.again.get(stage, 0)) for stage, n in spec.retry.items() if n}}
    change_intent(run, again=again, forgiven=forgive(run, order()))


def _pinned(settings: Settings, before: Settings | None, image: str) -> Settings:
    """Embedded sources at the revision that the run began with; in a cluster they are what the jobs' image carries."""
    known = (
        {one.revision for one in before.corpus.sources if one.location == "embedded"} if before is not None else set()
    )
    revision = next(iter(known - {None}), None) or hashlib.sha256(image.encode()).hexdigest()[:32]
    return settling.with_revision(settings, revision)


def changed(training_run: Object) -> bool:
    """Whether the spec is another than the one that the status is about."""
    observed = (training_run.get("status") or {}).get("observedGeneration")
    return bool(observed != training_run["metadata"].get("generation", 1))
