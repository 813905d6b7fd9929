"""Zones in another region than the run's bucket are refused: every step there would read and save across regions.

That is billed by the byte, and slow. With a bucket in their own region, which `cloud.buckets` names, slices of the
Cloud TPU API read and save there, and what they need is copied once (`nanocode.run.near`).
"""

from collections.abc import Iterable
from functools import cache

from nanocode.config.settings import Settings
from nanocode.run import near
from nanocode.run.exits import ConfigurationError
from nanocode.run.near import region_of
from nanocode.storage.gcs import bucket_of, bucket_places

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


def refuse_elsewhere(run: str, settings: Settings, second: bool = True) -> None:
    """`ConfigurationError` where slices of a zone would read and save across regions.

    `second`: whether they may use the bucket that `cloud.buckets` names for their region, as those of the Cloud TPU API
    can. Where nobody says where a bucket is, nothing is refused for that; `StorageError` where there is no answer.
    """
    zones = settings.controller.zones
    if not run.startswith("gs://") or not zones:
        return
    where = cache(bucket_places)
    for zone in zones:
        has_another = near.address(settings.cloud.buckets, region_of(zone), run) is not None
        bucket = settings.cloud.buckets[region_of(zone)] if has_another else None
        if bucket is not None and where(run) and not is_far(zone, where(run)):
            raise ConfigurationError(
                f"cloud.buckets names {bucket} for {region_of(zone)}, where {bucket_of(run)} is already: leave it out"
            )
        if bucket is None or not second:
            if is_far(zone, where(run)):
                raise ConfigurationError(sentence(run, where(run), zone, settings, second))
        elif is_far(zone, where(bucket)):
            raise ConfigurationError(
                f"cloud.buckets names {bucket} for {region_of(zone)}, and it is in {', '.join(where(bucket))}: name "
                f"one there, as `{creation(f'{bucket_of(run)}-{region_of(zone)}', zone, settings)}` makes it"
            )
        elif settings.budget.dollars is not None and settings.prices.egress_gb is None:
            raise ConfigurationError(
                f"nobody has said what it costs to copy a GB to {region_of(zone)}, so the budget of "
                f"${settings.budget.dollars:.2f} cannot be kept: set prices.egress_gb"
            )


def is_far(zone: str, places: Iterable[str]) -> bool:
    """Whether a bucket in these places is in another region; nobody knows it of one in none."""
    return bool(places) and bool(elsewhere([zone], places))


def elsewhere(zones: Iterable[str], places: Iterable[str]) -> list[str]:
    """Zones that are in none of a bucket's places."""
    regions = [each for place in places for each in DUAL.get(place, (place,))]
    continents = tuple(start for place in regions for start in CONTINENTS.get(place, ()))
    return [zone for zone in zones if region_of(zone) not in regions and not zone.startswith(continents)]


def sentence(run: str, places: Iterable[str], zone: str, settings: Settings, second: bool) -> str:
    region, egress = region_of(zone), settings.prices.egress_gb
    costs = "is billed by the byte" if egress is None else f"costs ${egress:g} a GB"
    theirs = f"{bucket_of(run)}-{region}"
    make = creation(theirs, zone, settings)
    if second:
        make += access(zone, settings)
        move = f"have a bucket there too: `{make}`, then --set 'cloud.buckets={{{region}: {theirs}}}'"
    else:
        move = f"begin a run in a bucket there: `{make}`"
    return (
        f"zone {zone} is in another region than {bucket_of(run)} ({', '.join(places)}), and what crosses regions "
        f"{costs}: take it out of controller.zones, or {move}"
    )


def creation(bucket: str, zone: str, settings: Settings) -> str:
    """The commands that make a bucket in a zone's region, and let slices use it."""
    # Soft delete would keep, and bill, every checkpoint for seven days after it is pruned.
    make = f"gcloud storage buckets create {bucket} --location={region_of(zone)} --soft-delete-duration=0s"
    make += f" --project={settings.cloud.project}" if settings.cloud.project else ""
    if (account := settings.cloud.service_account) is None:
        return make
    member = f"--member=serviceAccount:{account} --role=roles/storage.objectUser"
    return f"{make} && gcloud storage buckets add-iam-policy-binding {bucket} {member}"


def access(zone: str, settings: Settings) -> str:
    """The command by which TPU VMs without an address of their own reach that bucket, to be run after others."""
    cloud = settings.cloud
    if cloud.external_ips or cloud.network is not None or cloud.subnetwork is not None:
        return ""
    project = f" --project={cloud.project}" if cloud.project else ""
    update = "gcloud compute networks subnets update default --enable-private-ip-google-access"
    return f" && {update} --region={region_of(zone)}{project}"
