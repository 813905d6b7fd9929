"""Goodput on simulated spot slices: the simulation agrees with the formula, and our cadence with its optimum."""

import pytest

from nanocode.config.settings import load
from nanocode.run.cadence import Cadence
from tests.bench.spot import MEANS, World, best, goodput, simulate, state_bytes

D24 = World(transfer=11.3)


def test_a_checkpoint_of_d24_is_eleven_gigabytes() -> None:
    assert state_bytes(load("d24", environment={})) == pytest.approx(11.3e9, rel=0.01)


@pytest.mark.parametrize("mean", [1500.0, 7200.0])
@pytest.mark.parametrize("work", [60.0, 240.0])
@pytest.mark.parametrize("fail", [0.5, 1.0])
def test_the_formula_is_what_a_simulation_comes_to(mean: float, work: float, fail: float) -> None:
    world = World(transfer=D24.transfer, fail=fail)
    found = simulate(mean, world, None, work, slices=2000)
    assert found.goodput == pytest.approx(goodput(work, mean, world), abs=4 * found.error)
    assert found.error < 0.005


@pytest.mark.parametrize(("name", "slices"), [("25 minutes", 2000), ("2 hours", 2000), ("1 week", 200)])
def test_our_cadence_comes_within_two_percent_of_the_optimum(name: str, slices: int) -> None:
    mean = MEANS[name]  # of a week no more: each slice has 2,500 checkpoints
    found = simulate(mean, D24, Cadence(30.0, 240.0), slices=slices)
    assert found.goodput > 0.98 * goodput(best(mean, D24), mean, D24)
