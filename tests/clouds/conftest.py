"""The fixtures, for the tests of the fakes themselves."""

from tests.clouds.fixtures import clouds, now, tpu

__all__ = ["clouds", "now", "tpu"]
