"""The controller of one TrainingRun: look, decide, act, say so; again every few seconds, for as long as the pod lives.

It holds nothing: killed at any point, the next one goes on from the run directory and the cluster. What is wrong with a
spec, or with what is written in the run directory, is a condition and no crash; while a run goes on under an earlier
spec, a refused change is only told. A bucket that refuses us, or is not there, is told at once and fails the run after
`controller.mistake_minutes`; it is asked again all the same, and the run goes on once it answers. An outage, of the
bucket or of anybody else, is waited for.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import structlog

from deploy.controller.actions import Tell
from deploy.controller.backend import Unreachable
from deploy.controller.decision import Decision
from deploy.controller.notify import Webhook
from deploy.kubernetes import trainingrun
from deploy.kubernetes.client import PLURAL, Cluster, Conflict, Invalid, Object
from deploy.kubernetes.metrics import Health
from deploy.kubernetes.run import Run
from deploy.kubernetes.trainingrun import FINALIZER, News, Reachable
from nanocode.run.exits import ConfigurationError
from nanocode.storage.objects import Refused, StorageError

log = structlog.get_logger()

SECONDS_BETWEEN_STATUSES = 10.0
SECONDS_WITHOUT_A_POLICY = 5.0
SECONDS_TO_GIVE_UP = 120.0
"""A deleted TrainingRun whose directory gives no answer for so long is released without it."""
SECONDS_TO_ASK_MAKERS = 300.0
"""So long whoever may have made it a slice, and gives no answer, is asked: `helm uninstall` waits for 540."""


@dataclass(frozen=True)
class Trouble:
    """Why nothing could be decided; nothing where it could."""

    sentence: str = ""
    reachable: Reachable = "True"
    is_mistake: bool = False
    """Somebody has to correct what is written."""


class Controller:
    """Rounds, each safe to be cut off anywhere."""

    def __init__(self, cluster: Cluster, name: str, health: Health, clock: Callable[[], float] = time.time) -> None:
        self._cluster, self._name, self._health, self._clock = cluster, name, health, clock
        self._run: Run | None = None
        self._webhook = Webhook(lambda: self._run.journal.webhook() if self._run is not None else None)
        self._status_at = 0.0
        self._unreachable_since: float | None = None

    @property
    def seconds_between_looks(self) -> float:
        return self._run.journal.policy.seconds_between_looks if self._run else SECONDS_WITHOUT_A_POLICY

    def round(self) -> str:
        """One; how it went: decided, waiting (there is no TrainingRun, or nothing can be decided) or unreachable."""
        outcome = "unreachable"
        try:
            training_run = self._cluster.get(PLURAL, self._name)
            outcome = "waiting" if training_run is None else self._control(training_run)
            if training_run is None:
                self._run = None
        except (Unreachable, Conflict, Invalid) as error:
            log.warning("the round is left, the next one tries again", error=str(error))
        self._health.round_ended(outcome)
        return outcome

    def _control(self, training_run: Object) -> str:
        going = trainingrun.is_going(training_run)
        finalizers = training_run["metadata"].get("finalizers") or []
        if going and FINALIZER not in finalizers:
            return "waiting"  # for others to let it go
        if not going and FINALIZER not in finalizers:
            training_run = self._set_finalizers(training_run, [*finalizers, FINALIZER])
        decision: Decision | None = None
        trouble = Trouble()
        try:
            run = self._run_of(training_run)
            run.journal.training_run = training_run
            run.settle(training_run)
            if not run.fatal:
                decision = run.reconciler.once()
            self._unreachable_since = None
        except (StorageError, Unreachable, ValueError) as error:
            self._unreachable_since = self._unreachable_since or self._clock()
            trouble = _trouble(error)
            log.warning("nothing can be decided", error=str(error))
        if decision is not None and self._run is not None:
            self._run.events.publish_actions(decision.actions)
            for action in decision.actions:
                self._health.actions.labels(type(action).__name__).inc()
        try:
            if going and self._is_released(decision):
                self._set_finalizers(training_run, [one for one in finalizers if one != FINALIZER])
                return "decided"
        except Unreachable as error:
            sentence = f"what the run holds cannot be given back: {error}"
            trouble = replace(trouble, sentence="; ".join(filter(None, (trouble.sentence, sentence))))
        self._write_status(training_run, decision, trouble)
        return "decided" if decision is not None else "waiting"

    def _run_of(self, training_run: Object) -> Run:
        if self._run is None or self._run.uid != training_run["metadata"]["uid"]:
            self._run = Run(self._cluster, training_run, trainingrun.spec_of(training_run), self._tell, self._clock)
        return self._run

    def _is_fatal(self, training_run: Object, trouble: Trouble) -> bool:
        """Whether somebody has to mend it: a refusal only once it was waited for, by this pod and those before it."""
        if trouble.is_mistake or (self._run is not None and self._run.fatal):
            return True
        since = trainingrun.refused_since(training_run)
        if trouble.reachable != "False" or since is None or self._run is None:
            return False
        return self._clock() - since > self._run.mistake_seconds()

    def _tell(self, news: Tell) -> None:
        assert self._run is not None
        self._webhook.send(f"nanocode {self._run.directory.store.url}: {news.text}")

    def _is_released(self, decision: Decision | None) -> bool:
        """Whether a deleted run holds nothing any more. One that cannot be read is ended whatever it says."""
        if decision is not None:
            return decision.resting
        waited = self._clock() - self._unreachable_since if self._unreachable_since is not None else 0.0
        if self._run is None:
            return waited > SECONDS_TO_GIVE_UP  # nothing was ever begun, and Jobs of before go with their owner
        if not self._run.fatal and waited <= SECONDS_TO_GIVE_UP:
            return False
        return self._run.end_everything(patient=not self._run.fatal and waited <= SECONDS_TO_ASK_MAKERS)

    def _set_finalizers(self, training_run: Object, finalizers: list[str]) -> Object:
        version = training_run["metadata"]["resourceVersion"]
        metadata = {"finalizers": finalizers, "resourceVersion": version}
        return self._cluster.patch_run(self._name, {"metadata": metadata})

    # -- status --------------------------------------------------------------------------------------------------------

    def _write_status(self, training_run: Object, decision: Decision | None, trouble: Trouble) -> None:
        now = self._clock()
        if 0 <= now - self._status_at < SECONDS_BETWEEN_STATUSES:
            return
        found: dict[str, Any] | None = None
        run = self._run
        if run is not None and not run.fatal and not trouble.sentence:
            try:
                found = run.status.read()
            except (StorageError, ConfigurationError) as error:
                log.warning("the run directory cannot be read for the status", error=str(error))
                return
        news = News(
            decision=decision,
            found=found,
            waits=run.waits() if run is not None else None,
            problem="; ".join(filter(None, (run.problem if run is not None else "", trouble.sentence))),
            fatal=self._is_fatal(training_run, trouble),
            reachable=trouble.reachable,
            image_digest=run.image_digest() if run is not None else None,
            settled=run is not None and run.generation == training_run["metadata"].get("generation", 1),
        )
        if found is not None and decision is not None:
            state = decision.state.value
            self._health.found = {**found, "state": state, "stages": trainingrun.stages_of(news)}
        status = trainingrun.status(training_run, news, now)
        if news.problem and run is not None:
            is_refused = run.problem or trouble.is_mistake
            run.events.publish("Refused" if is_refused else "Unreachable", news.problem, "Warning")
        for stage, sentence in (news.waits or {}).items():
            if run is not None:
                run.events.publish("Waiting", f"{stage}: {sentence}")
        before = trainingrun.without_nulls(training_run.get("status") or {})
        if trainingrun.without_nulls(status) != before:
            version = {"resourceVersion": training_run["metadata"]["resourceVersion"]}
            self._cluster.patch_run_status(self._name, {"metadata": version, "status": status})
        self._status_at = now


def _trouble(error: Exception) -> Trouble:
    """Whether somebody has to mend it or an outage has to pass, of the run directory or, in its own words, another."""
    cause = error if isinstance(error, StorageError) else error.__cause__
    if isinstance(cause, Refused):
        return Trouble(f"{error}; once that is done, the run goes on by itself", "False")
    if isinstance(cause, StorageError):
        return Trouble(f"the run directory gives no answer: {error}", "Unknown")
    return Trouble(" ".join(str(error).split()), is_mistake=isinstance(error, ValueError))
