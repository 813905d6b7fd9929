"""What the state of a queued resource means for a slice. Pure.

The states are `google.cloud.tpu_v2.QueuedResourceState`'s (docs.cloud.google.com/tpu/docs/queued-resources). One that a
later version of the API adds arrives as a number: the slice is there, and of no use.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from deploy.controller.observed import Trouble
from deploy.provisioners.refusals import Asked, Refusal, by_status

IN_THE_QUEUE = ("ACCEPTED", "CREATING", "WAITING_FOR_RESOURCES")


def state_of(resource: Any) -> str:
    return getattr(resource.state.state, "name", str(resource.state.state))


def is_active(resource: Any) -> bool:
    """Whether its machines are there."""
    return state_of(resource) == "ACTIVE"


def trouble_of(resource: Any, asked: Asked, queue_minutes: float, now: float) -> Refusal | None:
    """Why nothing will come of it (any more); None while something may."""
    state = state_of(resource)
    if state in ("SUSPENDING", "SUSPENDED"):
        if getattr(resource.state.state_initiator, "name", "") == "USER":
            return Refusal(Trouble.OTHER, f"somebody has deleted its machines in {asked.zone}")
        return Refusal(Trouble.PREEMPTED, f"its machines in {asked.zone} were taken away")
    if state == "FAILED":
        return by_status(resource.state.failed_data.error, asked)
    created: datetime | None = resource.create_time
    if state in IN_THE_QUEUE and created is not None and now - created.timestamp() > queue_minutes * 60:
        minutes = f"{queue_minutes:g} minutes"
        return Refusal(Trouble.STOCKOUT, f"zone {asked.zone} had no free {asked.accelerator} for {minutes}")
    return None


def deletions(operations: Iterable[Any]) -> dict[str, list[float]]:
    """Full name of a queued resource -> when deletions of it began that did not fail: after the first of them none of
    its machines was READY, and none has cost anything (cloud.google.com/tpu/pricing)."""
    from google.cloud import tpu_v2

    found: dict[str, list[float]] = {}
    for one in operations:
        told = tpu_v2.OperationMetadata.pb(tpu_v2.OperationMetadata())
        is_told = one.metadata.Unpack(told) and told.HasField("create_time")
        if is_told and told.verb == "delete" and not one.HasField("error"):
            found.setdefault(told.target, []).append(told.create_time.ToNanoseconds() / 1e9)
    return found


def labels_of(resource: Any) -> dict[str, str]:
    """Of its node: a queued resource has none of its own."""
    return {key: value for spec in resource.tpu.node_spec for key, value in spec.node.labels.items()}
