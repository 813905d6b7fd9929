"""Which APIs may have made something for us. Their clients are imported only when somebody asks."""

from deploy.provisioners.janitor import Inventory
from nanocode.config.settings import Settings


def inventories(settings: Settings) -> list[Inventory]:
    """One for each, by the settings' project and zones, and one for a cluster that they name.

    `ConfigurationError` without credentials.
    """
    from deploy.provisioners.gke_inventory import NodePoolInventory
    from deploy.provisioners.queued_inventory import QueuedInventory

    clusters = [NodePoolInventory.of(settings)] if settings.cloud.cluster is not None else []
    return [QueuedInventory.of(settings), *clusters]
