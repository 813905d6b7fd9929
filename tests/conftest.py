"""Strict globals for every test and its child processes: 8 fake CPU devices, no cloud, no environment settings.

Ranks are never promoted silently. Strict dtype promotion is not on: optax's bias correction takes float ** int32.
"""

import os

from hypothesis import HealthCheck, settings

# Time is no property of what is tested: the first text costs a second, and so does a machine that has other work.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
for _name in [name for name in os.environ if name.startswith("NANOCODE_")]:
    del os.environ[_name]
