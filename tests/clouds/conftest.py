"""The fixtures, for the tests of the fakes themselves."""

from tests.clouds.fixtures import now, tpu, world

__all__ = ["now", "tpu", "world"]
