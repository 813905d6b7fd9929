"""What a controller keeps of one TrainingRun: its journal, its backend, and whoever makes its slices."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from pydantic import ValidationError

from deploy.controller.actions import Tell
from deploy.controller.backend import Provisioner, Unreachable
from deploy.controller.decision import Decision
from deploy.controller.journal import Written
from deploy.controller.observed import Slice
from deploy.controller.reconcile import Reconciler
from deploy.controller.record import RunJournal
from deploy.kubernetes import settled, templates, trainingrun
from deploy.kubernetes.backend import KubernetesBackend
from deploy.kubernetes.client import Cluster, Object
from deploy.kubernetes.events import Events
from deploy.kubernetes.node_pools import NodePoolView
from deploy.kubernetes.provisioner import EXISTING, ByMaker, ExistingPool
from deploy.kubernetes.queued_slices import QueuedSlices
from deploy.kubernetes.trainingrun import POOL, Spec
from deploy.kubernetes.waits import Patience
from deploy.provisioners import gke_client
from deploy.provisioners.gke import NodePools
from deploy.provisioners.here_and_there import HereAndThere
from deploy.provisioners.labels import run_label
from deploy.provisioners.regions import refuse_elsewhere
from nanocode.config.refusals import requirement
from nanocode.config.settings import Cloud, Settings, load
from nanocode.config.settings import Controller as Policy
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError, UsageError
from nanocode.run.status import Status
from nanocode.storage.objects import open_store

GKE, QUEUED, AUTO = "gke", "queued-resource", "auto"
PROVISIONERS = (EXISTING, GKE, QUEUED, AUTO)
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
        self.journal.training_run = training_run
        self.events = Events(cluster, training_run, clock)
        self.backend = KubernetesBackend(
            cluster, self.directory, self.making, self._patience, self._is_proven, clock, self._node_pool
        )
        self._cluster, self._clock = cluster, clock
        self._existing = ExistingPool(self.journal.price_of_a_pool, self._nodes_are_cool)
        self._pools: NodePools | None = None
        self._queued = QueuedSlices(self.directory, self._cloud_with_image, lambda: self.journal.slices, clock)
        self.journal.waits = self.waits
        self.journal.maker = self._asked
        attempts = HereAndThere(self.backend, self._queued.vms, self._is_on_vms, self.backend.mirror)
        provisioner = ByMaker(self._asked, self._held, self._made_by)
        self.reconciler = Reconciler(self.journal, attempts, provisioner, tell, clock)
        self.status = Status(self.directory.store.url, clock)
        self.recorded_image: str | None = (training_run.get("status") or {}).get("imageDigest")
        self.namespace = cluster.namespace
        self.problem, self.fatal, self.is_settled = "", False, False

    def making(self) -> templates.Making:
        """With the templates and the image that the chart has installed last, though the rest of their spec be refused:
        those of before are gone from the cluster, and this controller is of the same version as these."""
        spec = self.journal.training_run["spec"]
        return templates.Making(
            run=self.reference["name"],
            namespace=self.namespace,
            owner=self.reference,
            templates=spec["templates"],
            image=spec["image"],
            pinned=templates.by_digest(spec["image"], self.image_digest()),
        )

    def image_digest(self) -> str | None:
        """The image that the TrainingRun names, with the digest it had when a node pulled it first."""
        image = self.journal.training_run["spec"]["image"]
        if self.recorded_image is not None and self.recorded_image.startswith(f"{image}@"):
            return self.recorded_image
        return self.backend.image_digests.get(image)

    def waits(self) -> dict[str, str]:
        there = {**self.backend.waits, **self._queued.vms.waits}
        return {stage: sentence for (stage, _), sentence in there.items()}

    def _nodes_are_cool(self) -> bool:
        return self._clock() >= self.backend.cool_until

    def _asked(self) -> str:
        """Whom new slices are asked of; who made the last one while this controller has seen no spec that can be."""
        if self.is_settled:
            return self.spec.provisioner
        return self.journal.last_maker() or self.spec.provisioner

    def _made_by(self, maker: str) -> Provisioner:
        if maker == EXISTING:
            return self._existing
        if maker == GKE:
            return self._node_pools()
        if maker == QUEUED:
            return self._queued.provisioner()
        raise Unreachable(f"nobody is asked for slices: {self.problem or f'provisioner {maker} is not decided'}")

    def _maker(self, one: Slice) -> str:
        """A slice of a controller that did not write it down is whose the spec says, or a node pool."""
        return one.maker or (asked if (asked := self._asked()) in (GKE, QUEUED) else GKE)

    def _held(self) -> dict[str, str]:
        """Slices that are not gone, and who made each."""
        return {one.name: self._maker(one) for one in self.journal.slices if one.requested and one.gone is None}

    @property
    def _makers(self) -> set[str]:
        """Whom slices are asked of, and who made those that are left."""
        return {self._asked(), *self._held().values()}

    def _is_on_vms(self, slice: str | None) -> bool:
        if slice in (None, POOL):
            return False
        made = {one.name: self._maker(one) for one in self.journal.slices}
        return made.get(slice or "", self._asked()) == QUEUED

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

    def mistake_seconds(self) -> float:
        """How long a mistake is waited for: while nothing could be read of the run yet, as its spec asks."""
        policy = self.journal.policy
        if self.journal.last is None:
            with suppress(ConfigurationError, UsageError, ValueError):
                policy = load(self.spec.preset, trainingrun.overrides(self.spec), environment={}).controller
        return policy.mistake_minutes * 60

    def _refuse_elsewhere(self, spec: Spec, settings: Settings) -> None:
        if spec.provisioner == EXISTING:
            return
        asked = spec.provisioner
        if asked == AUTO and settings.cloud.buckets:
            asked = self._queued.chosen(settings.controller.zones, settings.cloud)
        refuse_elsewhere(self.directory.store.url, settings, second=asked != GKE)

    def settle(self, training_run: Object) -> None:
        """Take up a spec that has changed, whole or not at all; `problem` says what is wrong with it.

        Raises `StorageError` without an answer.
        """
        generation = training_run["metadata"].get("generation", 1)
        if generation == self.generation:
            return
        self.problem, self.fatal, held = "", False, tuple[str, ...]()
        try:
            spec = trainingrun.spec_of(training_run)
            if spec.provisioner not in PROVISIONERS:
                raise ConfigurationError(
                    f"provisioner {spec.provisioner} is not among {', '.join(PROVISIONERS)}: choose one of them"
                )
            if settled.changed(training_run):
                settled.wish(self.directory, spec)
            settings = settled.settle(self.directory, spec, partial(self._refuse_elsewhere, spec))
            if spec.provisioner == AUTO:
                chosen = self._queued.chosen(settings.controller.zones, settings.cloud)
                spec = spec.model_copy(update={"provisioner": chosen})
            self.spec, self.is_settled = spec, True
        except ValidationError as error:
            one = error.errors()[0]
            self.problem = f"spec.{'.'.join(map(str, one['loc']))} cannot be: it {requirement(one)}"
        except (ConfigurationError, UsageError, ValueError) as error:
            self.problem = str(error)
        if self.problem:
            with suppress(ConfigurationError):  # then nothing at all can be decided, and every round says why
                held = settled.held(self.directory)
        if held:
            self.problem += f"; until then nothing of {', '.join(held)} begins, and what lives of it goes on"
        self.journal.held = held
        self.fatal = bool(self.problem) and self.directory.latest_config() is None
        self.generation = generation
