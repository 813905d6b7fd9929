"""What a slice costs by the price table, and what it does not say."""

import pytest

from nanocode.config import prices
from nanocode.config.settings import Settings, from_yaml, load
from nanocode.run.digests import stage_digests
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError
from nanocode.storage.objects import LocalStore

TABLE = (
    "prices.chip_hour={us-east5-a: {v6e: {spot: 0.5, on_demand: 2.7}}, us-east5-b: {v6e: {on_demand: 2.0}, v5p: "
    "{spot: 1.5}}}"
)


def settings(*overrides: str) -> Settings:
    return load("demo", [TABLE, "controller.zones=[us-east5-a, us-east5-b, us-east1-d]", *overrides], environment={})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), {"us-east5-a": 4.0}),
        (("cloud.spot=false",), {"us-east5-a": 8 * 2.7, "us-east5-b": 16.0}),
        (("cloud.accelerator_type=v6e-16",), {"us-east5-a": 8.0}),
        (("cloud.accelerator_type=v5p-8",), {"us-east5-b": 4 * 1.5}),
        (("provisioner=gke", "cloud.topology=4x4"), {"us-east5-a": 8.0}),
        (("prices.chip_hour.pool.v6e.spot=0.5",), {"us-east5-a": 4.0}),
        (
            ("controller.dollars_per_slice_hour={us-east5-a: 3.0, us-east1-d: 9.0}",),
            {"us-east5-a": 3.0, "us-east1-d": 9.0},
        ),
    ],
)
def test_a_slice_costs_its_chips_in_its_zone(overrides: tuple[str, ...], expected: dict[str, float]) -> None:
    assert prices.priced(settings(*overrides)).dollars_per_slice_hour == pytest.approx(expected)


def test_one_price_is_set_like_any_setting() -> None:
    found = load("demo", ["prices.chip_hour.us-east5-a.v6e.spot=0.25"], environment={})
    assert prices.slice_dollars(found, "us-east5-a") == 2.0
    assert from_yaml(found.to_yaml(), "test") == found


@pytest.mark.parametrize("wrong", ["-1", ".nan", ".inf", "cheap"])
@pytest.mark.parametrize(
    "key", ["prices.chip_hour.a.v6e.spot", "prices.egress_gb", "controller.dollars_per_slice_hour.a"]
)
def test_what_is_no_price_is_refused(key: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load("demo", [f"{key}={wrong}"], environment={})
    assert key in str(error.value)


def test_prices_change_no_digest(tmp_path: object) -> None:
    run = RunDirectory(LocalStore(tmp_path))
    plain = load("demo", [f"corpus.sources={tmp_path}"], environment={})
    dear = load("demo", [f"corpus.sources={tmp_path}", TABLE, "prices.cluster_hour=0.1"], environment={})
    assert stage_digests(plain, run) == stage_digests(dear, run)


def test_a_bucket_costs_by_byte_and_time() -> None:
    known = settings("prices.storage_gb_month=0.03").prices
    assert prices.storage_dollars(known, 100 * 2**30 * 730) == pytest.approx(3.0)
    assert prices.storage_dollars(settings().prices, 1) is None
