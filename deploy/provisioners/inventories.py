"""Which APIs may have made something for us. Their clients are imported only when somebody asks."""

from deploy.provisioners.janitor import Inventory
from nanocode.config.settings import Settings
from nanocode.run.exits import ConfigurationError


def inventories(settings: Settings) -> list[Inventory]:
    """One for each zone and cluster of the settings; `ConfigurationError` without credentials, or without any."""
    found: list[Inventory] = []
    if settings.controller.zones:
        from deploy.provisioners.queued_inventory import QueuedInventory

        found += QueuedInventory.of(settings)
    if settings.cloud.cluster is not None:
        from deploy.provisioners.gke_inventory import NodePoolInventory

        found.append(NodePoolInventory.of(settings))
    if not found:
        raise ConfigurationError(
            "nothing says where to look: name a run directory, or say --set 'controller.zones=[us-east5-b]', and for "
            "node pools --set cloud.cluster=NAME --set cloud.cluster_location=ZONE"
        )
    return found
