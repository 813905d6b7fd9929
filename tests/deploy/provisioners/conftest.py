"""Fake clouds for the provisioners, and worlds of real processes."""

from tests.clouds.fixtures import clouds, now, tpu
from tests.deploy.local.conftest import world

__all__ = ["clouds", "now", "tpu", "world"]
