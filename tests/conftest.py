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
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
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


@pytest.hookimpl(tryfirst=True)  # before xdist's, which reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `make test`, which runs two groups at a time: one that computes beside those that wait.

    A group is a file, or what names one: the tests that share a trained run. The longest begins first.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.location[0]))
    items.sort(key=_rank)


def pytest_collection_finish(session: pytest.Session) -> None:
    """xdist knows the groups: each run that tests share is trained once."""
    if getattr(session.config.option, "loadgroup", False):
        assert all("@" in item.nodeid for item in session.items), "xdist 3.8.0 cannot mark groups in pytest 9.2"


def _rank(item: pytest.Item) -> int:
    group = item.get_closest_marker("xdist_group")
    assert group is not None
    if group.args == ("trained",):
        return 0
    return 1 if item.location[0].startswith("tests/deploy/") else 2
