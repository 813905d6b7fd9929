"""Fake clouds for the provisioners."""

from tests.clouds.fixtures import now, tpu, world

__all__ = ["now", "tpu", "world"]
