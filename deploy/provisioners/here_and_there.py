"""Stages that need an accelerator on slices, the others here: two backends as one, told apart by the claims."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from deploy.controller.backend import Backend, Unreachable
from deploy.controller.observed import Seen
from deploy.local.backend import THIS_MACHINE, LocalBackend
from deploy.provisioners.vms import SliceVms
from nanocode.storage.objects import StorageError

Key = tuple[str, int]


class HereAndThere:
    """`Backend` over a cluster, or this machine, and the VMs of slices."""

    def __init__(
        self,
        here: Backend,
        there: SliceVms,
        is_there: Callable[[str | None], bool] = lambda slice: slice not in (None, THIS_MACHINE),
        mirror: Callable[[str, int], object] = lambda stage, attempt: None,
    ) -> None:
        """`is_there`: whether attempts on this slice are on its VMs. `mirror`: have one's log shown here; asked again
        at every look, and no matter what becomes of it."""
        self._here, self._there, self._on_vms, self._mirror = here, there, is_there, mirror

    def observe(self, live: Sequence[Key]) -> Mapping[Key, Seen]:
        there = [key for key in live if self._is_there(key)]
        found = self._here.observe([key for key in live if key not in there])
        for key in there:
            self._mirror(*key)
        # What we find here of an attempt on a slice is not ours: the bridge that mirrors its log, or another's process.
        return {**{key: one for key, one in found.items() if not self._is_there(key)}, **self._there.observe(there)}

    def start(self, stage: str, attempt: int, slice: str | None) -> None:
        (self._there if self._on_vms(slice) else self._here).start(stage, attempt, slice)

    def stop(self, stage: str, attempt: int) -> None:
        self._of((stage, attempt)).stop(stage, attempt)

    def kill(self, stage: str, attempt: int) -> None:
        self._of((stage, attempt)).kill(stage, attempt)

    def forget(self, stage: str, attempt: int) -> None:
        self._of((stage, attempt)).forget(stage, attempt)

    def _of(self, key: Key) -> Backend:
        return self._there if self._is_there(key) else self._here

    def _is_there(self, key: Key) -> bool:
        try:
            return self._on_vms(self._there.slice_of(key))
        except StorageError as error:
            raise Unreachable(str(error)) from error


class LaptopAndSlices(HereAndThere):
    """The same for whoever sits before it."""

    def __init__(self, here: LocalBackend, there: SliceVms) -> None:
        super().__init__(here, there)
        self._laptop, self._slices = here, there

    @property
    def alive(self) -> Mapping[Key, int]:
        return {**self._laptop.alive, **dict.fromkeys(self._slices.alive, 0)}

    def wait(self, seconds: float, handle: int) -> None:
        self._laptop.wait(seconds, handle)

    def hurry(self) -> None:
        self._laptop.hurry()
        for stage, attempt in sorted(self._slices.alive):
            with suppress(Unreachable):  # the wish to leave stands: the controller tells it again
                self._slices.kill(stage, attempt)

    def has_shown(self, stage: str, attempt: int) -> bool:
        return self._laptop.has_shown(stage, attempt)
