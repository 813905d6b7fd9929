"""Where a slice in another region than the run reads and saves what is bulky: in a bucket of its own region.

    slices/<name>/REQUEST.json                      `near`: that place, as it was when the slice was asked for
    <bucket>/<address of the run without gs://>/    objects under the names that they have in the run directory

The run directory stays the only truth: what is here are copies of what stages read, and checkpoints whose markers are
there. Whoever deletes a run deletes these folders too.
"""

import json
from collections.abc import Mapping

from nanocode.config.settings import Settings
from nanocode.run.directory import RunDirectory
from nanocode.storage.objects import NotFound, Store, open_store


def region_of(zone: str) -> str:
    return zone.rpartition("-")[0]


def address(buckets: Mapping[str, str], region: str, run: str) -> str | None:
    """Of a region's folder for the run at this address; None where its machines use the run's own bucket."""
    bucket = buckets.get(region)
    if bucket is None or f"{run}/".startswith(f"{bucket}/"):
        return None
    # The whole address: two runs that are called alike in two buckets may share a third.
    return f"{bucket}/{run.removeprefix('gs://').strip('/')}"


def addresses(settings: Settings, run: str) -> list[str]:
    """Of all such folders that the settings name; none for a run that is on one machine, and not in a bucket."""
    if not run.startswith("gs://"):
        return []
    found = (address(settings.cloud.buckets, region, run) for region in settings.cloud.buckets)
    return sorted({one for one in found if one is not None})


def of_slice(run: RunDirectory, slice: str | None) -> Store | None:
    """The folder of the slice that a claim names; None where it is near the run, or nobody has asked for it."""
    if slice is None:
        return None
    try:
        wish = json.loads(run.store.read(f"slices/{slice}/REQUEST.json"))
    except NotFound:
        return None
    place = wish.get("near")
    return open_store(place) if place else None
