"""Slices for a run that is controlled from a laptop, with no cluster anywhere."""

import re
import time
from collections.abc import Callable, Iterable

from deploy.controller.observed import Slice
from deploy.local.backend import LocalBackend
from deploy.provisioners import auto
from deploy.provisioners.here_and_there import LaptopAndSlices
from deploy.provisioners.queued import Connection, QueuedResources, connect
from deploy.provisioners.regions import refuse_elsewhere
from deploy.provisioners.vms import SliceVms
from nanocode.config.settings import Cloud, Settings
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError

DIGEST = re.compile("@sha256:[0-9a-f]{64}$")


def refuse_impossible(run: RunDirectory, settings: Settings) -> None:
    """`ConfigurationError` for settings that no slice can be had with, or could not reach the run with."""
    if settings.provisioner not in ("auto", "queued-resource"):
        raise ConfigurationError(
            f"provisioner {settings.provisioner} needs a cluster: `make deploy-{settings.preset}`, or say "
            "--provisioner queued-resource"
        )
    if not settings.controller.zones:
        raise ConfigurationError("no zone is named: say --set 'controller.zones=[us-east5-b]', best first")
    image = settings.cloud.image
    if image is None or not DIGEST.search(image):  # under a tag, two hosts could run two versions
        said = "no image is named" if image is None else f"cloud.image={image} ends with no digest"
        raise ConfigurationError(f"{said}: say --set cloud.image=REGISTRY/jobs-tpu@sha256:..., as `make push` says")
    refuse_elsewhere(run.store.url, settings)


def machines(
    run: RunDirectory,
    here: LocalBackend,
    settings: Settings,
    now: Callable[[], Settings],
    recorded: Callable[[], Iterable[Slice]],
    say: Callable[[str], object],
) -> tuple[LaptopAndSlices, QueuedResources]:
    """Where attempts run, and where slices come from; `ConfigurationError` for settings that none can be had with.

    `now`: the settings as they are then. `say`: a line for whoever sits there.
    """
    refuse_impossible(run, settings)

    def cloud() -> Cloud:
        return now().cloud

    there = SliceVms(run, lambda: cloud().image, lambda: slices.last)
    connection = _connected(settings, say)
    slices = QueuedResources(connection, run.store.url, cloud, recorded, time.time, there.broken)
    return LaptopAndSlices(here, there), slices


def refuse_unavailable(settings: Settings) -> None:
    """`ConfigurationError` where the cloud says at once that no slice can be had. Asks for none."""
    connection = _connected(settings, lambda line: None)
    QueuedResources(connection, "", lambda: settings.cloud, tuple, time.time).check(settings.controller.zones)


def _connected(settings: Settings, say: Callable[[str], object]) -> Connection:
    """The Cloud TPU API, where that is what `auto` would take; `Unreachable` where the quotas cannot be read."""
    connection = connect(settings.cloud)
    if settings.provisioner == "auto":
        zones = settings.controller.zones
        quotas = auto.read(connection.project, zones, settings.cloud, auto.fetch_with_credentials)
        say(auto.choose(quotas, settings.cloud, has_cluster=False)[1])
    return connection
