"""A run's journal as the controller of its TrainingRun reads it: with the user's wishes over it, and what is held."""

from collections.abc import Callable
from dataclasses import replace

from deploy.controller.decision import Decision
from deploy.controller.journal import Written
from deploy.controller.observed import Slice
from deploy.controller.record import RunJournal
from deploy.kubernetes import trainingrun
from deploy.kubernetes.client import Object
from deploy.kubernetes.provisioner import EXISTING
from deploy.kubernetes.trainingrun import POOL
from nanocode.config.settings import Controller as Policy
from nanocode.run.directory import RunDirectory

HELD = "what it reads has changed: set acceptStale to true, or put that back as it was"


class KubernetesJournal(RunJournal):
    """The run's journal, with the TrainingRun's wishes over the intent, and what is waited for in the status."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__(run)
        self.training_run: Object = {}
        self.held: tuple[str, ...] = ()
        """Stages that may not begin: what they would read has changed, and that is refused."""
        self.waits: Callable[[], dict[str, str]] = dict
        self.last: Written | None = None

    def read(self) -> Written:
        written = super().read()
        stages = tuple(replace(one, held=HELD) if one.name in self.held else one for one in written.stages)
        intent = trainingrun.wanted(self.training_run, written.intent)
        self.last = replace(written, intent=intent, stages=stages)
        return self.last

    def show(self, decision: Decision, at: float) -> None:
        stages = {
            name: replace(one, reason=self.waits().get(name, one.reason)) for name, one in decision.stages.items()
        }
        super().show(replace(decision, stages=stages), at)

    @property
    def policy(self) -> Policy:
        return self.last.policy if self.last is not None else Policy()

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Those that were ever asked for."""
        return tuple(one for one in self.last.slices if not one.permanent) if self.last is not None else ()

    def last_maker(self) -> str | None:
        """Of the slice that was asked for, or taken of a pool that is there anyway, last."""
        made = [(one.requested or 0.0, one.maker) for one in self.slices if one.maker]
        stages = self.last.stages if self.last is not None else ()
        made += [(one.claimed, EXISTING) for stage in stages for one in stage.attempts if one.slice == POOL]
        return max(made)[1] if made else None

    def price_of_a_pool(self) -> float | None:
        """Of a slice that is there anyway, per hour; None where nobody has said it."""
        return self.policy.dollars_per_slice_hour.get(POOL)

    def webhook(self) -> str | None:
        return self.policy.webhook

    def has_run(self, stage: str) -> bool:
        """Whether a stage on the same kind of machine has ever done a step."""
        stages = self.last.stages if self.last is not None else ()
        machine = next((one.machine for one in stages if one.name == stage), None)
        return any(
            attempt.first_step is not None for one in stages if one.machine == machine for attempt in one.attempts
        )
