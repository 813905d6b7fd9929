"""Zones in another region than the bucket are refused; where a bucket is, the real client asks a server on loopback."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy.provisioners import regions
from nanocode.config.settings import Settings, load
from nanocode.run.exits import ConfigurationError
from nanocode.storage import gcs
from nanocode.storage.objects import StorageError
from tests.json_server import storage_client


@pytest.mark.parametrize(
    ("places", "far"),
    [
        (("us-east5",), ["us-central1-b", "europe-west4-a"]),
        (("us",), ["europe-west4-a"]),
        (("eu",), ["us-east5-b", "us-central1-b"]),
        (("nam4",), ["us-east5-b", "europe-west4-a"]),
        (("us-central1", "us-east5"), ["europe-west4-a"]),
    ],
    ids=str,
)
def test_a_zone_is_near_where_its_region_or_continent_is_the_bucket_s(places: tuple[str, ...], far: list[str]) -> None:
    assert regions.elsewhere(["us-east5-b", "us-central1-b", "europe-west4-a"], places) == far


Answers = Callable[..., None]


def settings(*zones: str, **more: str) -> Settings:
    sets = ["corpus.sources=[{location: gs://elsewhere/text}]", f"controller.zones=[{','.join(zones)}]"]
    return load("demo", [*sets, *(f"{key.replace('__', '.')}={value}" for key, value in more.items())], environment={})


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """What the bucket's own resource is (cloud.google.com/storage/docs/json_api/v1/buckets/get)."""
    says: dict[str, tuple[int, dict[str, Any]]] = {}

    def answer(code: int, body: dict[str, Any], bucket: str = "mine") -> None:
        says[bucket] = code, body

    with storage_client("GET", lambda path: says[path.partition("?")[0].rpartition("/")[2]]) as client:
        monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
        monkeypatch.setattr(gcs, "open_bucket", client.bucket)
        yield answer


def test_a_zone_elsewhere_is_refused_with_the_command_that_makes_a_bucket_there(answers: Answers) -> None:
    answers(200, {"name": "mine", "location": "US-EAST5", "locationType": "region"})
    regions.refuse_elsewhere("gs://mine/d24", settings("us-east5-a", "us-east5-b"))
    more = {"cloud__project": "lab", "prices__egress_gb": "0.02", "cloud__service_account": "slices@lab"}
    with pytest.raises(ConfigurationError) as refused:
        regions.refuse_elsewhere("gs://mine/d24", settings("us-east5-b", "europe-west4-a", **more))
    said = str(refused.value)
    assert "zone europe-west4-a is in another region than gs://mine (us-east5)" in said
    assert "costs $0.02 a GB" in said
    make = "gcloud storage buckets create gs://mine-europe-west4 --location=europe-west4 --soft-delete-duration=0s"
    grant = "gcloud storage buckets add-iam-policy-binding gs://mine-europe-west4 --member=serviceAccount:slices@lab"
    reach = "gcloud compute networks subnets update default --enable-private-ip-google-access --region=europe-west4"
    commands = f"{make} --project=lab && {grant} --role=roles/storage.objectUser && {reach} --project=lab"
    assert f"`{commands}`" in said and "\n" not in said
    assert "--set 'cloud.buckets={europe-west4: gs://mine-europe-west4}'" in said


HOME = {"name": "mine", "location": "US-EAST5", "locationType": "region"}
EUROPE = "{europe-west4: gs://other}"


def test_a_zone_whose_region_has_a_bucket_of_its_own_is_taken_from_the_cloud_tpu_api_only(answers: Answers) -> None:
    answers(200, HOME)
    answers(200, {"name": "other", "location": "EUROPE-WEST4", "locationType": "region"}, "other")
    both = settings("us-east5-b", "europe-west4-a", cloud__buckets=EUROPE)
    regions.refuse_elsewhere("gs://mine/d24", both)
    with pytest.raises(ConfigurationError, match="europe-west4-a .*begin a run in a bucket there"):
        regions.refuse_elsewhere("gs://mine/d24", both, second=False)
    with pytest.raises(ConfigurationError, match="europe-west4-a is in another region"):
        regions.refuse_elsewhere(
            "gs://mine/d24", settings("europe-west4-a", cloud__buckets="{europe-west4: gs://mine}")
        )


def test_a_bucket_that_is_named_for_a_region_has_to_be_there(answers: Answers) -> None:
    answers(200, HOME)
    answers(200, {"name": "other", "location": "EUROPE-WEST1", "locationType": "region"}, "other")
    with pytest.raises(ConfigurationError, match=r"names gs://other for europe-west4, and it is in europe-west1: name"):
        regions.refuse_elsewhere("gs://mine/d24", settings("europe-west4-a", cloud__buckets=EUROPE))
    answers(403, {}, "other")
    regions.refuse_elsewhere("gs://mine/d24", settings("europe-west4-a", cloud__buckets=EUROPE))
    at_home = settings("us-east5-b", cloud__buckets="{us-east5: gs://other}")
    for second in (True, False):
        with pytest.raises(ConfigurationError, match=r"other for us-east5, where gs://mine is already: leave it out"):
            regions.refuse_elsewhere("gs://mine/d24", at_home, second)


def test_a_budget_needs_the_price_of_what_is_copied(answers: Answers) -> None:
    answers(200, HOME)
    answers(403, {}, "other")
    priced = {"cloud__buckets": EUROPE, "budget__dollars": "9"}
    with pytest.raises(
        ConfigurationError, match=r"copy a GB to europe-west4.*\$9\.00 cannot be kept: set prices.egress_gb"
    ):
        regions.refuse_elsewhere("gs://mine/d24", settings("europe-west4-a", **priced))
    regions.refuse_elsewhere("gs://mine/d24", settings("europe-west4-a", **priced, prices__egress_gb="0"))


def test_the_two_regions_of_a_bucket_of_ones_own_choice_are_both_near(answers: Answers) -> None:
    config = {"dataLocations": ["US-EAST5", "US-CENTRAL1"]}
    answers(200, {"name": "mine", "location": "US", "locationType": "dual-region", "customPlacementConfig": config})
    regions.refuse_elsewhere("gs://mine/d24", settings("us-east5-b", "us-central1-a"))
    with pytest.raises(ConfigurationError, match="us-east1-d"):
        regions.refuse_elsewhere("gs://mine/d24", settings("us-east5-b", "us-east1-d"))


@pytest.mark.parametrize("code", [403, 404])
def test_where_nobody_says_where_the_bucket_is_nothing_is_refused(answers: Answers, code: int) -> None:
    answers(code, {"error": {"code": code, "message": "storage.buckets.get denied on mine, or it does not exist"}})
    regions.refuse_elsewhere("gs://mine/d24", settings("europe-west4-a"))
    regions.refuse_elsewhere("/home/me/d24", settings("europe-west4-a"))


def test_a_bucket_that_gives_no_answer_lets_no_zone_pass(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "gcs_retry", lambda: None)
    answers(503, {"error": {"code": 503, "message": "backend error"}})
    with pytest.raises(StorageError, match=r"gs://mine .*try again"):
        regions.refuse_elsewhere("gs://mine/d24", settings("europe-west4-a"))
    answers(401, {"error": {"code": 401, "message": "invalid credentials"}})
    with pytest.raises(StorageError, match="check the credentials"):
        regions.refuse_elsewhere("gs://mine/d24", settings("europe-west4-a"))
