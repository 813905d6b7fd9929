"""Which API a project has quota in, read from answers of the form that the Service Usage API documents."""

from typing import Any

import pytest

from deploy.provisioners.auto import Quotas, choose, read
from nanocode.config.settings import Cloud
from nanocode.run.exits import ConfigurationError

ZONES = ("us-east5-b", "europe-west4-a")


def limit(metric: str, name: str, *buckets: tuple[int, dict[str, str]]) -> dict[str, Any]:
    found = [{"effectiveLimit": str(value), "dimensions": where} for value, where in buckets]
    return {"metric": metric, "consumerQuotaLimits": [{"name": f"x/limits/{name}", "quotaBuckets": found}]}


def tpu(kind: str, zone: str, chips: int) -> dict[str, Any]:
    name = f"TPU{kind}PerProjectPerZoneForTPUAPI"
    return limit(f"tpu.googleapis.com/tpu-{kind.lower()}", name, (0, {}), (chips, {"zone": zone}))


def compute(chips: int, spot: bool = True) -> dict[str, Any]:
    name = f"{'PREEMPTIBLE-' if spot else ''}TPUS-PER-TPU-FAMILY-per-project-region"
    metric = f"compute.googleapis.com/{'preemptible_' if spot else ''}tpus_per_tpu_family"
    others = (99, {"region": "us-east5", "tpu_family": "CT5LP"})
    return limit(metric, name, (0, {}), others, (chips, {"region": "us-east5", "tpu_family": "CT6E"}))


def quotas(*metrics: dict[str, Any], pages: int = 1, cloud: Cloud | None = None) -> Quotas:
    def fetch(url: str) -> dict[str, Any]:
        service = url.partition("/services/")[2].partition("/")[0]
        mine = [one for one in metrics if one["metric"].startswith(service)]
        page = int(url.partition("pageToken=")[2] or 0)
        more = {"nextPageToken": str(page + 1)} if page + 1 < pages else {}
        return {"metrics": mine[page::pages], **more}

    return read("lab", ZONES, cloud or Cloud(), fetch)


def test_the_grant_of_the_tpu_research_cloud_is_used_by_queued_resources() -> None:
    found = quotas(tpu("V6EPreemptible", "europe-west4-a", 64), tpu("V6E", "us-east5-b", 8), compute(0))
    assert found == Quotas(tpu=64, compute=0)
    name, why = choose(found, Cloud(), has_cluster=True)
    assert name == "queued-resource" and "64 chips in the Cloud TPU API" in why


def test_quota_of_compute_engine_is_used_by_node_pools_of_a_cluster() -> None:
    found = quotas(compute(16), compute(99, spot=False), tpu("V5Preemptible", ZONES[0], 8))
    assert found == Quotas(tpu=0, compute=16)
    assert choose(found, Cloud(), has_cluster=True)[0] == "gke"
    with pytest.raises(ConfigurationError, match="only a GKE cluster can use"):
        choose(found, Cloud(), has_cluster=False)


def test_the_smallest_of_all_limits_of_a_zone_counts_and_the_best_zone() -> None:
    both = [tpu("V6EPreemptible", "us-east5-b", 64), tpu("V6EPreemptible", "europe-west4-a", 16)]
    region = limit(
        "tpu.googleapis.com/x", "TPUV6EPreemptiblePerProjectPerRegionForTPUAPI", (32, {"region": "us-east5"})
    )
    assert quotas(both[0], region).tpu == 32
    assert quotas(limit("tpu.googleapis.com/x", "TPUV6EPreemptible", (-1, {})), pages=3).tpu > 10**6


def test_without_quota_it_says_what_there_is_and_what_is_needed() -> None:
    with pytest.raises(ConfigurationError, match="4 chips in the Cloud TPU API and 0 chips .*v6e-8 needs 8"):
        choose(Quotas(4, 0), Cloud(), has_cluster=True)


def test_on_demand_slices_draw_another_quota() -> None:
    assert quotas(tpu("V6E", "us-east5-b", 8), compute(8), cloud=Cloud(spot=False)) == Quotas(tpu=8, compute=0)
