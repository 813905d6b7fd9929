"""Small worlds for table tests: `run(pretrain(attempt(1, ended(...))))` reads as a sentence."""

from dataclasses import replace
from typing import Any

from deploy.controller.actions import Action
from deploy.controller.decide import decide
from deploy.controller.decision import Decision
from deploy.controller.observed import Attempt, Observed, Process, Seen, Slice, Stage
from nanocode.config.settings import Budget, Controller
from nanocode.run.attempts import End, Ending, Stop
from nanocode.run.intent import Intent

NOW = 1_000_000.0
DIGEST, OLD = "a" * 32, "b" * 32
MINUTE = 60.0
ZONES = ("east", "west", "north")
POLICY = Controller(
    attempts_at_once=2,
    slices_at_once=1,
    zones=ZONES,
    dollars_per_slice_hour={"east": 4.0, "west": 4.0, "north": 8.0},
)
HERE = Slice("this machine", "here", usable=True, permanent=True)


def ended(ending: Ending, progress: int = 0, ago: float = 0.0, reason: str = "because") -> End:
    return End(ending=ending, reason=reason, at=NOW - ago, progress=progress)


def stop(ago: float = 0.0, hung: bool = False) -> Stop:
    return Stop(reason="told so", at=NOW - ago, hung=hung)


def attempt(number: int, process: Process = Process.RUNNING, ago: float = 10.0, **changes: Any) -> Attempt:
    """Claimed `ago` seconds ago, and its process seen since then."""
    seen = Seen(process, exit_code=changes.pop("exit_code", None), disrupted=changes.pop("disrupted", False),
                since=NOW - ago, reason=changes.pop("said", ""))  # fmt: skip
    return Attempt(number, changes.pop("digest", DIGEST), NOW - ago, seen, **changes)


def over(number: int, ending: Ending, progress: int = 0, ago: float = 0.0, **changes: Any) -> Attempt:
    """An attempt that has ended."""
    return attempt(number, Process.ABSENT, ago + 10, end=ended(ending, progress, ago), **changes)


def cpu(name: str, *attempts: Attempt, reads: tuple[str, ...] = (), **changes: Any) -> Stage:
    return Stage(name, "cpu", reads, DIGEST, attempts=attempts, **changes)


def accelerator(name: str, *attempts: Attempt, reads: tuple[str, ...] = (), **changes: Any) -> Stage:
    return Stage(name, "accelerator", reads, DIGEST, attempts=attempts, **changes)


def slice_(number: int, zone: str = "east", ready: float | None = 5 * MINUTE, **changes: Any) -> Slice:
    """One that was asked for ten minutes ago and came `ready` seconds ago; it is there and can be used."""
    one = Slice(
        f"slice-{number}",
        zone,
        POLICY.dollars_per_slice_hour[zone],
        NOW - 10 * MINUTE,
        NOW - ready if ready is not None else None,
        usable=ready is not None,
    )
    return replace(one, **changes)


def world(*stages: Stage, slices: tuple[Slice, ...] = (HERE,), want: str = "run", **changes: Any) -> Observed:
    intent = changes.pop("intent", Intent(want=want))
    return Observed(NOW, intent, stages, slices, **changes)


def decided(seen: Observed, policy: Controller = POLICY, budget: float | None = None) -> Decision:
    return decide(seen, policy, Budget(dollars=budget))


def acts(seen: Observed, policy: Controller = POLICY, budget: float | None = None) -> list[Action]:
    """The actions, without what is only said."""
    actions = decided(seen, policy, budget).actions
    return [action for action in actions if type(action).__name__ != "Tell"]
