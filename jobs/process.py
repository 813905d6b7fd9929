"""The process of a stage: what it is made of, when it began, and how much memory it has taken."""

import importlib.metadata
import os
import platform
import resource
import time
from pathlib import Path

RECORDED_PACKAGES = ("nanocode", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")
IMPORTED = time.time()


def versions() -> dict[str, str]:
    """What made the outputs: recorded in the marker, part of no digest."""
    found = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def process_started() -> float:
    """Unix time at which this process began; without /proc, when this module was imported."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return IMPORTED


def peak_memory_bytes() -> int:
    """The most that this process has held; getrusage would count what its parent held when it forked."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):  # no Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
