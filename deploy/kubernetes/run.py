"""What a controller keeps of one TrainingRun: its journal, its backend, and whoever makes its slices."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from deploy.controller.actions import Tell
from deploy.controller.backend import Provisioner, Unreachable
from deploy.controller.observed import Slice
from deploy.controller.reconcile import Reconciler
from deploy.kubernetes import settled, templates, trainingrun
from deploy.kubernetes.backend import KubernetesBackend
from deploy.kubernetes.client import Cluster, Object
from deploy.kubernetes.events import Events
from deploy.kubernetes.journal import KubernetesJournal
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
from nanocode.config.settings import Cloud, Settings, load
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError, UsageError
from nanocode.run.status import Status
from nanocode.storage.objects import open_store

GKE, QUEUED, AUTO = "gke", "queued-resource", "auto"
PROVISIONERS = (EXISTING, GKE, QUEUED, AUTO)


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

    def _settings(self) -> Settings | None:
        """Of the run; as its spec asks while they could not be read yet."""
        if self.journal.settings is not None:
            return self.journal.settings
        with suppress(ConfigurationError, UsageError, ValueError):
            return load(self.spec.preset, trainingrun.overrides(self.spec), environment={})
        return None

    def _cloud(self) -> Cloud:
        settings = self._settings()
        return settings.cloud if settings is not None else Cloud()

    def _asked(self) -> str:
        """Whom new slices are asked of; while this controller has seen no spec that can be: who made the last one."""
        if self.is_settled or not self.problem:
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
        cloud = self._cloud()
        return cloud if cloud.image is not None else cloud.model_copy(update={"image": self.making().pinned})

    def _node_pools(self) -> NodePools:
        if self._pools is None:
            cloud, run = self._cloud(), self.reference["name"]
            container = gke_client.connect(cloud)
            view = NodePoolView(self._cluster, run, lambda: self._cloud().machine_type, self._clock)
            owner, label = cloud.owner or self.namespace, run_label(self.directory.store.url)
            self._pools = NodePools(
                container,
                label,
                owner,
                view,
                self._cloud,
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

    def end_everything(self, patient: bool) -> bool:
        """Have Jobs and slices of the run go, whatever is written about them; whether nothing is left.

        Whoever may have made a slice is asked, which is everybody while that cannot be read. `Unreachable` without an
        answer of one who has, and `patient` or not; any other is let be once we are not, and an event says so.
        """
        is_over = self.backend.end_everything()
        silent = {}
        for maker in sorted(self._possible_makers() & {GKE, QUEUED}):
            try:
                is_over = self._release_all(maker) and is_over
            except Unreachable as error:
                silent[maker] = str(error)
        waited_for = [why for maker, why in silent.items() if patient or maker in self._held().values()]
        if waited_for:
            raise Unreachable("; ".join(waited_for))
        for maker, why in silent.items() if is_over else ():
            look = f"`nanocode slices {self.directory.store.url}` shows what is left"
            self.events.publish("NotAsked", f"provisioner {maker} was not asked for slices: {why}; {look}", "Warning")
        return is_over

    def _possible_makers(self) -> set[str]:
        is_known = self.fatal or (self.journal.last is not None and self._asked() != AUTO)
        return self._makers if is_known else {*self._makers, GKE, QUEUED}

    def _release_all(self, maker: str) -> bool:
        if maker == GKE:
            return self._node_pools().release_all()
        settings = self._settings()
        zones = settings.controller.zones if settings is not None else self.spec.zones
        return self._queued.provisioner().release_all(sorted({*zones, *(one.zone for one in self.journal.slices)}))

    def _patience(self) -> Patience:
        policy = self.journal.policy
        return Patience(policy.mistake_minutes * 60, policy.provision_minutes * 60, policy.admission_minutes * 60)

    def mistake_seconds(self) -> float:
        """How long a mistake is waited for: while nothing could be read of the run yet, as its spec asks."""
        settings = self._settings()
        return (settings.controller if settings is not None else self.journal.policy).mistake_minutes * 60

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
