"""Where slices of another region read and save: a folder of their bucket that no other run has."""

import pytest

from nanocode.config.settings import load
from nanocode.run import near
from nanocode.run.exits import ConfigurationError

BUCKETS = {"europe-west4": "gs://europe", "us-east5": "gs://mine"}


@pytest.mark.parametrize(
    ("region", "run", "place"),
    [
        ("europe-west4", "gs://mine/d24", "gs://europe/mine/d24"),
        ("europe-west4", "gs://mine", "gs://europe/mine"),
        ("europe-west4", "gs://yours/d24", "gs://europe/yours/d24"),
        ("europe-west4", "gs://europe/d24", None),
        ("europe-west4", "gs://europes/d24", "gs://europe/europes/d24"),
        ("us-east5", "gs://mine", None),
        ("us-east1", "gs://mine/d24", None),
    ],
)
def test_a_region_has_a_folder_for_each_run(region: str, run: str, place: str | None) -> None:
    assert near.address(BUCKETS, region, run) == place


def test_the_settings_name_all_folders_of_a_run() -> None:
    sets = [
        "corpus.sources=[{location: gs://elsewhere/text}]",
        "cloud.buckets={europe-west4: gs://europe, a: gs://mine}",
    ]
    assert near.addresses(load("demo", sets, environment={}), "gs://mine/d24") == ["gs://europe/mine/d24"]


def test_a_bucket_is_an_address_without_a_path() -> None:
    for wrong in ("europe", "gs://europe/folder", "gs://"):
        with pytest.raises(ConfigurationError, match=r"cloud.buckets.europe-west4 = .*cannot be"):
            load("demo", [f"cloud.buckets={{europe-west4: '{wrong}'}}"], environment={})
