"""Goodput of simulated d24 on spot slices: our checkpoint cadence beside the analytic optimum.

`python -m tests.bench.spot` prints a Markdown table. A slice lives for an exponential time of mean M. On each: R to start
(pod, warm compile, restore), then work for τ and a stall of s in turn, P = τ + s; a checkpoint counts u after its stall,
when its upload is whole. At the end the slice says so, and for a grace of s + u a last save is tried, which fails with
probability f. Kept is then, with q = exp(-P/M), the work of n checkpoints, n the largest with R + n·P + u < T, or all:

    E[n·τ] = τ·Σ P(T > R + k·P + u) = τ·exp(-(R + u)/M)·q / (1 - q)
    E[all] = ∫ P(T > t) over the t at which it works = exp(-R/M)·M·(1 - exp(-τ/M)) / (1 - q)
    goodput(τ) = (f·E[n·τ] + (1 - f)·E[all]) / (M + (s + u)·exp(-R/M))

The time without a slice is left out of it. With f = 1 the best τ is Daly's (2006, eq. 20), whatever R and u. With f < 1
work is lost only every M / f, and Daly's formula with that agrees to a hair: that is what the cadence observes.
"""

import random
from collections import deque
from dataclasses import dataclass
from math import exp, expm1, sqrt

from scipy.optimize import minimize_scalar

from nanocode.config.settings import Settings, load
from nanocode.run.cadence import RECENT_ATTEMPTS, Cadence

MEANS = {"25 minutes": 1500.0, "2 hours": 7200.0, "1 week": 604_800.0}
SLICES = 5_000
"""Simulated lives: the standard error of goodput stays below 0.2%; the shortest make three months."""
FLOAT = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class World:
    """Seconds, but for the probability that the save at the end of a slice fails."""

    provision: float = 300.0
    pod: float = 45.0
    compile: float = 20.0
    transfer: float = 0.0
    """Of a checkpoint, to the bucket or from it."""
    stall: float = 2.0
    fail: float = 0.5

    @property
    def start(self) -> float:
        return self.pod + self.compile + self.transfer

    @property
    def grace(self) -> float:
        return self.stall + self.transfer


def state_bytes(settings: Settings) -> int:
    """Of a checkpoint: weights and one moment (Muon) for the layers' matrices, two (AdamW) for all else."""
    shape = settings.model
    matrices = shape.matmul_parameters() - shape.width * shape.vocab_size
    return FLOAT * (2 * matrices + 3 * (shape.parameters() - matrices))


def goodput(work: float, mean: float, world: World) -> float:
    """The formula above."""
    period = work + world.stall
    checkpointed = work * exp(-(world.start + world.transfer) / mean) / expm1(period / mean)
    everything = exp(-world.start / mean) * mean * expm1(-work / mean) / expm1(-period / mean)
    kept = world.fail * checkpointed + (1 - world.fail) * everything
    return kept / (mean + world.grace * exp(-world.start / mean))


def best(mean: float, world: World) -> float:
    """The interval of the highest goodput, of those at which a save does not wait for the one before."""
    found = minimize_scalar(
        lambda work: -goodput(work, mean, world), bounds=(world.transfer, 2 * mean), method="bounded"
    )
    return float(found.x)


@dataclass
class Total:
    """What the slices came to."""

    kept: list[float]
    lived: list[float]
    provisioning: float = 0.0
    interval: float = 0.0
    """The last one."""

    @property
    def goodput(self) -> float:
        return sum(self.kept) / sum(self.lived)

    @property
    def goodput_with_provisioning(self) -> float:
        return sum(self.kept) / (sum(self.lived) + self.provisioning)

    @property
    def error(self) -> float:
        """Standard error of `goodput`, as of a ratio of means."""
        squares = sum((kept - self.goodput * lived) ** 2 for kept, lived in zip(self.kept, self.lived, strict=True))
        return sqrt(squares) / sum(self.lived)


def simulate(
    mean: float, world: World, cadence: Cadence | None, fixed: float = 0.0, slices: int = SLICES, seed: int = 0
) -> Total:
    """Slice after slice, with what a cadence learns on the way, or at a fixed interval."""
    lives, fails = random.Random(seed), random.Random(seed + 1)
    recent: deque[tuple[float, bool]] = deque(maxlen=RECENT_ATTEMPTS)
    total = Total([], [])
    for _ in range(slices):
        life, failed = lives.expovariate(1 / mean), fails.random() < world.fail
        if cadence is not None:
            losses = sum(lost for _, lost in recent)
            cadence.between_losses = sum(lived for lived, _ in recent) / losses if losses else None
        total.interval = fixed or (cadence.seconds if cadence else 0.0)
        worked, kept, at = 0.0, 0.0, world.start
        while at < life:
            work = fixed or (cadence.seconds if cadence else 0.0)
            worked += min(work, life - at)
            at += work + world.stall
            if at >= life:
                break
            if cadence is not None:
                cadence.measured(world.stall, world.transfer)
            if at + world.transfer < life:
                kept = worked
        started = life > world.start
        lost = failed or not started
        total.kept.append(kept if lost else worked)
        total.lived.append(life + (world.grace if started else 0.0))
        total.provisioning += world.provision
        recent.append((life, lost))
    return total


def main() -> None:
    settings = load("d24", environment={})
    world = World(transfer=state_bytes(settings) / 1e9)
    print(f"A checkpoint of d24 is {world.transfer:.1f} GB; {SLICES:,} slices each; goodput without provisioning.\n")
    print("| slices live | analytic optimum | at | our cadence | at about | of the optimum | best fixed interval "
          "| with provisioning |\n|---|---:|---:|---:|---:|---:|---:|---:|")  # fmt: skip
    for name, mean in MEANS.items():
        optimum = best(mean, world)
        training = settings.pretrain
        cadence = Cadence(60 * training.checkpoint_minutes_min, 60 * training.checkpoint_minutes)
        ours = simulate(mean, world, cadence)
        tried = [optimum * 2 ** (power / 4) for power in range(-6, 7, 2)]
        swept = max((simulate(mean, world, None, one).goodput, one) for one in tried if one > world.transfer)
        highest = goodput(optimum, mean, world)
        print(
            f"| {name} | {highest:.2%} | {optimum:,.0f} s | {ours.goodput:.2%} ± {ours.error:.2%} "
            f"| {ours.interval:,.0f} s | {ours.goodput / highest:.2%} | {swept[0]:.2%} at {swept[1]:,.0f} s "
            f"| {ours.goodput_with_provisioning:.2%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
