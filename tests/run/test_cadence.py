"""The interval between checkpoints wastes least, and follows from what earlier attempts of a run went through."""

import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nanocode.config.settings import load
from nanocode.run.attempts import End, Ending, record
from nanocode.run.cadence import Cadence, interval, settle
from nanocode.run.directory import RunDirectory
from nanocode.run.goodput import LAST_SAVE
from nanocode.run.segments import SegmentWriter
from nanocode.storage.objects import LocalStore

TRAINING = load("demo", environment={}).pretrain.model_copy(
    update={"checkpoint_minutes": 10.0, "checkpoint_minutes_min": 0.25}
)


def wasted(interval: float, stall: float, losses: list[float]) -> float:
    """Share of the time that is not kept, with a loss after each of these lives."""
    kept = sum(int(life / (interval + stall)) * interval for life in losses)
    return 1 - kept / sum(losses)


@pytest.mark.parametrize(("stall", "mean"), [(2.0, 1500.0), (10.0, 1500.0), (30.0, 600.0)])
def test_no_interval_wastes_less_in_a_simulation(stall: float, mean: float) -> None:
    generator = random.Random(0)
    lives = [generator.expovariate(1 / mean) for _ in range(20_000)]
    ours = interval(stall, mean)
    tried = [ours * 1.02**power for power in range(-60, 61, 2)]
    least = min(wasted(one, stall, lives) for one in tried)
    assert 1 - wasted(ours, stall, lives) >= 0.999 * (1 - least)
    for other in (ours / 2, ours * 2):
        assert wasted(other, stall, lives) > wasted(ours, stall, lives)


def test_the_minimum_of_expected_time_lies_within_two_percent_of_the_interval() -> None:
    from math import expm1

    for stall, mean in ((2.0, 1500.0), (2.0, 7200.0), (2.0, 604_800.0), (60.0, 1500.0), (300.0, 900.0)):
        ours = interval(stall, mean)
        tried = [ours * (1 + part / 1000) for part in range(-100, 101)]
        best = min(tried, key=lambda one: expm1((one + stall) / mean) / one)
        assert best == pytest.approx(ours, rel=0.02), (stall, mean)


def test_where_a_save_takes_longer_than_slices_live_the_interval_is_how_long_they_live() -> None:
    assert interval(100.0, 40.0) == 40.0


def test_until_something_is_lost_the_longest_interval_holds() -> None:
    cadence = Cadence(15.0, 600.0)
    cadence.measured(2.0, 11.0)
    assert cadence.seconds == 600.0


def test_where_work_is_lost_before_anything_was_saved_the_first_save_comes_soon() -> None:
    assert Cadence(15.0, 600.0, between_losses=300.0).seconds == 15.0


def test_the_interval_stays_within_its_bounds_and_is_no_shorter_than_a_save() -> None:
    assert Cadence(15.0, 600.0, between_losses=1e6, stall=60.0).seconds == 600.0
    assert Cadence(15.0, 600.0, between_losses=60.0, stall=0.01).seconds == 15.0
    assert Cadence(15.0, 600.0, between_losses=60.0, stall=0.01, save_seconds=40.0).seconds == 40.0


def test_a_measured_save_changes_the_interval_and_is_recorded() -> None:
    kept = []
    cadence = Cadence(15.0, 600.0, between_losses=1500.0, keep=lambda kind, **facts: kept.append((kind, facts)))
    cadence.measured(2.0, None)
    cadence.measured(8.0, 11.0)
    assert cadence.seconds == pytest.approx(interval(8.0, 1500.0))
    assert kept[1] == ("saved", {"stall": 8.0, "seconds": 11.0, "interval": cadence.seconds})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(LocalStore(tmp_path))


def attempt(
    run: RunDirectory, stage: str, lived: float, saved: bool = False, stall: float = 2.0, ending: Ending | None = None
) -> None:
    number = run.claim(stage, "ab" * 16, "elsewhere:1")
    claim = run.attempts(stage)[-1].model_copy(update={"claimed": datetime.fromtimestamp(1e9, UTC)})
    run.store.write(f"{stage}/attempts/{number}/claim.json", claim.model_dump_json().encode())
    with SegmentWriter(run.store, stage, number, "events", 0, clock=lambda: 1e9 + lived) as events:
        events.write({"kind": "saved", "stall": stall, "seconds": 11.0, "interval": 60.0})
        if saved:
            events.write({"kind": "end", "phase": LAST_SAVE})
    if ending is not None:
        record(run, stage, number, End(ending=ending, reason="", at=1e9 + lived, progress=0))


def settled(run: RunDirectory, stage: str = "pretrain") -> Cadence:
    number = max((claim.attempt for claim in run.attempts(stage)), default=0) + 1
    return settle(run, stage, number, TRAINING, lambda kind, **facts: None)


def test_a_first_attempt_saves_at_the_longest_interval(run: RunDirectory) -> None:
    assert settled(run).seconds == 600.0


def test_the_rate_of_loss_is_that_of_the_attempts_whose_work_was_lost(run: RunDirectory) -> None:
    for lived, saved, ending in (
        (1000.0, False, Ending.PREEMPTED),
        (2000.0, True, Ending.PREEMPTED),
        (600.0, False, Ending.FAILED),
        (900.0, False, Ending.STOPPED),
        (1500.0, False, None),
    ):
        attempt(run, "pretrain", lived, saved, ending=ending)
    found = settled(run)
    assert found.between_losses == pytest.approx(6000.0 / 3)
    assert (found.stall, found.save_seconds) == (2.0, 11.0)
    assert found.seconds == pytest.approx(interval(2.0, 2000.0))


def test_a_stage_that_has_lost_little_looks_at_the_other_training_stages(run: RunDirectory) -> None:
    for _ in range(4):
        attempt(run, "pretrain", 500.0)
    found = settled(run, "sft")
    assert found.between_losses == pytest.approx(500.0)
    assert found.stall is None, "its own save has another size"
