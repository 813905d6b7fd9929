"""Slices as queued resources of the Cloud TPU API: what the TPU Research Cloud has quota for.

A slice is one queued resource, under a name that says whose it is, with one node; its VMs run `vm/startup.sh`. What is
there is read anew at every look, by a list of each zone where anything was ever asked for. Nothing is remembered but
what was refused: that is shown as a slice in trouble until it is given back. A SUSPENDED or FAILED one never comes back
and goes on counting against the quota: it is trouble, is deleted by force, and another name is asked for.

Every call has a deadline and no retry: the next round asks again, under the same name, with the same request id.
"""

import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import structlog

from deploy.controller.backend import Unreachable
from deploy.controller.observed import Slice, Trouble
from deploy.provisioners import labels
from deploy.provisioners.queued_states import deletions, is_active, labels_of, trouble_of
from deploy.provisioners.refusals import NO_CREDENTIALS, NO_PROJECT, Asked, Refusal, refusal
from deploy.provisioners.vm.node import Parameters, queued_resource
from nanocode.config.settings import Cloud
from nanocode.run.exits import ConfigurationError

log = structlog.get_logger()

CALL_SECONDS = 20.0
"""The client has no deadline of its own, and a lost reply would hang for ever."""
PAGE = 500
REQUESTS = uuid.UUID("6a1f6c0e-3d0b-4f0a-9b0e-0d3f2b7c5a11")
"""Name space of request ids: ours, and nobody else's."""


@dataclass(frozen=True)
class Connection:
    """The client, and the project it asks in."""

    client: Any
    project: str


def connect(cloud: Cloud) -> Connection:
    """With the credentials that are there; `ConfigurationError` where there are none, or no project is named.

    `TPU_EMULATOR_HOST` is honoured as `STORAGE_EMULATOR_HOST` is: without credentials.
    """
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import tpu_v2

    if (emulator := os.environ.get("TPU_EMULATOR_HOST")) is not None:
        import grpc
        from google.cloud.tpu_v2.services.tpu.transports import TpuGrpcTransport

        transport = TpuGrpcTransport(channel=grpc.insecure_channel(emulator))
        return Connection(tpu_v2.TpuClient(transport=transport), cloud.project or "emulated")
    try:
        credentials, project = google.auth.default()
    except DefaultCredentialsError as error:
        raise ConfigurationError(NO_CREDENTIALS) from error
    project = cloud.project or project
    if not project:
        raise ConfigurationError(NO_PROJECT)
    return Connection(tpu_v2.TpuClient(credentials=credentials), project)


class QueuedResources:
    """`Provisioner` over queued resources."""

    def __init__(
        self,
        connection: Connection,
        run: str,
        cloud: Callable[[], Cloud],
        recorded: Callable[[], Iterable[Slice]],
        clock: Callable[[], float],
        broken: Callable[[str], str] = lambda slice: "",
    ) -> None:
        """`run`: address of its directory. `recorded`: the slices of the journal. `broken`: why one is of no use."""
        self._connection, self._url, self._run = connection, run, labels.run_label(run)
        self._cloud, self._recorded, self._clock, self._broken = cloud, recorded, clock, broken
        self._refused: dict[str, Slice] = {}
        self._looked: dict[str, Mapping[str, Slice]] = {}
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="zone")
        self.last: Mapping[str, Slice] | None = None
        """What the last look found; None before the first."""

    def check(self, zones: Iterable[str]) -> None:
        """`ConfigurationError` when nothing can be had in any of these zones, whatever is tried."""
        refusals = []
        for zone in zones:
            try:
                self._list(zone)
                return
            except Unreachable:
                return
            except _Refused as error:
                refusals.append(error.refusal.sentence)
        if refusals:
            raise ConfigurationError(refusals[0])

    # -- Provisioner ---------------------------------------------------------------------------------------------------

    def observe(self) -> Mapping[str, Slice]:
        known = [one for one in self._recorded() if not one.permanent]
        zones = sorted({one.zone for one in known})
        found: dict[str, Slice] = {}
        silent: list[Unreachable] = []
        held = {one.zone for one in known if one.gone is None}
        costing = [one for one in known if one.ready is not None and one.gone is None]
        answers = self._threads.map(lambda zone: self._look(zone, [one for one in costing if one.zone == zone]), zones)
        for zone, answer in zip(zones, answers, strict=True):
            if isinstance(answer, Refusal):
                found |= self._in_a_closed_zone(zone, answer, known)
            elif isinstance(answer, Unreachable):
                silent.append(answer)
                found |= self._in_a_silent_zone(zone, answer) if zone in held else {}
            else:
                self._looked[zone] = answer
                found |= answer
        if held and len(silent) == len(zones):
            raise silent[0]
        self.last = {**self._refused, **found}
        return self.last

    def request(self, name: str, zone: str) -> None:
        from google.cloud import tpu_v2

        cloud = self._cloud()
        called = labels.name_of(self._run, name)
        parent = self._parent(zone)
        if cloud.image is None:
            self._refuse(name, zone, Refusal(Trouble.PERMISSION, "no image is named: set cloud.image to one by digest"))
            return
        parameters = Parameters(
            run=self._url,
            slice=name,
            name=called,
            parent=parent,
            image=cloud.image,
            labels=labels.labels(self._run, name, owner(cloud), self._clock() + cloud.expiry_hours * 3600),
        )
        asking = tpu_v2.CreateQueuedResourceRequest(
            parent=parent,
            queued_resource_id=called,
            queued_resource=queued_resource(parameters, cloud),
            request_id=_request_id("create", parent, called),
        )
        try:
            self._call("create_queued_resource", asking, zone)
            self._refused.pop(name, None)
        except _Refused as error:
            if error.kind != "AlreadyExists":
                self._refuse(name, zone, error.refusal)

    def release(self, name: str) -> None:
        self._refused.pop(name, None)
        for one in self._recorded():
            if one.name == name and not one.permanent:
                self.delete(one.zone, labels.name_of(self._run, name))

    def release_all(self, zones: Iterable[str]) -> bool:
        """Have all of the run deleted that is in these zones, whatever is written of it; whether nothing is left.

        `Unreachable` where a zone gives no answer, once the others have been seen to. One that refuses us while others
        do not, and that the run had nothing in, has nothing.
        """
        silent: list[Unreachable] = []
        left, refused, answered = False, list[Unreachable](), False
        for zone in zones:
            try:
                left = self._release_all_in(zone) or left
                answered = True
            except Unreachable as error:
                had_some = any(one.zone == zone and not one.permanent for one in self._recorded())
                (silent if had_some or not isinstance(error.__cause__, _Refused) else refused).append(error)
        if not answered:
            silent += refused
        if silent:
            raise silent[0]
        return not left

    def _release_all_in(self, zone: str) -> bool:
        """Whether there was any."""
        owners = [labels.owned(labels_of(one)) for one in self.listed(zone)]
        mine = [one.slice for one in owners if one is not None and one.run == self._run]
        for name in mine:
            self.delete(zone, labels.name_of(self._run, name))
        return bool(mine)

    def delete(self, zone: str, called: str) -> None:
        """Have a queued resource and its machines deleted; none of that name is no error."""
        from google.cloud import tpu_v2

        name = self._full_name(zone, called)
        # No request id: a deletion that was answered and came to nothing must be possible again.
        asking = tpu_v2.DeleteQueuedResourceRequest(name=name, force=True)
        try:
            self._call("delete_queued_resource", asking, zone)
        except _Refused as error:
            if error.kind not in ("NotFound", "FailedPrecondition"):  # the last one: it is being deleted already
                log.warning("cannot give a slice back", name=called, zone=zone, why=error.refusal.sentence)

    # -- looking -------------------------------------------------------------------------------------------------------

    def listed(self, zone: str) -> list[Any]:
        """Every queued resource of a zone that is a nanocode run's; `Unreachable` without a whole answer."""
        try:
            return [one for one in self._list(zone) if labels.owned(labels_of(one)) is not None]
        except _Refused as error:
            raise Unreachable(error.refusal.sentence) from error

    def _look(self, zone: str, costing: Iterable[Slice]) -> Mapping[str, Slice] | Refusal | Unreachable:
        """`costing`: those that cost something when they were last seen."""
        found = {}
        try:
            for resource in self._list(zone):
                whose = labels.owned(labels_of(resource))
                if whose is not None and whose.run == self._run:
                    found[whose.slice] = self._slice(whose.slice, zone, resource)
            return found | self._deleted(zone, [one for one in costing if one.name not in found])
        except _Refused as error:
            return error.refusal
        except Unreachable as error:
            return error

    def _deleted(self, zone: str, gone: Iterable[Slice]) -> dict[str, Slice]:
        """When these went, as far as the deletions that the API remembers tell it."""
        if not gone:
            return {}
        try:
            told = deletions(self._operations(zone))
        except _Refused as error:
            log.warning("nobody says when slices went: they are billed until now", why=error.refusal.sentence)
            return {}
        found = {}
        for one in gone:
            began = told.get(self._full_name(zone, labels.name_of(self._run, one.name)), ())
            until = min((at for at in began if at >= (one.ready or 0.0)), default=None)
            if until is not None:
                found[one.name] = Slice(one.name, zone, present=False, until=until)
        return found

    def _operations(self, zone: str) -> list[Any]:
        from google.longrunning import operations_pb2

        asking = operations_pb2.ListOperationsRequest(name=self._parent(zone), page_size=PAGE)
        found: list[Any] = []
        while True:
            answer = self._call("list_operations", asking, zone)
            found += answer.operations
            asking.page_token = answer.next_page_token
            if not asking.page_token:
                return found

    def _list(self, zone: str) -> list[Any]:
        from google.cloud import tpu_v2

        asking = tpu_v2.ListQueuedResourcesRequest(parent=self._parent(zone), page_size=PAGE)
        found: list[Any] = []
        for page in self._call("list_queued_resources", asking, zone, lambda pager: list(pager.pages)):
            if page.unreachable:
                raise Unreachable(f"the Cloud TPU API could not look everywhere: {', '.join(page.unreachable)}")
            found += page.queued_resources
        return found

    def _slice(self, name: str, zone: str, resource: Any) -> Slice:
        found = trouble_of(resource, self._asked(zone), self._cloud().queue_minutes, self._clock())
        if found is None and (why := self._broken(name)):
            found = Refusal(Trouble.OTHER, why)
        trouble, reason = (found.trouble, found.sentence) if found is not None else (None, "")
        return Slice(name, zone, usable=is_active(resource), trouble=trouble, reason=reason)

    def _in_a_closed_zone(self, zone: str, why: Refusal, known: Iterable[Slice]) -> dict[str, Slice]:
        """Where we may not look, what we have asked for is trouble, and what we have had is not known."""
        held = [one for one in known if one.zone == zone and one.gone is None and one.released is None]
        if any(one.ready is not None for one in held):
            raise Unreachable(why.sentence)
        return {one.name: Slice(one.name, zone, trouble=why.trouble, reason=why.sentence) for one in held}

    def _in_a_silent_zone(self, zone: str, why: Unreachable) -> dict[str, Slice]:
        """What it had at the last look is there, as far as anybody knows: the other zones go on."""
        if zone not in self._looked:
            raise why
        log.warning("a zone gives no answer", zone=zone, error=str(why))
        return {name: replace(one, usable=False) for name, one in self._looked[zone].items()}

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _call(self, method: str, request: Any, zone: str, take: Callable[[Any], Any] = lambda answer: answer) -> Any:
        """The answer; `Unreachable` where nobody knows, `_Refused` where it is certain."""
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError

        try:
            return take(getattr(self._connection.client, method)(request=request, timeout=CALL_SECONDS, retry=None))
        except (GoogleAPIError, GoogleAuthError) as error:
            why = refusal(error, self._asked(zone))
            if why is None:
                words = " ".join(str(error).split())[:200]
                raise Unreachable(f"the Cloud TPU API gives no answer in {zone}: {words}") from error
            raise _Refused(why, type(error).__name__) from error

    def _parent(self, zone: str) -> str:
        return f"projects/{self._connection.project}/locations/{zone}"

    def _full_name(self, zone: str, called: str) -> str:
        return f"{self._parent(zone)}/queuedResources/{called}"

    def _asked(self, zone: str) -> Asked:
        return Asked(self._connection.project, zone, self._cloud().accelerator_type)

    def _refuse(self, name: str, zone: str, why: Refusal) -> None:
        self._refused[name] = Slice(name, zone, trouble=why.trouble, reason=why.sentence)


class _Refused(Exception):
    """An answer that will be the same in a moment."""

    def __init__(self, why: Refusal, kind: str) -> None:
        super().__init__(why.sentence)
        self.refusal, self.kind = why, kind


def owner(cloud: Cloud) -> str:
    """Who pays, for a label."""
    import getpass

    try:
        return cloud.owner or getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        return "unknown"


def _request_id(what: str, parent: str, called: str) -> str:
    return str(uuid.uuid5(REQUESTS, f"{what} {parent}/{called}"))
