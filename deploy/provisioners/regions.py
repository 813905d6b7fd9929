"""Zones in another region than the run's bucket are refused: every step there would read and save across regions.

That is billed by the byte, and slow. A run in two regions would need a bucket in each, and a copy of what its stages
read; there is no such copy here, so a run stays where its bucket is.
"""

from collections.abc import Iterable

from nanocode.run.exits import ConfigurationError
from nanocode.storage.gcs import bucket_places

CONTINENTS = {"us": ("us-",), "eu": ("europe-",), "asia": ("asia-",)}
"""Multi-regions -> their regions begin so."""
DUAL = {
    "nam4": ("us-central1", "us-east1"),
    "eur4": ("europe-north1", "europe-west4"),
    "eur5": ("europe-west1", "europe-west2"),
    "eur7": ("europe-west2", "europe-west3"),
    "eur8": ("europe-west3", "europe-west6"),
    "asia1": ("asia-northeast1", "asia-northeast2"),
}
"""cloud.google.com/storage/docs/locations, predefined dual-regions."""


def refuse_elsewhere(run: str, zones: Iterable[str], project: str | None = None, egress: float | None = None) -> None:
    """`ConfigurationError` where a zone is in another region than the bucket of the run directory `run`.

    `egress`: dollars for a GB from region to region. Where nobody says where the bucket is, nothing is refused;
    `StorageError` where there is no answer.
    """
    zones = tuple(zones)
    if run.startswith("gs://") and zones:
        places = bucket_places(run)
        if places and (far := elsewhere(zones, places)):
            raise ConfigurationError(sentence(run, places, far[0], project, egress))


def elsewhere(zones: Iterable[str], places: Iterable[str]) -> list[str]:
    """Zones that are in none of a bucket's places."""
    regions = [each for place in places for each in DUAL.get(place, (place,))]
    continents = tuple(start for place in regions for start in CONTINENTS.get(place, ()))
    return [zone for zone in zones if region_of(zone) not in regions and not zone.startswith(continents)]


def region_of(zone: str) -> str:
    return zone.rpartition("-")[0]


def sentence(run: str, places: Iterable[str], zone: str, project: str | None, egress: float | None) -> str:
    bucket, region = run.removeprefix("gs://").partition("/")[0], region_of(zone)
    costs = "is billed by the byte" if egress is None else f"costs ${egress:g} a GB"
    make = f"gcloud storage buckets create gs://{bucket}-{region} --location={region}"
    make += f" --project={project}" if project else ""
    return (
        f"zone {zone} is in another region than gs://{bucket} ({', '.join(places)}), and what crosses regions {costs}: "
        f"take it out of controller.zones, or begin a run in a bucket there: `{make}`"
    )
