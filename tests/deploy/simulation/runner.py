"""Many schedules on several processes, and what they met."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from tests.deploy.simulation.schedule import KINDS
from tests.deploy.simulation.slices import Zones
from tests.deploy.simulation.world import Result, simulate

BATCH = 50


@dataclass
class Summary:
    """Of many schedules."""

    schedules: int = 0
    looks: int = 0
    fewest_faults: int = 10**9
    states: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    cut: Counter[tuple[str, str]] = field(default_factory=Counter)
    broken: list[tuple[int, str]] = field(default_factory=list)
    """Seed, and the first invariant that it broke."""

    def add(self, result: Result) -> None:
        self.schedules += 1
        self.looks += result.looks
        self.met.update(result.met)
        self.cut.update(result.cut)
        if result.broken:
            self.broken.append((result.seed, result.broken[0]))
        else:
            self.states[result.state] += 1
            self.fewest_faults = min(self.fewest_faults, sum(result.met[kind] for kind in KINDS))

    def join(self, other: "Summary") -> None:
        self.schedules += other.schedules
        self.looks += other.looks
        self.fewest_faults = min(self.fewest_faults, other.fewest_faults)
        self.states.update(other.states)
        self.met.update(other.met)
        self.cut.update(other.cut)
        self.broken += other.broken


@contextmanager
def silence() -> Iterator[None]:
    """Without the controller's warnings of answers that did not come: there are thousands."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


def run(first: int, schedules: int, stop_at_first: bool = False, zones: type[Zones] = Zones) -> Summary:
    """In this process. What the controller raises is a broken invariant, too."""
    summary = Summary()
    with silence():
        for seed in range(first, first + schedules):
            try:
                result = simulate(seed, zones=zones)
            except Exception as error:
                result = Result(seed, broken=[f"{type(error).__name__}: {error}"])
            summary.add(result)
            if stop_at_first and result.broken:
                break
    return summary


def run_in_processes(first: int, schedules: int, processes: int | None = None) -> Summary:
    """The same, batch by batch."""
    whole = Summary()
    starts = range(first, first + schedules, BATCH)
    sizes = [min(BATCH, first + schedules - start) for start in starts]
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        for part in pool.map(run, starts, sizes):
            whole.join(part)
    return whole
