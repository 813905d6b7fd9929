"""What a slice costs, from the price table of the settings. Pure.

None is built in, because prices change and quota may be free: what the table does not say is None, never 0.

    prices:
      chip_hour:
        us-east5-b: {v6e: {spot: 0.54, on_demand: 2.70}}
      cluster_hour: 0.10
"""

import math

from nanocode.config.settings import Controller, Prices, Settings

CORES_PER_CHIP = {"v2": 2, "v3": 2, "v4": 2, "v5p": 2}
"""Kinds whose accelerator type counts TensorCores (`v5p-8` has 4 chips); all others count chips.
cloud.google.com/tpu/docs/v5p and .../v6e, "accelerator type"."""
THERE_ANYWAY = ("pool", "local")
"""Nodes of a pool that somebody else manages, and this machine: nothing says how many chips, so only a whole price."""
GIGABYTE = 2**30
"""What Google bills as one: cloud.google.com/storage/pricing."""
HOURS_PER_MONTH = 730.0


def kind_of(accelerator_type: str) -> str:
    """The table's word for what the Cloud TPU API calls so: `v6e` of `v6e-8`."""
    return accelerator_type.partition("-")[0]


def chips_of(accelerator_type: str) -> int:
    """8 of `v6e-8`; 0 where the name says no number."""
    kind, _, count = accelerator_type.rpartition("-")
    return int(count) // CORES_PER_CHIP.get(kind, 1) if count.isascii() and count.isdecimal() else 0


def chips(settings: Settings) -> int:
    """Of one slice: node pools follow `cloud.topology`, the Cloud TPU API `cloud.accelerator_type`."""
    if settings.provisioner == "gke":
        return math.prod(int(side) for side in settings.cloud.topology.split("x"))
    return chips_of(settings.cloud.accelerator_type)


def chip_dollars(prices: Prices, zone: str, kind: str, spot: bool) -> float | None:
    """Per chip-hour; None where nobody has said it."""
    price = prices.chip_hour.get(zone, {}).get(kind)
    if price is None:
        return None
    return price.spot if spot else price.on_demand


def slice_dollars(settings: Settings, zone: str) -> float | None:
    """Per hour of a whole slice as `cloud` describes it; None where nobody has said it."""
    whole = settings.controller.dollars_per_slice_hour.get(zone)
    if whole is not None or zone in THERE_ANYWAY:
        return whole
    chip = chip_dollars(settings.prices, zone, kind_of(settings.cloud.accelerator_type), settings.cloud.spot)
    return None if chip is None else chip * chips(settings)


def priced(settings: Settings) -> Controller:
    """The controller's settings, with the price of a slice wherever the table says it."""
    zones = {*settings.controller.dollars_per_slice_hour, *settings.controller.zones, *settings.prices.chip_hour}
    found = {zone: dollars for zone in sorted(zones) if (dollars := slice_dollars(settings, zone)) is not None}
    return settings.controller.model_copy(update={"dollars_per_slice_hour": found})


def dollars_per_hour_at_work(prices: Prices) -> float:
    """What cluster and CPU nodes cost while a run is at work, as far as somebody has said it."""
    return (prices.cluster_hour or 0.0) + prices.cpu_nodes * (prices.cpu_node_hour or 0.0)


def storage_dollars(prices: Prices, byte_hours: float) -> float | None:
    """Of bytes in a bucket, each for as many hours as it was there; None where nobody has said the price."""
    if prices.storage_gb_month is None:
        return None
    return byte_hours / GIGABYTE / HOURS_PER_MONTH * prices.storage_gb_month
