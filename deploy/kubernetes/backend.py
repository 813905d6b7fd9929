"""Attempts as Jobs of a cluster: one pod per host, under names that say which attempt it is.

What is known is read anew at every look: Jobs, pods and the nodes they are on. Nothing is decided on what is remembered
but this: a Job that was seen or made, and is not there any more, was deleted by somebody. A claim without a Job, whose
controller ended between the two, is begun by whoever looks next; two of them make the same Job, and one gets a 409.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import structlog
from pydantic import ValidationError

from deploy.controller.backend import Unreachable
from deploy.controller.observed import Process, Seen
from deploy.kubernetes import endings, pods, templates, waits
from deploy.kubernetes.client import Cluster, Conflict, Invalid, Object
from deploy.kubernetes.templates import Making
from deploy.local import keeper
from nanocode.run.attempts import ExitRecord, Stop, record, recorded
from nanocode.run.directory import Claim, RunDirectory
from nanocode.run.exits import ConfigurationError, Exit
from nanocode.run.liveness import last_sign, seems_alive
from nanocode.storage.objects import NotFound, StorageError

log = structlog.get_logger()

Key = tuple[str, int]

BRIDGE = "bridge"
"""Its template, among those of the stages."""
KEPT = 3
"""Finished attempts of each stage whose Jobs stay, for `kubectl logs`."""
SECONDS_STUCK = 60.0
"""A pod that should have ended so long ago, on a node that counts as gone, is deleted by force."""
SECONDS_TO_END_BY_ITSELF = 120.0
"""A Job that has failed ends its other pods itself."""
SECONDS_TO_COOL = 60.0
"""How long a node is left alone that took a pod and could not run it."""
FEW_NODES = 4
"""So many are asked for one by one."""


class KubernetesBackend:
    """`Backend` over Jobs."""

    def __init__(
        self,
        cluster: Cluster,
        run: RunDirectory,
        making: Callable[[], Making],
        patience: Callable[[], waits.Patience] = waits.Patience,
        proven: Callable[[str], bool] = lambda stage: False,
        clock: Callable[[], float] = time.time,
        node_pool: Callable[[str], str | None] = lambda slice: None,
    ) -> None:
        """`proven`: whether a stage's kind of node is known to exist. `node_pool`: the pool that a slice is; None where
        any node will do, `LookupError` for a slice that is gone.
        """
        self._cluster, self._run, self._making = cluster, run, making
        self._node_pool = node_pool
        self._patience, self._proven, self._clock = patience, proven, clock
        self._met, self._mirrored, self._unmirrored = set[Key](), set[Key](), set[Key]()
        self._refused: dict[Key, str] = {}
        self._ran_on: set[tuple[tuple[str, str], ...]] = set()
        self._pods: dict[Key, list[Object]] = {}
        self._nodes: dict[str, Object | None] = {}
        self._services_to_look_at = True
        self.waits: dict[Key, str] = {}
        """What attempts wait for, in a sentence."""
        self.cool_until = 0.0
        self.image_digests: dict[str, str] = {}
        """Image as a TrainingRun named it -> the same with the digest that a node pulled."""

    # -- looking -------------------------------------------------------------------------------------------------------

    def observe(self, live: Sequence[Key]) -> Mapping[Key, Seen]:
        now, owner = self._clock(), self._making().owner
        jobs = self._jobs(owner)
        self._pods = self._pods_of(jobs)
        self._nodes = self._nodes_of([pod for mine in self._pods.values() for pod in mine if not pods.finished(pod)])
        self._learn_images(jobs)
        self._met |= set(jobs)
        self.waits = {}
        found = {key: Seen(Process.RUNNING) for key in {*jobs, *self._pods} if self._is_stray(key, jobs.get(key), now)}
        for key in live:
            found[key] = self._seen(key, jobs.get(key), now)
            if found[key].process is Process.PENDING:
                self.waits[key] = found[key].reason
        self._clean(jobs, live, now)
        return found

    def _seen(self, key: Key, job: Object | None, now: float) -> Seen:
        mine = self._pods.get(key, [])
        if job is not None:
            kind = self._kind(key, mine)
            if any(endings.refused_by_its_node(pod) for pod in mine):
                self.cool_until = now + SECONDS_TO_COOL
            found = endings.seen(job, mine, self._nodes, now, self._patience(), kind)
            self._record(key, endings.exit_record(found, mine, now))
            return found
        if any(not pods.finished(pod) and not pods.node_trouble(pod, self._nodes, now) for pod in mine):
            return Seen(Process.RUNNING, reason="its Job is deleted, and its pods end")
        self._record(key, endings.exit_record_without_a_job(mine, now))
        if key in self._refused:
            return Seen(Process.EXITED, Exit.CONFIGURATION, since=now, reason=self._refused[key])
        if key in self._met or mine:
            return Seen(Process.LOST, reason="its Job was deleted")
        return self._without_a_job(key, now)

    def _record(self, key: Key, ended: ExitRecord | None) -> None:
        """`EXIT.json`: soon nobody knows any more when its pods ended. An attempt that was told to leave has none where
        its pods went, with their Job, between two looks: then `END.json` is all there is."""
        if ended is not None:
            try:
                record(self._run, *key, ended)
            except StorageError as error:
                raise Unreachable(str(error)) from error

    def _without_a_job(self, key: Key, now: float) -> Seen:
        """An attempt that is not ours, or one whose controller has not come to beginning it."""
        try:
            claim, notes = self._claim(key), self._run.store.children(self._run.attempt_folder(*key))
            if claim is None or recorded(self._run, *key, Stop) is not None:
                return Seen(Process.ABSENT)
            kept = any(name.startswith(keeper.NAME.removesuffix(".json")) for name in notes)
            if kept or not claim.who.startswith("controller "):
                if seems_alive(claim, last_sign(self._run, claim), now):
                    return Seen(Process.RUNNING, since=claim.claimed.timestamp())
                return Seen(Process.LOST, reason=f"what {claim.who} began gives no sign of life")
        except StorageError as error:
            raise Unreachable(str(error)) from error
        try:
            self._begin(*key, claim.slice)
        except LookupError as error:
            return Seen(Process.LOST, reason=str(error.args[0]))
        return Seen(Process.PENDING, since=now, reason="its Job is being made")

    def _is_stray(self, key: Key, job: Object | None, now: float) -> bool:
        """Whether something of an attempt is there that should not be once it has ended; it is asked of all."""
        if job is None:
            return any(
                not pods.finished(pod) and "deletionTimestamp" not in pod["metadata"] for pod in self._pods.get(key, ())
            )
        if endings.is_over(job):
            return False
        failed = pods.holds(job, "FailureTarget") or pods.holds(job, "SuccessCriteriaMet")
        since = pods.seconds(failed.get("lastTransitionTime")) if failed is not None else None
        return since is None or now - since > SECONDS_TO_END_BY_ITSELF

    def _kind(self, key: Key, mine: Sequence[Object]) -> waits.Kind:
        for pod in mine:
            if pods.running_since(pod) is not None:
                self._ran_on.add(tuple(sorted(waits.selector(pod).items())))
        homeless = next((pod for pod in mine if waits.unscheduled(pod)), None)
        if homeless is None:
            return waits.Kind()
        wanted = waits.selector(homeless)
        proven = tuple(sorted(wanted.items())) in self._ran_on or self._proven(key[0])
        return waits.Kind([one for one in self._cluster.list("nodes", wanted) if waits.allowed(homeless, one)], proven)

    def _jobs(self, owner: Object) -> dict[Key, Object]:
        found = {}
        for job in self._cluster.list("jobs", {templates.RUN: owner["name"]}):
            key = templates.attempt_of(job)
            if key is not None and templates.is_ours(job, owner):
                found[key] = job
        return found

    def _pods_of(self, jobs: Mapping[Key, Object]) -> dict[Key, list[Object]]:
        """Those of each Job, and those that a Job has left."""
        found: dict[Key, list[Object]] = {}
        for pod in self._cluster.list("pods", {templates.RUN: self._making().run}):
            key = templates.attempt_of(pod)
            if key is not None and (key not in jobs or templates.is_ours(pod, jobs[key]["metadata"])):
                found.setdefault(key, []).append(pod)
        for mine in found.values():
            mine.sort(key=pods.index)
        return found

    def _nodes_of(self, there: Sequence[Object]) -> dict[str, Object | None]:
        names = {name for pod in there if (name := pods.node_of(pod)) is not None}
        found: dict[str, Object | None] = {}
        if len(names) > FEW_NODES:
            for labels in {tuple(sorted(waits.selector(pod).items())) for pod in there}:
                listed = {one["metadata"]["name"]: one for one in self._cluster.list("nodes", dict(labels))}
                found |= {name: listed[name] for name in names & set(listed)}
        return found | {name: self._cluster.get("nodes", name) for name in names - set(found)}

    def _learn_images(self, jobs: Mapping[Key, Object]) -> None:
        for key, mine in self._pods.items():
            image = (jobs[key]["metadata"].get("annotations") or {}).get(templates.IMAGE) if key in jobs else None
            for digest in filter(None, map(pods.image_digest, mine)):
                if image and "@" not in image:
                    self.image_digests.setdefault(image, f"{image}@{digest}")

    def _claim(self, key: Key) -> Claim | None:
        with suppress(NotFound, ValidationError):
            text = self._run.store.read(f"{self._run.attempt_folder(*key)}/claim.json")
            return Claim.model_validate_json(text)
        return None

    # -- acting --------------------------------------------------------------------------------------------------------

    def start(self, stage: str, attempt: int, slice: str | None) -> None:
        with suppress(LookupError):  # the next look says that it is lost
            self._begin(stage, attempt, slice)

    def _begin(self, stage: str, attempt: int, slice: str | None) -> None:
        making = self._making()
        pool = self._node_pool(slice) if slice is not None else None
        try:
            job, service = templates.objects(self._template(making.templates, stage), making, stage, attempt, pool)
            self._make("services", service, making.owner)
            self._make("jobs", job, making.owner)
        except (ConfigurationError, Invalid) as error:
            self._refused[stage, attempt] = str(error)
        self._met.add((stage, attempt))

    def mirror(self, stage: str, attempt: int) -> None:
        """Have the log of an attempt that runs elsewhere shown by a pod here. Nothing depends on it: what is in its way
        is told once, and the next look tries again."""
        key, making = (stage, attempt), self._making()
        if key in self._mirrored:
            return
        try:
            job = templates.bridge(self._template(making.templates, BRIDGE), making, stage, attempt)
            self._make("jobs", job, making.owner)
            self._mirrored.add(key)
        except (ConfigurationError, Invalid, Unreachable) as error:
            if key not in self._unmirrored:
                log.warning("the log is in the bucket only", stage=stage, attempt=attempt, error=str(error))
            self._unmirrored.add(key)

    def stop(self, stage: str, attempt: int) -> None:
        # Its pods go with it, each with its grace; what they save is in the bucket, and so is what they have said.
        self._cluster.delete("jobs", templates.job_name(self._making().run, stage, attempt))

    def kill(self, stage: str, attempt: int) -> None:
        self.stop(stage, attempt)
        now = self._clock()
        for pod in self._pods.get((stage, attempt), ()):
            if not pods.finished(pod):
                self._end(pod, grace=0 if pods.node_trouble(pod, self._nodes, now) else 1)

    def forget(self, stage: str, attempt: int) -> None:
        self._services_to_look_at = True

    def end_everything(self) -> bool:
        """Have all Jobs of the run end, whatever is written about them; whether nothing of them is there any more."""
        jobs = self._jobs(self._making().owner)
        left = self._pods_of(jobs)
        for key in jobs:
            self.stop(*key)
        self._nodes = self._nodes_of([pod for mine in left.values() for pod in mine if not pods.finished(pod)])
        for pod in (pod for mine in left.values() for pod in mine):
            self._end_stuck(pod, self._clock())
        return not jobs and all(pods.finished(pod) for mine in left.values() for pod in mine)

    def _template(self, name: str, stage: str) -> str:
        found = self._cluster.get("configmaps", name)
        if found is None:
            raise ConfigurationError(f"ConfigMap {name} of spec.templates is not there: install the chart again")
        text = (found.get("data") or {}).get(f"{stage}.yaml")
        if text is None:
            raise ConfigurationError(f"ConfigMap {name} has no template for stage {stage}: install the chart again")
        return str(text)

    def _make(self, resource: str, body: Object, owner: Object) -> None:
        """Create it, unless it is there already and ours."""
        name = body["metadata"]["name"]
        with suppress(Conflict):
            self._cluster.create(resource, body)
            return
        there = next(iter(self._cluster.list(resource, {}, name)), None)
        if there is None or "deletionTimestamp" in there["metadata"]:
            raise Unreachable(f"{resource}/{name} of an earlier run is being deleted: it is waited for")
        if not templates.is_ours(there, owner):
            raise ConfigurationError(
                f"{resource}/{name} is there and is not this run's: delete it, or give the release another name"
            )

    def _end(self, pod: Object, grace: int) -> None:
        self._cluster.delete("pods", pod["metadata"]["name"], uid=pod["metadata"]["uid"], grace=grace)

    # -- cleaning up ---------------------------------------------------------------------------------------------------

    def _clean(self, jobs: Mapping[Key, Object], live: Sequence[Key], now: float) -> None:
        for key, mine in self._pods.items():
            alone = key in jobs and templates.is_split(jobs[key])
            for pod in mine:
                self._end_stuck(pod, now, at_once=alone)
        for stage in {stage for stage, _ in jobs}:
            over = sorted(number for name, number in jobs if name == stage and (name, number) not in live)
            for number in over[:-KEPT]:
                if endings.is_over(jobs[stage, number]):
                    self.stop(stage, number)
        if self._services_to_look_at:
            owner = self._making().owner
            for service in self._cluster.list("services", {templates.RUN: owner["name"]}):
                its = templates.attempt_of(service)
                if its is not None and its not in live and templates.is_ours(service, owner):
                    self._cluster.delete("services", service["metadata"]["name"])
            self._services_to_look_at = False

    def _end_stuck(self, pod: Object, now: float, at_once: bool = False) -> None:
        """Force-delete a pod that nobody is there to end: its node is gone. `at_once`: so that another replaces it."""
        should_be_gone = pods.seconds(pod["metadata"].get("deletionTimestamp"))
        stuck = should_be_gone is not None and now - should_be_gone > SECONDS_STUCK
        if (stuck or at_once) and not pods.finished(pod) and pods.node_trouble(pod, self._nodes, now):
            self._end(pod, grace=0)
