"""What jax is told on a TPU VM: on GKE the chart and the device plugin say it, here nobody else does.

The metadata server lists the VMs of a slice by process id, and calls them by host name or by `name:id:address`
(jax/_src/clusters/cloud_tpu_cluster.py).
"""

from dataclasses import dataclass

from nanocode.config.prices import chips_of
from nanocode.run import near
from nanocode.run.directory import RunDirectory
from nanocode.storage.gcs import bucket_of
from nanocode.storage.objects import open_store

COORDINATOR_PORT = 8482
"""Of jax's own choice, and the chart's."""
CHIP_BOUNDS = {1: "1,1,1", 4: "2,2,1", 8: "2,4,1"}
"""How the chips of one host are wired."""


@dataclass(frozen=True)
class Host:
    """One of the VMs that an attempt runs on."""

    worker: int
    of: int
    """Hosts of the attempt."""
    vms: int
    """Of the slice."""
    endpoints: str = ""
    """The metadata's `worker-network-endpoints`."""
    accelerator_type: str = ""


def environment(host: Host, cache: str | None) -> dict[str, str]:
    """Of the stage's process. `cache`: where compiled programs are kept, if anywhere."""
    # A list: where the first cannot be had, jax ends instead of training on the CPU.
    found = {"JAX_PLATFORMS": "tpu,cpu"}
    if cache is not None:
        found["JAX_COMPILATION_CACHE_DIR"] = cache
    if host.of > 1:
        first = host.endpoints.partition(",")[0].rpartition(":")[2]
        found["JAX_NUM_PROCESSES"] = str(host.of)
        found["JAX_PROCESS_ID"] = str(host.worker)
        found["JAX_COORDINATOR_ADDRESS"] = f"{first}:{COORDINATOR_PORT}"
    elif host.vms > 1:
        # libtpu shall not wait for the other hosts: github.com/pytorch/xla/issues/7714.
        found["TPU_PROCESS_BOUNDS"] = "1,1,1"
        bounds = CHIP_BOUNDS.get(chips_of(host.accelerator_type) // host.vms)
        if bounds is not None:  # else libtpu goes by the metadata
            found["TPU_CHIPS_PER_PROCESS_BOUNDS"] = bounds
    return found


def compile_cache(run_dir: str, slice: str) -> str | None:
    """`<bucket>/cache/jax` in the slice's own region, which runs share; None for a run that is in no bucket."""
    if not run_dir.startswith("gs://"):
        return None
    place = near.of_slice(RunDirectory(open_store(run_dir)), slice)
    return f"{bucket_of(place.url if place is not None else run_dir)}/cache/jax"
