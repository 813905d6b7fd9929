"""Provisioner `auto`: which of the two APIs has quota for our slices, and one sentence that says why.

The TPU Research Cloud grants quota of the Cloud TPU API (limits such as `TPUV6EPreemptiblePerProjectPerZoneForTPUAPI`:
github.com/marin-community/marin/issues/3200), GKE's node pools draw the Compute Engine API's (`TPUS_PER_TPU_FAMILY`,
dimension `tpu_family: CT6E`: cloud.google.com/tpu/docs/v6e-intro). Both are read from the Service Usage API
(cloud.google.com/service-usage/docs/reference/rest/v1beta1/services.consumerQuotaMetrics/list).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from deploy.controller.backend import Unreachable
from deploy.provisioners.refusals import NO_CREDENTIALS
from nanocode.config.settings import Cloud
from nanocode.run.exits import ConfigurationError
from nanocode.run.near import region_of

API = "https://serviceusage.googleapis.com/v1beta1"
CALL_SECONDS = 15.0
UNLIMITED = 10**9
FAMILIES = {"v4": "CT4P", "v5litepod": "CT5LP", "v5p": "CT5P", "v6e": "CT6E"}
"""Generation, as the Cloud TPU API has it -> `tpu_family` of Compute Engine."""
Fetch = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True)
class Quotas:
    """Chips that the project may have in the best of its zones."""

    tpu: int
    """By the Cloud TPU API."""
    compute: int
    """By the Compute Engine API."""


def choose(quotas: Quotas, cloud: Cloud, has_cluster: bool) -> tuple[str, str]:
    """The provisioner, and why; `ConfigurationError` where neither has quota for one slice."""
    kind, chips = cloud.accelerator_type, chips_of(cloud)
    fits_tpu, fits_compute = quotas.tpu >= chips, quotas.compute >= chips
    found = f"the quota is {_chips(quotas.tpu)} in the Cloud TPU API and {_chips(quotas.compute)} in Compute Engine's"
    if fits_compute and has_cluster:
        return "gke", f"provisioner gke: for {kind}, {found}"
    if fits_tpu:
        return "queued-resource", f"provisioner queued-resource: for {kind}, {found}"
    move = "ask for more at https://console.cloud.google.com/iam-admin/quotas, or name other zones"
    if fits_compute:
        raise ConfigurationError(f"{found}, which only a GKE cluster can use: `make deploy-d24`, or {move}")
    raise ConfigurationError(f"{found}, and {kind} needs {chips}: {move}")


def read(project: str, zones: Iterable[str], cloud: Cloud, fetch: Fetch) -> Quotas:
    """What the project has in the best of these zones."""
    zones = tuple(zones)
    generation = cloud.accelerator_type.partition("-")[0]
    family = FAMILIES.get(generation, generation.upper())

    def of_the_tpu_api(words: str) -> bool:
        return f"tpu{generation}" in words and ("preemptible" in words) == cloud.spot

    def of_compute(words: str) -> bool:
        return "tpuspertpufamily" in words and ("preemptible" in words) == cloud.spot

    tpu = list(_limits(project, "tpu.googleapis.com", of_the_tpu_api, fetch))
    compute = list(_limits(project, "compute.googleapis.com", of_compute, fetch))
    return Quotas(
        tpu=max((_allowed(tpu, zone, {}) for zone in zones), default=0),
        compute=max((_allowed(compute, zone, {"tpu_family": family}) for zone in zones), default=0),
    )


def fetch_with_credentials(url: str) -> Mapping[str, Any]:
    """Over the network, with the credentials that are there; `Unreachable` without an answer."""
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
    from google.auth.transport.requests import AuthorizedSession
    from requests import RequestException

    try:
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        answer = AuthorizedSession(credentials).get(url, timeout=CALL_SECONDS)
    except DefaultCredentialsError as error:
        raise ConfigurationError(NO_CREDENTIALS) from error
    except (GoogleAuthError, RequestException) as error:
        raise _unread(" ".join(str(error).split())[:200]) from error
    if answer.status_code == 403:
        enable = "gcloud services enable serviceusage.googleapis.com"
        raise ConfigurationError(f"the quotas may not be read: `{enable}`, or name the provisioner instead of auto")
    if answer.status_code != 200:
        raise _unread(f"HTTP {answer.status_code}")
    found: Mapping[str, Any] = answer.json()
    return found


def _unread(why: str) -> Unreachable:
    return Unreachable(f"the quotas cannot be read ({why}): try again, or name the provisioner instead of auto")


def chips_of(cloud: Cloud) -> int:
    """Of one slice."""
    return int(cloud.accelerator_type.rpartition("-")[2])


def _limits(project: str, service: str, is_ours: Callable[[str], bool], fetch: Fetch) -> Iterator[Mapping[str, Any]]:
    """The limits whose name, letters and digits only and in lower case, is one of ours."""
    page = ""
    while True:
        more = f"&pageToken={quote(page, safe='')}" if page else ""
        answer = fetch(f"{API}/projects/{project}/services/{service}/consumerQuotaMetrics?pageSize=500{more}")
        for metric in answer.get("metrics", ()):
            for limit in metric.get("consumerQuotaLimits", ()):
                words = f"{metric.get('metric', '')} {limit.get('name', '')}".lower()
                if is_ours("".join(letter for letter in words if letter.isalnum())):
                    yield limit
        page = str(answer.get("nextPageToken", ""))
        if not page:
            return


def _allowed(limits: Iterable[Mapping[str, Any]], zone: str, dimensions: Mapping[str, str]) -> int:
    """The smallest of all limits that hold in a zone; 0 where none is known."""
    here = {"zone": zone, "region": region_of(zone), **dimensions}
    return min((_of_bucket(limit, here) for limit in limits), default=0)


def _of_bucket(limit: Mapping[str, Any], here: Mapping[str, str]) -> int:
    """The bucket that says most about a place counts; one with other dimensions than those asked for does not."""
    fits = [
        bucket
        for bucket in limit.get("quotaBuckets", ())
        if all(here.get(key) == value for key, value in bucket.get("dimensions", {}).items())
    ]
    if not fits:
        return 0
    best = max(fits, key=lambda bucket: len(bucket.get("dimensions", {})))
    value = int(best.get("effectiveLimit", 0))
    return UNLIMITED if value < 0 else value


def _chips(count: int) -> str:
    return "without limit" if count >= UNLIMITED else f"{count} chips"
