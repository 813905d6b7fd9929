"""Strict globals for every test and its child processes: 8 fake CPU devices, no cloud, no environment settings.

Ranks are never promoted silently. Strict dtype promotion is not on: optax's bias correction takes float ** int32.
"""

import os
import tempfile
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

# Time is no property of what is tested: the first text costs a second, and so does a machine that has other work.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one process has compiled the others load, for as long as these tests run.
    _compiled = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
for _name in [name for name in os.environ if name.startswith("NANOCODE_")]:
    del os.environ[_name]


@pytest.fixture(autouse=True)
def _no_log_of_another_test() -> Iterator[None]:
    """A command sets up its log for the streams of its process; those that a test captures are closed after it."""
    yield
    structlog.reset_defaults()
