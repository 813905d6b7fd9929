"""Which slices are asked for, noted, and given back. Pure."""

from collections.abc import Iterator

from deploy.controller.actions import Action, Begin, Note, Release, Request
from deploy.controller.decision import RESTS, StageState, State
from deploy.controller.observed import Observed, Process, Slice
from deploy.controller.policies import (
    age,
    came,
    has_machines,
    held,
    hopeless,
    idle_seconds,
    last_reason,
    lost,
    out_of_grace,
    user_of,
    zones,
)
from deploy.controller.stages import any_failed, asked_for, machines_free, ready
from nanocode.config.settings import Controller


def slice_actions(
    seen: Observed, policy: Controller, states: dict[str, StageState], begun: list[Begin], stopped: StageState | None
) -> Iterator[Action]:
    """Slices are noted, given back, asked for again, and asked for."""
    taken = {one.slice for one in begun}
    coming = 0
    for one in seen.slices:
        if one.requested is None or (one.gone is not None and not one.present):
            continue
        reason = _needless(one, seen, policy, states, taken, stopped)
        if one.ready is None and (one.since is not None or (held(one) and (has_machines(one) or lost(one)))):
            yield Note(one.name, "ready", at=came(one, seen))
        if not one.present and (one.ready is not None or one.released is not None):
            yield Note(one.name, "gone", at=one.until)
        elif one.gone is not None or one.released is not None:
            yield Release(one.name, "it is not needed")
        elif reason:
            if one.trouble is not None:
                yield Note(one.name, one.trouble.value, one.reason)
            yield Release(one.name, reason)
        else:
            coming += not one.usable
            if not one.present:
                yield Request(one.name, one.zone, one.dollars_per_hour)
    yield from _requests(seen, policy, states, coming, begun)


def _needless(
    one: Slice,
    seen: Observed,
    policy: Controller,
    states: dict[str, StageState],
    taken: set[str | None],
    stopped: StageState | None,
) -> str:
    """Why a slice is given back; empty while it is kept."""
    if one.name in taken:
        return ""
    if reason := hopeless(one, policy, seen.now):
        return reason
    user = user_of(one, seen.stages)
    if user is not None:
        waited = age(seen.now, one.ready) > policy.provision_minutes * 60  # 0 before it is ready
        if user.seen.process is Process.PENDING and not one.usable and waited:
            return f"its machines were not ready within {policy.provision_minutes:g} minutes"
        # Without a backend that answers, nobody will say that the attempt has ended: the slice goes all the same.
        stuck = stopped is not None and "backend" in seen.unknown and out_of_grace(user, policy, seen.now)
        return "its attempt was told to leave, and nobody says whether it did" if stuck else ""
    if not _will_need_slices(seen, states):
        return "nothing will need it"
    if one.ready is not None and idle_seconds(one, seen.stages, seen.now) > policy.hold_minutes * 60:
        return f"nothing has needed it for {policy.hold_minutes:g} minutes"
    return ""


def _will_need_slices(seen: Observed, states: dict[str, StageState]) -> bool:
    if any_failed(states):
        return False
    return any(
        stage.machine == "accelerator" and asked_for(seen, stage.name) and states[stage.name].state not in RESTS
        for stage in seen.stages
        if not stage.held
    )


def _requests(
    seen: Observed, policy: Controller, states: dict[str, StageState], coming: int, begun: list[Begin]
) -> Iterator[Request]:
    """New slices for stages that could run now, and the state of those that wait for one."""
    holding = sum(not one.permanent and one.gone is None for one in seen.slices)
    room = machines_free(seen, policy) - len(begun)
    wanting = [stage for stage in ready(seen, policy, states) if stage.machine == "accelerator"][: max(0, room)]
    number = max((int(one.name.rpartition("-")[2]) for one in seen.slices if not one.permanent), default=0)
    for place, stage in enumerate(wanting):
        if place < coming:
            states[stage.name] = StageState(State.PROVISIONING, "its slice is asked for")
        elif holding < policy.slices_at_once and policy.zones:
            promising = zones(seen.slices, policy, seen.now)
            if not promising:
                lately = f"no slice lately in {', '.join(policy.zones)}"
                why = last_reason(seen.slices)
                states[stage.name] = StageState(State.PROVISIONING, f"{lately}: {why}" if why else lately)
                continue
            zone, number, holding = promising[0], number + 1, holding + 1
            states[stage.name] = StageState(State.PROVISIONING, f"a slice in {zone} is asked for")
            yield Request(f"slice-{number}", zone, policy.dollars_per_slice_hour.get(zone))
