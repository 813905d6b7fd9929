"""Which APIs may have made something for us. Their clients are imported only when somebody asks."""

from deploy.provisioners.janitor import Inventory
from nanocode.config.settings import Settings


def inventories(settings: Settings) -> list[Inventory]:
    """One for each, by the settings' project and zones; `ConfigurationError` without credentials."""
    from deploy.provisioners.queued_inventory import QueuedInventory

    return [QueuedInventory.of(settings)]
