"""Strict globals for every test: 8 fake CPU devices, no cloud, no environment settings."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
for _name in [name for name in os.environ if name.startswith("NANOCODE_")]:
    del os.environ[_name]
