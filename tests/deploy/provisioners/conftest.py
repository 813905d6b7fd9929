"""Fake clouds for the provisioners, and worlds of real processes."""

from tests.clouds.fixtures import clouds, now, tpu
from tests.deploy.local.conftest import world
from tests.gcs import gcs_url

__all__ = ["clouds", "gcs_url", "now", "tpu", "world"]
