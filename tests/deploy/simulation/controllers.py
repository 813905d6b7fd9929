"""Controllers that crash between any two effects, fall asleep with what they have seen, and have a clock of their own."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from deploy.controller.actions import Action, Begin, Close, Kill, Leave, Note, Release, Request, Tell
from deploy.controller.backend import Unreachable
from deploy.controller.decision import Decision
from deploy.controller.reconcile import Reconciler
from tests.deploy.simulation.machines import RemoteMachines
from tests.deploy.simulation.slices import RemoteZones
from tests.deploy.simulation.store import LateJournal

if TYPE_CHECKING:
    from tests.deploy.simulation.world import World

KINDS: tuple[type[Action], ...] = (Begin, Leave, Kill, Close, Request, Release, Note, Tell)
Point = Literal["before", "within", "after"]
POINTS: tuple[Point, ...] = ("before", "within", "after")
"""Before an action does anything; between an effect and the action's return; and when it has returned."""
TWO_EFFECTS = (Begin, Leave, Close, Request, Release)


class Crash(BaseException):
    """The controller's process ends here; nothing of ours may catch it on the way."""


@dataclass
class Ambush:
    """Waits for an action of this kind, and then ends the controller, or puts it to sleep."""

    what: Literal["crash", "pause"]
    kind: type[Action] | None
    point: Point
    skip: int
    """Effects that it lets pass."""
    seconds: float


class Controller:
    """One process that runs the loop. What takes over after a crash is another one."""

    def __init__(self, world: "World", name: str, offset: float = 0.0) -> None:
        self._world, self.name, self.offset = world, name, offset
        self.lag = 0.0
        self.gone = False
        self.decision: Decision | None = None
        """Of its last look; None when that came to nothing."""
        self._action: Action | None = None
        self._effects = 0
        clock = world.clock
        self._reconciler = _Watched(
            self,
            LateJournal(world.store, world.lines["journal"], self, world.invariants, lambda: self.lag),
            RemoteMachines(world.machines, world.lines["backend"], self),
            RemoteZones(world.zones, world.lines["provisioner"], self),
            lambda tell: world.say(f"{self.name} tells: {tell.text}"),
            lambda: clock.now + self.offset,
            lambda: clock.now,
        )

    def time(self) -> float:
        return self._world.clock.now + self.offset

    def look(self) -> None:
        """One round, and the next one after a while."""
        if self.gone:
            return
        self.decision, self._action, self._effects = None, None, 0
        try:
            decision = self._reconciler.once()
            self.decision = decision
            self._world.looked(self, decision)
        except Unreachable as error:
            self._world.say(f"{self.name}: {error}")
        except Crash:
            self.gone, self.decision = True, None
            return
        self._world.clock.after(self._world.plan.policy.seconds_between_looks, self.look)

    # -- where it may be hit -------------------------------------------------------------------------------------------

    def begins(self, action: Action) -> None:
        self._action, self._effects = action, 0
        if not isinstance(action, Tell):
            self._world.say(f"{self.name}: {action}")
        self._hit("before")

    def about_to_call(self) -> None:
        if self._action is None and not self.gone:
            self._hit("before")

    def effect_done(self) -> None:
        if self._action is not None:
            self._effects += 1
            self._hit("within")

    def returned(self) -> None:
        self._hit("after")
        self._action = None

    def _hit(self, point: Point) -> None:
        for ambush in self._world.ambushes:
            observing = self._action is None
            wanted = ambush.kind is None or type(self._action) is ambush.kind
            if observing and (ambush.what == "crash" or ambush.kind is not None):
                continue
            if ambush.point != point or not wanted or (point == "within" and self._effects <= ambush.skip):
                continue
            self._world.ambushes.remove(ambush)
            if ambush.what == "pause":
                self._world.pause(self, ambush.seconds)
            else:
                self._world.crash(self, ambush.seconds)
                self._world.met[f"crash {point} {type(self._action).__name__}"] += 1
                raise Crash
            return


class _Watched(Reconciler):
    """The real one; its actions are watched from outside."""

    def __init__(self, controller: Controller, *seams: object) -> None:
        super().__init__(*seams)  # type: ignore[arg-type]
        self._controller = controller

    def _act(self, action: Action, now: float) -> None:
        self._controller.begins(action)
        super()._act(action, now)
        self._controller.returned()
