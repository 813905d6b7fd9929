"""A cluster of the fake GKE, a clock, and the provisioner of a run in it."""

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from deploy.controller.observed import Slice
from deploy.provisioners.gke import NodePools
from deploy.provisioners.gke_client import Container
from deploy.provisioners.labels import run_label
from nanocode.config.settings import Cloud
from tests.clouds.fixtures import Now
from tests.clouds.gke import FakeGke
from tests.clouds.world import World, Zone

A, B, C = "us-east5-a", "us-east5-b", "us-east5-c"
URL = "gs://bucket/d24"
RUN = run_label(URL)
FOUR_HOSTS = {"machine_type": "ct6e-standard-4t", "topology": "4x4"}


class Lab:
    """Zones A and B have room for two slices of v6e-8, C has none."""

    def __init__(self, **how: Any) -> None:
        self.now = Now()
        self.world = World(self.now)
        self.world.zones = {A: Zone(capacity=16), B: Zone(capacity=16), C: Zone(capacity=0)}
        self.gke = FakeGke(self.world, **how)
        self.cloud = Cloud(owner="ada")
        self.pools = self.another()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.gke.close()

    def another(
        self,
        url: str = URL,
        seconds: tuple[float, float] = (5.0, 5.0),
        recorded: Callable[[], Iterable[Slice]] = tuple,
    ) -> NodePools:
        """As a controller has it that has just begun."""
        container, label = Container(self.gke.where, self.gke.client, seconds), run_label(url)
        return NodePools(container, label, "ada", self.gke.view, lambda: self.cloud, self.now, recorded=recorded)

    # -- as the ground of a `Scene` ------------------------------------------------------------------------------------

    def provisioner(self, recorded: Callable[[], Iterable[Slice]]) -> NodePools:
        self.pools = self.another(recorded=recorded)
        return self.pools

    def place(self, slice: str) -> str:
        return self.pools.pool_of(slice)

    def wait_for(self, place: str) -> None:
        self.gke.wait_for(place)

    def leave(self, place: str) -> None:
        self.gke.leave(place)

    def is_ready(self, place: str) -> bool:
        return self.gke.is_ready(place)

    # -- looking -------------------------------------------------------------------------------------------------------

    def shape(self, **changes: str) -> None:
        self.cloud = self.cloud.model_copy(update=changes)

    def after(self, seconds: float) -> dict[str, Slice]:
        """What is there so much later."""
        self.now.seconds += seconds
        return dict(self.pools.observe())

    def calls(self, method: str) -> int:
        return self.world.calls.count(method)

    @property
    def names(self) -> list[str]:
        """Of the pools that are there."""
        self.world.settle()
        return sorted(self.gke.pools)
