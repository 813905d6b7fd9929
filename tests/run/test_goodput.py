"""Where a stage's time went: every instant once, whatever was recorded, and the right kind for what is known."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode.run.goodput import Kind, Ledger, Life, Record, ledger

T0 = 1_800_000_000.0


def at(seconds: float, **record: Any) -> Record:
    return {"time": T0 + seconds, **record}


def timed(seconds: float, step: int, steps: int, step_seconds: float, **spent: float) -> Record:
    amounts = {"data": 0.0, "checkpoint": 0.0, "evaluation": 0.0, **spent}
    return at(seconds, kind="time", step=step, steps_timed=steps, step_seconds=step_seconds, **amounts)


def phase(name: str, begin: float, end: float) -> list[Record]:
    return [at(begin, kind="begin", phase=name), at(end, kind="end", phase=name)]


def life(number: int, claimed: float, ended: float | None, *records: Record) -> Life:
    return Life(number, T0 + claimed, None if ended is None else T0 + ended, records)


def of(
    *lives: Life,
    until: float,
    trains: bool = True,
    maker: int | None = None,
    provisioning: Sequence[tuple[float, float]] = (),
) -> Ledger:
    return ledger(lives, T0 + until, trains, maker, [(T0 + begin, T0 + end) for begin, end in provisioning])


def test_a_quiet_training_stage_is_start_up_compile_steps_and_what_held_them_up() -> None:
    quiet = life(
        1, 0, 110,
        at(5, kind="start"), *phase("restore", 6, 8), *phase("compile", 8, 20), at(21, kind="resumed", step=0),
        *phase("evaluation", 22, 25), at(26.5, kind="first step"),
        timed(65, 10, 10, 36.0, data=3.0, evaluation=3.0), timed(105, 20, 10, 38.0, checkpoint=2.0),
        *phase("saving", 105, 109), at(110, kind="left"),
    )  # fmt: skip
    assert of(quiet, until=110, maker=1).seconds == {
        Kind.PRODUCTIVE: 74.0, Kind.STARTUP: 7.0, Kind.COMPILE: 12.0, Kind.RESTORE: 2.0, Kind.DATA: 3.0,
        Kind.CHECKPOINT: 6.0, Kind.EVALUATION: 3.0, Kind.OTHER: 3.0,
    }  # fmt: skip


def test_steps_after_the_checkpoint_count_as_done_again_in_the_attempt_that_lost_them() -> None:
    lost = life(1, 0, 50, timed(40, 40, 40, 40.0))
    heir = life(2, 60, 100, at(60, kind="resumed", step=30), timed(100, 60, 30, 30.0))
    found = of(lost, heir, until=100, maker=2)
    assert found.seconds[Kind.AGAIN] == 10.0
    assert found.seconds[Kind.PRODUCTIVE] == 60.0
    assert found.seconds[Kind.UNKNOWN] == 10.0, "from the last record of the attempt that vanished to its end"
    assert found.seconds[Kind.IDLE] == 10.0
    assert found.goodput == pytest.approx(0.6)


def test_without_events_the_first_time_record_says_where_an_attempt_went_on() -> None:
    lost = life(1, 0, 40, timed(40, 40, 40, 40.0))
    heir = life(2, 40, 80, timed(80, 60, 30, 30.0))
    assert of(lost, heir, until=80).seconds[Kind.AGAIN] == 10.0


def test_an_attempt_that_left_without_saving_has_done_its_unrecorded_steps_for_nothing() -> None:
    told = life(1, 0, 60, timed(40, 40, 40, 40.0), at(48, kind="left"))
    assert of(told, until=60).seconds == {Kind.PRODUCTIVE: 40.0, Kind.AGAIN: 8.0, Kind.IDLE: 12.0}


def test_what_an_attempt_after_the_one_that_made_the_marker_did_was_for_nothing() -> None:
    maker = life(1, 0, 100, timed(90, 90, 90, 90.0))
    other = life(2, 50, 90, timed(80, 30, 30, 30.0))
    found = of(maker, other, until=100, maker=1).seconds
    assert found[Kind.AGAIN] == 30.0
    assert found[Kind.PRODUCTIVE] == 50.0, "where both lived, the newer one counts"


def test_time_without_an_attempt_is_provisioning_where_a_slice_was_waited_for() -> None:
    found = of(
        life(1, 0, 10, timed(10, 10, 10, 10.0)),
        life(2, 50, 60, timed(60, 20, 10, 10.0)),
        until=60,
        provisioning=[(5, 45), (20, 30)],
    )
    assert found.seconds == {Kind.PRODUCTIVE: 20.0, Kind.PROVISIONING: 35.0, Kind.IDLE: 5.0}
    assert found.goodput == pytest.approx(20 / 60)
    assert found.goodput_with_a_slice == pytest.approx(20 / 25)


def test_the_work_of_a_stage_that_makes_no_steps_is_productive() -> None:
    worker = life(1, 0, 50, at(4, kind="start"), *phase("restore", 10, 15), at(48, kind="left"))
    assert of(worker, until=50, trains=False).seconds == {
        Kind.PRODUCTIVE: 39.0, Kind.STARTUP: 4.0, Kind.RESTORE: 5.0, Kind.IDLE: 2.0,
    }  # fmt: skip


def test_a_live_attempt_is_in_the_phase_that_it_began_and_unknown_after_its_last_steps() -> None:
    compiling = life(1, 0, None, at(2, kind="start"), at(5, kind="begin", phase="compile"))
    assert of(compiling, until=65).seconds == {Kind.STARTUP: 5.0, Kind.COMPILE: 60.0}
    stepping = life(1, 0, None, timed(20, 20, 20, 20.0))
    assert of(stepping, until=30).seconds == {Kind.PRODUCTIVE: 20.0, Kind.UNKNOWN: 10.0}


def test_what_a_process_that_was_seen_to_end_did_after_its_last_record_is_work_cut_off() -> None:
    cut = replace(life(1, 0, 60, at(4, kind="start"), at(50, kind="progress")), seen=True)
    assert of(cut, until=70, trains=False).seconds == {
        Kind.STARTUP: 4.0, Kind.PRODUCTIVE: 46.0, Kind.CUT_OFF: 10.0, Kind.IDLE: 10.0,
    }  # fmt: skip
    stepping = replace(life(1, 0, 60, timed(40, 40, 40, 40.0), at(45, kind="progress")), seen=True)
    assert of(stepping, until=60).seconds == {Kind.PRODUCTIVE: 40.0, Kind.CUT_OFF: 20.0}
    never_began = replace(life(1, 0, 60), seen=True)
    assert of(never_began, until=60).seconds == {Kind.UNKNOWN: 60.0}


def test_a_phase_inside_another_is_counted_once() -> None:
    nested = [at(0, kind="begin", phase="packing"), *phase("compile", 10, 20), at(30, kind="end", phase="packing")]
    found = of(life(1, 0, 30, *nested), until=30, trains=True).seconds
    assert found == {Kind.OTHER: 20.0, Kind.COMPILE: 10.0}


def test_more_seconds_than_there_was_time_for_are_shortened_alike() -> None:
    hurried = life(1, 0, 100, timed(50, 10, 10, 50.0), timed(60, 20, 10, 60.0, data=20.0), at(100, kind="left"))
    found = of(hurried, until=100, maker=1).seconds
    assert found == {Kind.PRODUCTIVE: 57.5, Kind.DATA: 2.5, Kind.OTHER: 40.0}


def test_a_stage_that_nobody_began_took_no_time() -> None:
    assert of(until=10).seconds == {}
    assert of(until=10).goodput is None


KINDS = ("start", "begin", "end", "left", "time", "resumed", "first step", "progress", "", None, 3)
NUMBERS = st.one_of(
    st.floats(-20, 120), st.integers(-5, 200), st.sampled_from([float("nan"), float("inf"), 1e300, None, "7", True])
)
RECORDS = st.builds(
    lambda time, kind, phase, values: {
        "time": T0 + time if isinstance(time, int | float) else time,
        "kind": kind,
        "phase": phase,
        **values,
    },
    NUMBERS,
    st.sampled_from(KINDS),
    st.sampled_from(["compile", "evaluation", "saving", "packing", None]),
    st.dictionaries(
        st.sampled_from(["step", "steps_timed", "data", "step_seconds", "checkpoint", "evaluation"]), NUMBERS
    ),
)
LIVES = st.lists(
    st.tuples(st.floats(-20, 120), st.none() | st.floats(-20, 150), st.lists(RECORDS, max_size=12)), max_size=5
)


@given(
    LIVES,
    st.floats(-10, 150),
    st.booleans(),
    st.none() | st.integers(1, 5),
    st.lists(st.tuples(st.floats(-20, 150), st.floats(-20, 150)), max_size=3),
)
def test_every_instant_from_the_first_claim_on_has_one_kind_whatever_was_recorded(
    drawn: list[tuple[float, float | None, list[Record]]],
    until: float,
    trains: bool,
    maker: int | None,
    provisioning: list[tuple[float, float]],
) -> None:
    lives = [life(number, begin, end, *records) for number, (begin, end, records) in enumerate(drawn, start=1)]
    found = of(*lives, until=until, trains=trains, maker=maker, provisioning=provisioning)
    wall = round((T0 + until) * 1e6) - round(min((one.claimed for one in lives), default=T0 + until) * 1e6)
    assert found.microseconds.total() == max(0, wall)
    for before, after in zip(found.spans, found.spans[1:], strict=False):
        assert before.end == after.begin
    assert all(one.end > one.begin for one in found.spans)
    if found.spans:
        assert found.spans[0].begin == round(min(one.claimed for one in lives) * 1e6)
        assert found.spans[-1].end == round((T0 + until) * 1e6)
