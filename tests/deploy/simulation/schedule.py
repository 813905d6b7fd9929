"""One seed -> settings, stages, and faults. The same seed gives the same schedule."""

import random
from dataclasses import dataclass
from typing import Literal

from nanocode.config.settings import Budget, Controller
from tests.deploy.simulation.clock import START

FAULT_SECONDS = 900.0
"""Faults begin within this time, and everything has to come to rest afterwards."""
AT_LEAST = 5
"""So many faults have to be met; with fewer, the user runs it all again, and the same ones strike again."""


@dataclass(frozen=True)
class Kind:
    """One kind of fault."""

    weight: float
    seconds: tuple[float, float] = (0.0, 0.0)
    """How long it lasts, or how late something is."""


KINDS: dict[str, Kind] = {
    # what happens to processes
    "exit 1": Kind(1.2),
    "exit 0 without a marker": Kind(0.6),
    "exit 75": Kind(0.6),
    "exit 78": Kind(0.25),
    "SIGKILL from nowhere": Kind(0.8),
    "hang": Kind(0.8),
    "deaf to SIGTERM": Kind(2.5),
    "host vanishes": Kind(1.5),
    "zombie": Kind(1.5, (40, 300)),
    "slow to start": Kind(0.8, (30, 400)),
    # slices
    "slice preempted": Kind(2.5),
    "stockout": Kind(3.0, (60, 600)),
    "quota": Kind(1.5, (60, 600)),
    "permission": Kind(0.2, (60, 600)),
    "slow arrival": Kind(1.0, (60, 1500)),
    # APIs
    "backend outage": Kind(1.0, (10, 180)),
    "provisioner outage": Kind(1.0, (10, 180)),
    "journal outage": Kind(1.0, (10, 180)),
    "call fails": Kind(2.0),
    "response lost": Kind(3.0),
    "call late": Kind(2.0, (5, 240)),
    "call twice": Kind(2.0, (5, 240)),
    "stale reads": Kind(1.5, (30, 240)),
    # controllers
    "crash in an action": Kind(9.0, (1, 60)),
    "crash between looks": Kind(0.7, (1, 120)),
    "pause": Kind(2.5, (20, 400)),
    "second controller": Kind(1.2, (60, 600)),
    "clock step": Kind(1.0, (30, 300)),
}
WISHES: dict[str, Kind] = {
    # what users do meanwhile: no faults, and no easier to bear
    "suspend": Kind(0.6, (10, 300)),
    "cancel": Kind(0.1),
    "budget changed": Kind(0.6, (10, 300)),
    "settings changed": Kind(0.8, (10, 300)),
    "forgive": Kind(0.4),
}


@dataclass(frozen=True)
class Fault:
    at: float
    kind: str
    seconds: float
    pick: float
    """In [0, 1): chooses among targets."""


@dataclass(frozen=True)
class StagePlan:
    """A stage, and how long its work takes."""

    name: str
    machine: Literal["cpu", "accelerator"]
    reads: tuple[str, ...]
    work_seconds: float
    checkpoint_seconds: float
    start_seconds: float


@dataclass(frozen=True)
class Plan:
    seed: int
    policy: Controller
    budget: Budget
    stages: tuple[StagePlan, ...]
    permanent: bool
    """Slices are somebody else's: one is always there."""
    faults: tuple[Fault, ...]
    quiet: float
    """When the last fault is over."""


def draw(seed: int) -> Plan:
    """The schedule of a seed."""
    rng = random.Random(seed)
    stages = _stages(rng)
    permanent = rng.random() < 0.12
    policy = _policy(rng, permanent)
    faults = _faults(rng)
    quiet = max(fault.at + fault.seconds for fault in faults)
    return Plan(seed, policy, _budget(rng, policy), stages, permanent, faults, max(quiet, START + FAULT_SECONDS))


def _stages(rng: random.Random) -> tuple[StagePlan, ...]:
    def stage(name: str, machine: Literal["cpu", "accelerator"], *reads: str) -> StagePlan:
        work = rng.uniform(60, 240)
        return StagePlan(name, machine, reads, work, rng.uniform(15, 50), rng.uniform(5, 50))

    chain = [stage("corpus", "cpu"), stage("pretrain", "accelerator", "corpus")]
    if rng.random() < 0.6:
        chain.append(stage("eval", "accelerator", "pretrain"))
    if rng.random() < 0.5:
        chain.insert(rng.randrange(len(chain) + 1), stage("synth", rng.choice(["cpu", "accelerator"])))
    return tuple(chain)


def _policy(rng: random.Random, permanent: bool) -> Controller:
    zones = () if permanent else ("east", "west", "north")[: rng.randint(2, 3)]
    return Controller(
        seconds_between_looks=rng.uniform(5, 15),
        attempts_at_once=rng.choice([1, 2, 2, 3]),
        slices_at_once=rng.choice([1, 1, 2]),
        failures=3,
        retry_seconds=rng.choice([0.0, 5.0, 20.0]),
        attempts_without_progress=rng.choice([3, 5, 8]),
        provision_minutes=rng.uniform(4, 10),
        admission_minutes=rng.uniform(1.5, 4),
        start_minutes=rng.uniform(1.5, 4),
        heartbeat_minutes=rng.uniform(1.5, 3),
        termination_seconds=rng.uniform(15, 30),
        release_seconds=rng.uniform(20, 60),
        hold_minutes=rng.choice([0.0, 1.0, 3.0]),
        churn_minutes=10,
        stockout_minutes=rng.uniform(1, 3),
        zones=zones,
        dollars_per_slice_hour={zone: rng.choice([4.0, 6.0, 10.0]) for zone in zones},
    )


def _budget(rng: random.Random, policy: Controller) -> Budget:
    if rng.random() < 0.4 or not policy.zones:
        return Budget()
    return Budget(dollars=rng.uniform(150, 1500) * max(policy.dollars_per_slice_hour.values()) / 3600)


def _faults(rng: random.Random) -> tuple[Fault, ...]:
    def some(kinds: dict[str, Kind], number: int) -> list[str]:
        return rng.choices(list(kinds), [kind.weight for kind in kinds.values()], k=number)

    faults = []
    for name in (*some(KINDS, rng.randint(10, 18)), *some(WISHES, rng.choice([0, 0, 1, 1, 2]))):
        shortest, longest = (KINDS | WISHES)[name].seconds
        seconds = rng.uniform(shortest, longest)
        # Most of it happens while there is work to do.
        at = START + FAULT_SECONDS * rng.random() ** 1.5
        faults.append(Fault(at, name, seconds, rng.random()))
    return tuple(sorted(faults, key=lambda fault: fault.at))
