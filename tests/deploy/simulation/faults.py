"""What each kind of fault does to the world. False: there is nothing yet for it to happen to.

Those of `WHEN_MET` lie in wait, and count once something has run into them; the others count at once.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from deploy.controller.actions import Action
from deploy.controller.observed import Process, Trouble
from nanocode.config.settings import Budget
from tests.deploy.simulation.controllers import AIMS, Ambush, Point
from tests.deploy.simulation.lines import Mishap
from tests.deploy.simulation.machines import Running
from tests.deploy.simulation.schedule import Fault

if TYPE_CHECKING:
    from tests.deploy.simulation.world import World

Effect = Callable[["World", Fault], bool]
STALE_SECONDS = 30.0
WHILE_IT_OBSERVES: tuple[None, Point] = (None, "before")


def strike(world: "World", fault: Fault) -> bool:
    return EFFECTS[fault.kind](world, fault)


def _running(world: "World", fault: Fault) -> Running | None:
    there = [one for one in world.machines.alive() if one.shown is Process.RUNNING and not one.fate]
    return there[int(fault.pick * len(there))] if there else None


def _exit(code: int) -> Effect:
    def effect(world: "World", fault: Fault) -> bool:
        one = _running(world, fault)
        if one is None:
            return False
        world.machines.die(one, code)
        return True

    return effect


def _fate(fate: str) -> Effect:
    def effect(world: "World", fault: Fault) -> bool:
        one = _running(world, fault)
        if one is None:
            return False
        one.fate = fate
        if fate == "hang":
            one.turn += 1
            one.silent_since = world.clock.now
        return True

    return effect


def _vanish(world: "World", fault: Fault) -> bool:
    one = _running(world, fault)
    if one is not None:
        world.machines.vanish(one)
    return one is not None


def _zombie(world: "World", fault: Fault) -> bool:
    one = _running(world, fault)
    if one is not None:
        world.machines.sleep(one, fault.seconds, comes_back=fault.pick * 7 % 1 < 0.5)
    return one is not None


def _slow_start(world: "World", fault: Fault) -> bool:
    world.machines.start_delay = fault.seconds
    return True


def _preempt(world: "World", fault: Fault) -> bool:
    there = [one for one in world.zones.present() if one.ready is not None and one.paid_until is None]
    if not there:
        return False
    grace, shown_for = (0.0, 25.0)[int(fault.pick * 10) % 2], (0.0, 60.0)[int(fault.pick * 100) % 2]
    world.zones.preempt(there[int(fault.pick * len(there))], grace, shown_for)
    return True


def _refuse(trouble: Trouble) -> Effect:
    def effect(world: "World", fault: Fault) -> bool:
        zones = world.plan.policy.zones
        if zones:
            world.zones.refusing[zones[int(fault.pick * len(zones))]] = (trouble, world.clock.now + fault.seconds)
        return bool(zones)

    return effect


def _slow_arrival(world: "World", fault: Fault) -> bool:
    world.zones.arrival_delay = fault.seconds
    return bool(world.plan.policy.zones)


def _outage(line: str) -> Effect:
    def effect(world: "World", fault: Fault) -> bool:
        world.lines[line].outage(fault.seconds)
        return True

    return effect


def _mishap(mishap: Mishap) -> Effect:
    def effect(world: "World", fault: Fault) -> bool:
        lines = list(world.lines.values())
        lines[int(fault.pick * len(lines))].arm(mishap, fault.seconds)
        return True

    return effect


def _stale(world: "World", fault: Fault) -> bool:
    for one in world.controllers:
        one.lag = fault.pick * STALE_SECONDS
        world.clock.after(fault.seconds, partial(setattr, one, "lag", 0.0))
    look = world.plan.policy.seconds_between_looks
    world.disturbed.add(world.clock.now - STALE_SECONDS, world.clock.now + fault.seconds + STALE_SECONDS + 2 * look)
    return True


def _crash_in_action(world: "World", fault: Fault) -> bool:
    world.ambushes.append(Ambush("crash", *AIMS[int(fault.pick * len(AIMS))], fault.seconds))
    return True


def _crash_between(world: "World", fault: Fault) -> bool:
    one = world.controllers[0]
    if one.gone:
        return False
    one.gone, one.decision = True, None
    world.crash(one, "crash between looks", fault.seconds)
    return True


def _pause(world: "World", fault: Fault) -> bool:
    number = int(fault.pick * 2 * len(AIMS))
    aim: tuple[type[Action] | None, Point] = AIMS[number] if number < len(AIMS) else WHILE_IT_OBSERVES
    world.ambushes.append(Ambush("pause", *aim, fault.seconds))
    return True


def _second(world: "World", fault: Fault) -> bool:
    other = world.begin("second")
    world.clock.after(fault.seconds, lambda: world.retire(other))
    return True


def _step(world: "World", fault: Fault) -> bool:
    """One controller's clock jumps, and is put right after some minutes."""
    one = world.controllers[int(fault.pick * len(world.controllers))]
    step = fault.seconds if fault.pick * 7 % 1 < 0.5 else -fault.seconds
    one.offset += step
    world.stepped += abs(step)
    world.clock.after(200.0, partial(setattr, one, "offset", 0.0))
    return True


def _suspend(world: "World", fault: Fault) -> bool:
    world.user(intent=world.store.word.intent.model_copy(update={"want": "suspend"}))
    if fault.pick > 0.2:
        world.clock.after(
            fault.seconds,
            lambda: world.user(intent=world.store.word.intent.model_copy(update={"want": "run"})),
        )
    return True


def _cancel(world: "World", fault: Fault) -> bool:
    world.user(intent=world.store.word.intent.model_copy(update={"want": "cancel"}))
    return True


def _budget(world: "World", fault: Fault) -> bool:
    before = world.store.word.budget.dollars
    if before is None:
        return False
    world.user(budget=Budget(dollars=before * (0.3 + 2 * fault.pick)))
    return True


def _settings(world: "World", fault: Fault) -> bool:
    """Other settings for one stage; half of the time the user soon takes it back."""
    before = world.store.word.config
    place = int(fault.pick * len(before))
    world.user(config=tuple(number + (at == place) for at, number in enumerate(before)))
    if fault.pick * 7 % 1 < 0.5:
        world.clock.after(fault.seconds, lambda: world.user(config=before))
    return True


def _forgive(world: "World", fault: Fault) -> bool:
    forgiven = {name: len(one.tried) for name, one in world.store.stages.items()}
    world.user(intent=world.store.word.intent.model_copy(update={"forgiven": forgiven}))
    return True


EFFECTS: dict[str, Effect] = {
    "exit 1": _exit(1),
    "exit 0 without a marker": _fate("no marker"),
    "exit 75": _exit(75),
    "exit 78": _exit(78),
    "SIGKILL from nowhere": _exit(-9),
    "hang": _fate("hang"),
    "deaf to SIGTERM": _fate("deaf"),
    "host vanishes": _vanish,
    "zombie": _zombie,
    "slow to start": _slow_start,
    "slice preempted": _preempt,
    "stockout": _refuse(Trouble.STOCKOUT),
    "quota": _refuse(Trouble.QUOTA),
    "permission": _refuse(Trouble.PERMISSION),
    "slow arrival": _slow_arrival,
    "backend outage": _outage("backend"),
    "provisioner outage": _outage("provisioner"),
    "journal outage": _outage("journal"),
    "call fails": _mishap("call fails"),
    "response lost": _mishap("response lost"),
    "call late": _mishap("call late"),
    "call twice": _mishap("call twice"),
    "stale reads": _stale,
    "crash in an action": _crash_in_action,
    "crash between looks": _crash_between,
    "pause": _pause,
    "second controller": _second,
    "clock step": _step,
    "suspend": _suspend,
    "cancel": _cancel,
    "budget changed": _budget,
    "settings changed": _settings,
    "forgive": _forgive,
}

WHEN_MET = {
    "exit 0 without a marker", "deaf to SIGTERM", "slow to start", "slow arrival", "stockout", "quota", "permission",
    "backend outage", "provisioner outage", "journal outage", "call fails", "response lost", "call late", "call twice",
    "crash in an action", "crash between looks", "pause",
}  # fmt: skip
