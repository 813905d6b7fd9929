"""Slices of a node pool that somebody else manages: one is ours for as long as we like, and its nodes may come and go.

The scheduler finds the nodes, and an autoscaler of the pool brings them; what a slice costs is counted while an attempt
lives on it. A slice whose node has just refused a pod is left alone for a while: TPU devices come up minutes after
their node does (github.com/google/xpk and GKE's TPU troubleshooting page: "no healthy devices present").
"""

from collections.abc import Callable, Mapping

from deploy.controller.backend import Provisioner
from deploy.controller.observed import Slice
from deploy.kubernetes.trainingrun import POOL


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


class Chosen:
    """`Provisioner`: the one that the TrainingRun names at that moment."""

    def __init__(self, choose: Callable[[], Provisioner]) -> None:
        """`choose` may raise `Unreachable`, as each of its methods may."""
        self._choose = choose

    def observe(self) -> Mapping[str, Slice]:
        return self._choose().observe()

    def request(self, name: str, zone: str) -> None:
        self._choose().request(name, zone)

    def release(self, name: str) -> None:
        self._choose().release(name)
