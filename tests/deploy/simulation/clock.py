"""Time that jumps from event to event."""

import heapq
from collections.abc import Callable

START = 1_000_000.0


class Clock:
    """Runs what was planned, in order. Whoever sleeps lets others run meanwhile: `run_until` may be called within."""

    def __init__(self) -> None:
        self.now = START
        self.stopped = False
        self._planned: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0

    def at(self, when: float, what: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._planned, (max(when, self.now), self._count, what))

    def after(self, seconds: float, what: Callable[[], object]) -> None:
        self.at(self.now + seconds, what)

    def run_until(self, when: float) -> None:
        while not self.stopped and self._planned and self._planned[0][0] <= when:
            at, _, what = heapq.heappop(self._planned)
            self.now = max(self.now, at)
            what()
        if not self.stopped:
            self.now = max(self.now, when)


class Spans:
    """Stretches of time in which something was wrong."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def add(self, begin: float, end: float) -> None:
        """Overlapping ones are joined."""
        apart = [one for one in self._spans if one[1] < begin or one[0] > end]
        joined = [one for one in self._spans if not (one[1] < begin or one[0] > end)]
        if joined:
            begin, end = min(begin, *(one[0] for one in joined)), max(end, *(one[1] for one in joined))
        self._spans = [*apart, (begin, end)]

    def seconds(self, begin: float, end: float) -> float:
        """How much of this stretch they cover."""
        return sum(max(0.0, min(end, stop) - max(begin, start)) for start, stop in self._spans)
