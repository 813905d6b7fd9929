"""The controller of one TrainingRun: look, decide, act, say so; again every few seconds, for as long as the pod lives.

It holds nothing: killed at any point, the next one goes on from the run directory and the cluster. What is wrong with a
spec is a condition and no crash; while a run goes on under an earlier spec, a refused change is only told.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog
from pydantic import ValidationError

from deploy.controller.actions import Tell
from deploy.controller.backend import Provisioner, Unreachable
from deploy.controller.decision import Decision
from deploy.controller.journal import Written
from deploy.controller.notify import Webhook
from deploy.controller.observed import Slice
from deploy.controller.reconcile import Reconciler
from deploy.controller.record import RunJournal
from deploy.kubernetes import settled, templates, trainingrun
from deploy.kubernetes.backend import KubernetesBackend
from deploy.kubernetes.client import PLURAL, Cluster, Conflict, Invalid, Object
from deploy.kubernetes.events import Events
from deploy.kubernetes.metrics import Health
from deploy.kubernetes.node_pools import NodePoolView
from deploy.kubernetes.provisioner import EXISTING, ByMaker, ExistingPool
from deploy.kubernetes.queued_slices import QueuedSlices
from deploy.kubernetes.trainingrun import FINALIZER, POOL, News, Spec
from deploy.kubernetes.waits import Patience
from deploy.provisioners import gke_client
from deploy.provisioners.gke import NodePools
from deploy.provisioners.here_and_there import HereAndThere
from deploy.provisioners.labels import run_label
from deploy.provisioners.regions import refuse_elsewhere
from nanocode.config.refusals import requirement
from nanocode.config.settings import Cloud
from nanocode.config.settings import Controller as Policy
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError, UsageError
from nanocode.run.settling import read_settings
from nanocode.run.status import Status
from nanocode.storage.objects import StorageError, open_store

log = structlog.get_logger()

GKE, QUEUED = "gke", "queued-resource"
PROVISIONERS = (EXISTING, GKE, QUEUED)
SECONDS_BETWEEN_STATUSES = 10.0
SECONDS_WITHOUT_A_POLICY = 5.0
SECONDS_TO_GIVE_UP = 120.0
"""A deleted TrainingRun whose directory gives no answer for so long is released without it."""


class KubernetesJournal(RunJournal):
    """The run's journal, with the TrainingRun's wishes over the intent, and what is waited for in the status."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__(run)
        self.training_run: Object = {}
        self.waits: Callable[[], dict[str, str]] = dict
        self.last: Written | None = None

    def read(self) -> Written:
        written = super().read()
        self.last = replace(written, intent=trainingrun.wanted(self.training_run, written.intent))
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

    @property
    def cloud(self) -> Cloud:
        return self.settings.cloud if self.settings is not None else Cloud()

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


class Run:
    """What a controller keeps of one TrainingRun while it is the same object with the same directory."""

    def __init__(
        self,
        cluster: Cluster,
        training_run: Object,
        spec: Spec,
        tell: Callable[[Tell], None],
        clock: Callable[[], float],
    ) -> None:
        self.uid, self.directory = training_run["metadata"]["uid"], RunDirectory(open_store(spec.run_directory))
        self.spec, self.generation = spec, 0
        self.reference = templates.reference(training_run)
        self.journal = KubernetesJournal(self.directory)
        self.events = Events(cluster, training_run, clock)
        self.backend = KubernetesBackend(
            cluster, self.directory, self.making, self._patience, self._is_proven, clock, self._node_pool
        )
        self._cluster, self._clock = cluster, clock
        self._existing = ExistingPool(self.journal.price_of_a_pool, self._nodes_are_cool)
        self._pools: NodePools | None = None
        self._queued = QueuedSlices(self.directory, self._cloud_with_image, lambda: self.journal.slices, clock)
        self.journal.waits = self.waits
        self.journal.maker = lambda: self.spec.provisioner
        attempts = HereAndThere(self.backend, self._queued.vms, self._is_on_vms, self.backend.mirror)
        provisioner = ByMaker(lambda: self.spec.provisioner, self._held, self._made_by)
        self.reconciler = Reconciler(self.journal, attempts, provisioner, tell, clock)
        self.status = Status(self.directory.store.url)
        self.recorded_image: str | None = (training_run.get("status") or {}).get("imageDigest")
        self.namespace = cluster.namespace
        self.problem, self.fatal = "", False

    def making(self) -> templates.Making:
        return templates.Making(
            run=self.reference["name"],
            namespace=self.namespace,
            owner=self.reference,
            templates=self.spec.templates,
            image=self.spec.image,
            pinned=templates.by_digest(self.spec.image, self.image_digest()),
        )

    def image_digest(self) -> str | None:
        """The image that the spec names, with the digest it had when a node pulled it first."""
        if self.recorded_image is not None and self.recorded_image.startswith(f"{self.spec.image}@"):
            return self.recorded_image
        return self.backend.image_digests.get(self.spec.image)

    def waits(self) -> dict[str, str]:
        there = {**self.backend.waits, **self._queued.vms.waits}
        return {stage: sentence for (stage, _), sentence in there.items()}

    def _nodes_are_cool(self) -> bool:
        return self._clock() >= self.backend.cool_until

    def _made_by(self, maker: str) -> Provisioner:
        if maker == QUEUED:
            return self._queued.provisioner()
        return self._node_pools() if maker == GKE else self._existing

    def _maker(self, one: Slice) -> str:
        """A slice of a controller that did not write it down is whose the spec says, or a node pool."""
        return one.maker or (self.spec.provisioner if self.spec.provisioner in (GKE, QUEUED) else GKE)

    def _held(self) -> dict[str, str]:
        """Slices that are not gone, and who made each."""
        return {one.name: self._maker(one) for one in self.journal.slices if one.requested and one.gone is None}

    @property
    def _makers(self) -> set[str]:
        """Whom slices are asked of, and who made those that are left."""
        return {self.spec.provisioner, *self._held().values()}

    def _is_on_vms(self, slice: str | None) -> bool:
        if slice in (None, POOL):
            return False
        made = {one.name: self._maker(one) for one in self.journal.slices}
        return made.get(slice or "", self.spec.provisioner) == QUEUED

    def _cloud_with_image(self) -> Cloud:
        """With the image of the TrainingRun where the settings name none for TPU VMs."""
        cloud = self.journal.cloud
        return cloud if cloud.image is not None else cloud.model_copy(update={"image": self.making().pinned})

    def _node_pools(self) -> NodePools:
        if self._pools is None:
            cloud, run = self.journal.cloud, self.reference["name"]
            container = gke_client.connect(cloud)
            view = NodePoolView(self._cluster, run, lambda: self.journal.cloud.machine_type, self._clock)
            owner, label = cloud.owner or self.namespace, run_label(self.directory.store.url)
            self._pools = NodePools(
                container,
                label,
                owner,
                view,
                lambda: self.journal.cloud,
                self._clock,
                self._nodes_are_cool,
                lambda: self.journal.slices,
            )
        return self._pools

    def _node_pool(self, slice: str) -> str | None:
        return None if slice == POOL else self._node_pools().pool_of(slice)

    def _is_proven(self, stage: str) -> bool:
        """Whether its kind of node will come: an autoscaler brings those of a pool that was made for it."""
        return GKE in self._makers or self.journal.has_run(stage)

    def end_everything(self) -> bool:
        """Have Jobs and slices of the run go, whatever is written about them; whether nothing is left."""
        jobs_are_gone = self.backend.end_everything()
        slices_are_gone = True
        if QUEUED in self._makers:
            zones = {*self.spec.zones, *(one.zone for one in self.journal.slices)}
            slices_are_gone = self._queued.provisioner().release_all(sorted(zones))
        if GKE in self._makers:
            slices_are_gone = self._node_pools().release_all() and slices_are_gone
        return slices_are_gone and jobs_are_gone

    def _patience(self) -> Patience:
        policy = self.journal.policy
        return Patience(policy.mistake_minutes * 60, policy.provision_minutes * 60, policy.admission_minutes * 60)

    def settle(self, training_run: Object) -> None:
        """Take up a spec that has changed; `problem` says what is wrong with it. `StorageError` without an answer."""
        generation = training_run["metadata"].get("generation", 1)
        if generation == self.generation:
            return
        self.problem, self.fatal = "", False
        try:
            self.spec = trainingrun.spec_of(training_run)
            if self.spec.provisioner != "existing":
                refuse_elsewhere(self.directory.store.url, self.spec.zones)
            if settled.changed(training_run):
                settled.wish(self.directory, self.spec)
            settled.settle(self.directory, self.spec)
            if self.spec.provisioner == "auto":
                settings = read_settings(self.directory)
                chosen = self._queued.chosen(settings.controller.zones, settings.cloud)
                self.spec = self.spec.model_copy(update={"provisioner": chosen})
            if self.spec.provisioner not in PROVISIONERS:
                raise ConfigurationError(
                    f"provisioner {self.spec.provisioner} is not among {', '.join(PROVISIONERS)}: choose one of them"
                )
        except ValidationError as error:
            one = error.errors()[0]
            self.problem = f"spec.{'.'.join(map(str, one['loc']))} cannot be: it {requirement(one)}"
        except (ConfigurationError, UsageError, ValueError) as error:
            self.problem = str(error)
        self.fatal = bool(self.problem) and self.directory.latest_config() is None
        self.generation = generation


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
        problem = ""
        try:
            run = self._run_of(training_run)
            run.journal.training_run = training_run
            run.settle(training_run)
            if not run.fatal:
                decision = run.reconciler.once()
            self._unreachable_since = None
        except (StorageError, Unreachable, ValueError) as error:
            self._unreachable_since = self._unreachable_since or self._clock()
            problem = f"the run directory gives no answer: {error}"
            log.warning("the run directory gives no answer", error=str(error))
        if decision is not None and self._run is not None:
            self._run.events.publish_actions(decision.actions)
            for action in decision.actions:
                self._health.actions.labels(type(action).__name__).inc()
        if going and self._is_released(decision):
            self._set_finalizers(training_run, [one for one in finalizers if one != FINALIZER])
            return "decided"
        self._write_status(training_run, decision, problem)
        return "decided" if decision is not None else "waiting"

    def _run_of(self, training_run: Object) -> Run:
        if self._run is None or self._run.uid != training_run["metadata"]["uid"]:
            self._run = Run(self._cluster, training_run, trainingrun.spec_of(training_run), self._tell, self._clock)
        return self._run

    def _tell(self, news: Tell) -> None:
        assert self._run is not None
        self._webhook.send(f"nanocode {self._run.directory.store.url}: {news.text}")

    def _is_released(self, decision: Decision | None) -> bool:
        """Whether a deleted run holds nothing any more. One that cannot be read is ended whatever it says."""
        if self._run is None:
            return False
        if decision is not None:
            return decision.resting
        given_up = self._unreachable_since is not None and self._clock() - self._unreachable_since > SECONDS_TO_GIVE_UP
        return (self._run.fatal or given_up) and self._run.end_everything()

    def _set_finalizers(self, training_run: Object, finalizers: list[str]) -> Object:
        version = training_run["metadata"]["resourceVersion"]
        metadata = {"finalizers": finalizers, "resourceVersion": version}
        return self._cluster.patch_run(self._name, {"metadata": metadata})

    # -- status --------------------------------------------------------------------------------------------------------

    def _write_status(self, training_run: Object, decision: Decision | None, problem: str) -> None:
        now = self._clock()
        if 0 <= now - self._status_at < SECONDS_BETWEEN_STATUSES:
            return
        found: dict[str, Any] | None = None
        run = self._run
        if run is not None and not run.fatal and not problem:
            try:
                found = run.status.read()
            except (StorageError, ConfigurationError) as error:
                log.warning("the run directory cannot be read for the status", error=str(error))
                return
        news = News(
            decision=decision,
            found=found,
            waits=run.waits() if run is not None else None,
            problem=problem or (run.problem if run is not None else ""),
            fatal=run is not None and run.fatal,
            image_digest=run.image_digest() if run is not None else None,
        )
        if found is not None and decision is not None:
            state = decision.state.value
            self._health.found = {**found, "state": state, "stages": trainingrun.stages_of(news)}
        status = trainingrun.status(training_run, news, now)
        if news.problem and run is not None:
            run.events.publish("Refused" if run.problem else "Unreachable", news.problem, "Warning")
        for stage, sentence in (news.waits or {}).items():
            if run is not None:
                run.events.publish("Waiting", f"{stage}: {sentence}")
        before = trainingrun.without_nulls(training_run.get("status") or {})
        if trainingrun.without_nulls(status) != before:
            version = {"resourceVersion": training_run["metadata"]["resourceVersion"]}
            self._cluster.patch_run_status(self._name, {"metadata": version, "status": status})
        self._status_at = now
