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
TWO_EFFECTS = (Begin, Leave, Close, Request, Release)
"""They write something down, and then ask for it."""
Point = Literal["before", "between", "unanswered", "after"]
POINTS: dict[Point, str] = {
    "before": "before it does anything",
    "between": "written down, not asked for",
    "unanswered": "done, the answer not heard",
    "after": "done and answered",
}
Cell = tuple[type[Action], Point]
CELLS: tuple[Cell, ...] = tuple(
    (kind, point) for kind in KINDS for point in POINTS if point != "between" or kind in TWO_EFFECTS
)
"""Every action, cut off at every point there is in it."""
AIMS = (*CELLS, *(cell for cell in CELLS if cell[0] in (Kill, Leave) for _ in range(2)))
"""What ambushes lie in wait for: they meet the rarer actions about as often as the others."""


class Crash(BaseException):
    """The controller's process ends here; nothing of ours may catch it on the way."""


@dataclass
class Ambush:
    """Waits for an action of this kind, and then ends the controller, or puts it to sleep."""

    what: Literal["crash", "pause"]
    kind: type[Action] | None
    """None: while it observes."""
    point: Point
    seconds: float


class Controller:
    """One process that runs the loop. What takes over after a crash is another one."""

    def __init__(self, world: "World", name: str, offset: float = 0.0) -> None:
        self._world, self.name, self.offset = world, name, offset
        self.lag = 0.0
        self.gone = False
        self.began = 0.0
        """When its last look did."""
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
        self.began, self.decision, self._action, self._effects = self._world.clock.now, None, None, 0
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
            last = self._effects == (2 if isinstance(self._action, TWO_EFFECTS) else 1)
            self._hit("unanswered" if last else "between")

    def returned(self) -> None:
        self._hit("after")
        self._action = None

    def unanswered(self) -> None:
        self._action = None

    def _hit(self, point: Point) -> None:
        kind = type(self._action) if self._action is not None else None
        ambush = next((one for one in self._world.ambushes if (one.kind, one.point) == (kind, point)), None)
        if ambush is None:
            return
        self._world.ambushes.remove(ambush)
        if ambush.what == "pause":
            self._world.pause(self, ambush.seconds)
            return
        assert kind is not None
        self._world.cut[kind.__name__, point] += 1
        self._world.crash(self, "crash in an action", ambush.seconds)
        raise Crash


class _Watched(Reconciler):
    """The real one; its actions are watched from outside."""

    def __init__(self, controller: Controller, *seams: object) -> None:
        super().__init__(*seams)  # type: ignore[arg-type]
        self._controller = controller

    def _act(self, action: Action, now: float) -> None:
        self._controller.begins(action)
        try:
            super()._act(action, now)
        except Unreachable:
            self._controller.unanswered()
            raise
        self._controller.returned()
