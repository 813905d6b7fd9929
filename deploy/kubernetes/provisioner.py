"""Slices of a node pool that somebody else manages: one is ours for as long as we like, and its nodes may come and go.

The scheduler finds the nodes, and an autoscaler of the pool brings them; what a slice costs is counted while an attempt
lives on it. A slice whose node has just refused a pod is left alone for a while: TPU devices come up minutes after
their node does (github.com/google/xpk and GKE's TPU troubleshooting page: "no healthy devices present").
"""

from collections.abc import Callable, Mapping

from deploy.controller.backend import Provisioner
from deploy.controller.observed import Slice
from deploy.kubernetes.trainingrun import POOL

EXISTING = "existing"


class ExistingPool:
    """`Provisioner` of what is there anyway."""

    def __init__(self, dollars_per_hour: Callable[[], float | None], usable: Callable[[], bool] = lambda: True) -> None:
        self._dollars_per_hour, self._usable = dollars_per_hour, usable

    def observe(self) -> Mapping[str, Slice]:
        return {POOL: Slice(POOL, POOL, self._dollars_per_hour(), permanent=True, usable=self._usable())}

    def request(self, name: str, zone: str) -> None:
        """Never asked: it is permanent."""

    def release(self, name: str) -> None:
        """Nor is this."""


class ByMaker:
    """`Provisioner`: slices are asked for where the TrainingRun says at that moment, and those that it holds stay with
    who made them, until they are given back: the spec may change meanwhile."""

    def __init__(
        self, now: Callable[[], str], held: Callable[[], Mapping[str, str]], of: Callable[[str], Provisioner]
    ) -> None:
        """`now`: who is asked. `held`: slices that are not gone, and who made each. `of`: the provisioner by that word;
        it may raise `Unreachable`, as each of its methods may."""
        self._now, self._held, self._of = now, held, of

    def observe(self) -> Mapping[str, Slice]:
        held = self._held()
        # A pool that is there anyway waits until what was asked for is given back.
        makers = {*held.values(), *([self._now()] if self._now() != EXISTING or not held else [])}
        found: dict[str, Slice] = {}
        for maker in sorted(makers):
            shown = self._of(maker).observe()
            found |= {name: one for name, one in shown.items() if held.get(name, maker) == maker}
        return found

    def request(self, name: str, zone: str) -> None:
        self._of(self._held().get(name, self._now())).request(name, zone)

    def release(self, name: str) -> None:
        self._of(self._held().get(name, self._now())).release(name)
