"""What a slice costs, from the price table of the settings. Pure.

None is built in, because prices change and quota may be free: what the table does not say is None, never 0.

    prices:
      chip_hour:
        us-east5-b: {v6e: {spot: 0.54, on_demand: 2.70}}
      cluster_hour: 0.10
"""

import math

from nanocode.config.settings import Cloud, Controller, Prices, Settings

CORES_PER_CHIP = {"v2": 2, "v3": 2, "v4": 2, "v5p": 2}
"""Kinds whose accelerator type counts TensorCores (`v5p-8` has 4 chips); all others count chips.
cloud.google.com/tpu/docs/v5p and .../v6e, "accelerator type"."""
GIGABYTE = 2**30
"""What Google bills as one: cloud.google.com/storage/pricing."""
HOURS_PER_MONTH = 730.0


def kind(cloud: Cloud) -> str:
    """The table's word for the accelerator of a slice: `v6e` of `v6e-8`."""
    return cloud.accelerator_type.partition("-")[0]


def chips(settings: Settings) -> int:
    """Of one slice: node pools follow `cloud.topology`, the Cloud TPU API `cloud.accelerator_type`."""
    cloud = settings.cloud
    if settings.provisioner == "gke":
        return math.prod(int(side) for side in cloud.topology.split("x"))
    return int(cloud.accelerator_type.rpartition("-")[2]) // CORES_PER_CHIP.get(kind(cloud), 1)


def chip_dollars(prices: Prices, zone: str, kind: str, spot: bool) -> float | None:
    """Per chip-hour; None where nobody has said it."""
    price = prices.chip_hour.get(zone, {}).get(kind)
    if price is None:
        return None
    return price.spot if spot else price.on_demand


def slice_dollars(settings: Settings, zone: str) -> float | None:
    """Per hour of a whole slice as `cloud` describes it; None where nobody has said it."""
    whole = settings.controller.dollars_per_slice_hour.get(zone)
    if whole is not None:
        return whole
    chip = chip_dollars(settings.prices, zone, kind(settings.cloud), settings.cloud.spot)
    return None if chip is None else chip * chips(settings)


def priced(settings: Settings) -> Controller:
    """The controller's settings, with the price of a slice wherever the table says it."""
    zones = {*settings.controller.dollars_per_slice_hour, *settings.controller.zones, *settings.prices.chip_hour}
    found = {zone: dollars for zone in sorted(zones) if (dollars := slice_dollars(settings, zone)) is not None}
    return settings.controller.model_copy(update={"dollars_per_slice_hour": found})


def dollars_per_hour_at_work(prices: Prices) -> float:
    """What cluster and CPU nodes cost while a run is at work, as far as somebody has said it."""
    return (prices.cluster_hour or 0.0) + prices.cpu_nodes * (prices.cpu_node_hour or 0.0)


def copy_dollars(prices: Prices, size: int, hours: float = HOURS_PER_MONTH) -> float | None:
    """Of a copy of so many bytes in another region, and of keeping it there; None where a price is missing."""
    if prices.egress_gb is None or prices.storage_gb_month is None:
        return None
    return size / GIGABYTE * (prices.egress_gb + prices.storage_gb_month * hours / HOURS_PER_MONTH)
