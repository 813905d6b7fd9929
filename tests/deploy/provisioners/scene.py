"""A run from beginning to end on a fake cloud: the real controller and journal, the real client, and work that takes time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from deploy.controller.backend import Provisioner
from deploy.controller.decision import Decision, State
from deploy.controller.journal import Written
from deploy.controller.observed import Process, Seen, Slice
from deploy.controller.reconcile import Reconciler
from deploy.controller.record import RunJournal
from nanocode.config.settings import load
from nanocode.run.digests import stage_digests
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.intent import change_intent
from nanocode.run.settling import read_settings
from nanocode.storage.objects import open_store
from tests.clouds.fixtures import Now
from tests.clouds.world import World

LOOK = 15.0
CHIPS = 8
WORK = 1200.0
"""Seconds that the stage takes, whatever it is cut into."""


class Ground(Protocol):
    """A fake cloud, as a run needs it."""

    now: Now
    world: World

    def provisioner(self, recorded: Callable[[], Iterable[Slice]]) -> Provisioner:
        """As a controller has it that has just begun."""

    def place(self, slice: str) -> str:
        """Where the pods of a slice run."""

    def wait_for(self, place: str) -> None:
        """A pod needs it, from now until `leave`."""

    def leave(self, place: str) -> None: ...

    def is_ready(self, place: str) -> bool:
        """Whether a pod could run there."""


@dataclass
class Pod:
    """One that needs the machines of a slice."""

    place: str
    running: float | None = None
    ended: Seen | None = None


class Pods:
    """`Backend`: a pod runs once its machines are ready, and vanishes with them. What is done of the work is never
    lost."""

    def __init__(self, ground: Ground, run: RunDirectory) -> None:
        self._ground, self._run = ground, run
        self.pods: dict[tuple[str, int], Pod] = {}
        self.done = 0.0

    def observe(self, live: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], Seen]:
        return {key: self._seen(key, pod) for key, pod in self.pods.items() if key in live or pod.ended is None}

    def _seen(self, key: tuple[str, int], pod: Pod) -> Seen:
        now = self._ground.now()
        if pod.ended is not None:
            return pod.ended
        if pod.running is None:
            if not self._ground.is_ready(pod.place):
                return Seen(Process.PENDING, since=now)
            pod.running = now
        elif not self._ground.is_ready(pod.place):
            self._end(pod, Seen(Process.LOST, reason="its machines are gone"))
        elif self.done + now - pod.running >= WORK:
            self.publish(*key)
            self._end(pod, Seen(Process.EXITED, 0))
        return pod.ended or Seen(Process.RUNNING, since=pod.running)

    def _end(self, pod: Pod, seen: Seen) -> None:
        self.done += self._ground.now() - pod.running if pod.running is not None else 0.0
        pod.ended = seen
        self._ground.leave(pod.place)

    def publish(self, stage: str, attempt: int) -> None:
        digest = stage_digests(read_settings(self._run), self._run)[stage]
        at = datetime.fromtimestamp(self._ground.now(), UTC)
        self._run.finish(
            stage, Marker(stage=stage, input_digest=digest, attempt=attempt, outputs={"x": "y"}, started=at, ended=at)
        )

    def start(self, stage: str, attempt: int, slice: str | None) -> None:
        assert slice is not None
        self.pods[stage, attempt] = Pod(place := self._ground.place(slice))
        self._ground.wait_for(place)

    def stop(self, stage: str, attempt: int) -> None:
        pod = self.pods.get((stage, attempt))
        if pod is not None and pod.ended is None:
            self._end(pod, Seen(Process.EXITED, 75))

    kill = stop

    def forget(self, stage: str, attempt: int) -> None:
        """Nothing is kept."""


class Journal(RunJournal):
    """One that remembers what it has read last."""

    slices: tuple[Slice, ...] = ()

    def read(self) -> Written:
        written = super().read()
        self.slices = written.slices
        return written


class Scene:
    """One run of one accelerator stage; controllers come and go."""

    def __init__(self, ground: Ground, folder: Path, prices: Mapping[str, float], *settings: str) -> None:
        """`prices`: by zone, of a slice by the hour; its zones are those of the run, in that order."""
        self.ground, self.prices = ground, prices
        self.run = RunDirectory(open_store(folder / "run"))
        sets = [
            "corpus.sources=[{location: gs://elsewhere/text}]",
            f"controller.seconds_between_looks={LOOK}",
            f"controller.zones=[{', '.join(prices)}]",
            f"controller.dollars_per_slice_hour={{{', '.join(f'{zone}: {price}' for zone, price in prices.items())}}}",
            "controller.start_minutes=600",
        ]
        self.run.add_config(load("demo", [*sets, *settings], environment={}).to_yaml())
        self.pods = Pods(ground, self.run)
        for stage in ("tokenizer", "corpus"):
            self.pods.publish(stage, 0)
        change_intent(self.run, stages=("pretrain",))
        self.begin()

    def begin(self) -> None:
        """A controller that knows nothing takes over."""
        self.journal = Journal(self.run)
        provisioner = self.ground.provisioner(lambda: self.journal.slices)
        self.controller = Reconciler(self.journal, self.pods, provisioner, lambda tell: None, self.ground.now)

    def look(self) -> Decision:
        self.ground.now.seconds += LOOK
        return self.controller.once()

    def until(
        self, state: State | None = None, minutes: float = 180, every: int = 7, resting: bool = False
    ) -> Decision:
        """Look after look, with another controller now and then."""
        for number in range(int(minutes * 60 / LOOK)):
            if number % every == every - 1:
                self.begin()
            decision = self.look()
            if decision.state is state and (decision.resting or not resting):
                return decision
        raise AssertionError(f"{decision.state}: {decision.reason}, {decision.stages}")

    def until_it_works(self) -> None:
        self.look()
        while not any(pod.running is not None and pod.ended is None for pod in self.pods.pods.values()):
            self.look()

    def lose_a_slice(self, zone: str) -> None:
        """Work on one for a while; then it is taken away between two looks."""
        self.until_it_works()
        for _ in range(20):
            self.look()
        self.ground.now.seconds += LOOK / 3
        assert self.ground.world.preempt(zone) is not None

    @property
    def slices(self) -> list[Slice]:
        """In the order in which they were asked for."""
        return sorted(self.journal.read().slices, key=lambda one: int(one.name.rpartition("-")[2]))

    @property
    def zones(self) -> list[str]:
        return [one.zone for one in self.slices]

    def ledger(self) -> float:
        """Dollars, by the cloud."""
        return self.ground.world.bill({zone: price / CHIPS for zone, price in self.prices.items()})
