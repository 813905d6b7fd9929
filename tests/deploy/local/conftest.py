"""Worlds, and their end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.local.world import World
from tests.gcs import gcs_url

__all__ = ["gcs_url"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes worlds; nothing of them outlives the test."""
    made: list[World] = []

    def make(*settings: str, **plays: str) -> World:
        made.append(World(tmp_path / f"world-{len(made)}", *settings, **plays))
        return made[-1]

    yield make
    for one in made:
        one.close()
