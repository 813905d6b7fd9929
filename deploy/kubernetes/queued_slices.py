"""Slices of the Cloud TPU API for a TrainingRun: its training stages run on their VMs, the others as Jobs."""

from collections.abc import Callable, Iterable

import structlog

from deploy.controller.backend import Unreachable
from deploy.controller.observed import Slice
from deploy.provisioners import auto
from deploy.provisioners.queued import QueuedResources, connect
from deploy.provisioners.vms import SliceVms
from nanocode.config.settings import Cloud
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError

log = structlog.get_logger()


class QueuedSlices:
    """Both halves; the API is spoken to once a run asks for it."""

    def __init__(
        self,
        run: RunDirectory,
        cloud: Callable[[], Cloud],
        recorded: Callable[[], Iterable[Slice]],
        clock: Callable[[], float],
    ) -> None:
        self._run, self._cloud, self._recorded, self._clock = run, cloud, recorded, clock
        self._resources: QueuedResources | None = None
        self._auto: str | None = None
        self.vms = SliceVms(run, lambda: cloud().image, lambda: self._resources.last if self._resources else None)

    def chosen(self, zones: Iterable[str], cloud: Cloud) -> str:
        """What `auto` is for this project; `ConfigurationError` where neither API has quota, `Unreachable` for now."""
        if self._auto is None:
            quotas = auto.read(connect(cloud).project, zones, cloud, auto.fetch_with_credentials)
            self._auto, why = auto.choose(quotas, cloud, has_cluster=cloud.cluster is not None)
            log.info("the provisioner is chosen", why=why)
        return self._auto

    def provisioner(self) -> QueuedResources:
        """`Unreachable` where there are no credentials, or no project is named."""
        if self._resources is None:
            try:
                connection = connect(self._cloud())
            except ConfigurationError as error:
                raise Unreachable(str(error)) from error
            self._resources = QueuedResources(
                connection, self._run.store.url, self._cloud, self._recorded, self._clock, self.vms.broken
            )
        return self._resources
