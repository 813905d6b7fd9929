"""Fake clouds on loopback, over a world whose clock a test moves."""

from collections.abc import Iterator

import pytest

from tests.clouds.tpu import TpuServer, TpuService
from tests.clouds.world import World, Zone


class Now:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def clouds(now: Now) -> World:
    world = World(now)
    world.zones["us-east5-b"] = Zone(capacity=16, quota=16)
    world.zones["europe-west4-a"] = Zone(capacity=16, quota=8)
    return world


@pytest.fixture
def tpu(clouds: World) -> Iterator[TpuServer]:
    server = TpuServer(TpuService(clouds))
    yield server
    server.close()
