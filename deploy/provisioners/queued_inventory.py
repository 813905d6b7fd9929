"""Our queued resources, for the janitor: `Inventory` over the Cloud TPU API.

A queued resource has no labels of its own, its node has; and among the node's metadata is the address of the run.
"""

import time
from collections.abc import Sequence
from typing import Any

from deploy.provisioners import labels
from deploy.provisioners.janitor import Found
from deploy.provisioners.queued import QueuedResources, connect
from deploy.provisioners.queued_states import labels_of
from nanocode.config import prices
from nanocode.config.settings import Settings

KIND = "queued resource"
RUN_DIRECTORY = "nanocode-run-dir"
"""Key of the metadata."""
LEAVING = ("DELETING",)
WITH_MACHINES = ("ACTIVE", "SUSPENDING")


class QueuedInventory:
    """What one zone has of them."""

    def __init__(self, resources: QueuedResources, zone: str) -> None:
        self._resources, self._zone = resources, zone

    @classmethod
    def of(cls, settings: Settings) -> "list[QueuedInventory]":
        """One for each zone; `ConfigurationError` where there are no credentials, or no project is named."""
        resources = QueuedResources(connect(settings.cloud), "", lambda: settings.cloud, tuple, time.time)
        return [cls(resources, zone) for zone in settings.controller.zones]

    def list(self) -> Sequence[Found]:
        self._resources.check([self._zone])
        return [found_of(one, self._zone) for one in self._resources.listed(self._zone)]

    def delete(self, found: Found) -> None:
        self._resources.delete(found.zone, found.name.rpartition("/")[2])


def found_of(resource: Any, zone: str) -> Found:
    """A queued resource as the janitor takes it."""
    whose = labels.owned(labels_of(resource))
    nodes = [spec.node for spec in resource.tpu.node_spec]
    state = getattr(resource.state.state, "name", str(resource.state.state))
    types = [node.accelerator_type for node in nodes if node.accelerator_type]
    return Found(
        name=resource.name,
        kind=KIND,
        zone=zone,
        chips=sum(prices.chips_of(one) for one in types),
        created=resource.create_time.timestamp() if resource.create_time is not None else None,
        run=whose.run if whose is not None else "",
        expires=whose.expires if whose is not None else 0.0,
        state=state,
        slice=whose.slice if whose is not None else "",
        owner=whose.owner if whose is not None else "",
        url=next((node.metadata[RUN_DIRECTORY] for node in nodes if RUN_DIRECTORY in node.metadata), None),
        accelerator=prices.kind_of(types[0]) if types else "",
        spot="spot" in resource,
        costs=state in WITH_MACHINES,
        leaving=state in LEAVING,
    )
