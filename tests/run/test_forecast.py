"""What a run will have cost in the end: by the pace so far, and by the price of its machines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode.run.forecast import Forecast, Work, forecast

HOUR = 3600.0
HALF = Work("pretrain", tokens=1e9, done=0.5, seconds=10 * HOUR)


def test_the_rest_costs_what_as_much_has_cost_so_far() -> None:
    assert forecast(45.0, 4.0, [HALF]) == Forecast(45.0 + 40.0)


def test_the_next_stages_take_as_long_a_token() -> None:
    later = [Work("sft", tokens=2e8), Work("preference", tokens=1e8)]
    assert forecast(45.0, 4.0, [HALF, *later]) == Forecast(pytest.approx(45.0 + 40.0 + 4.0 * (4 + 2)))


def test_the_pace_is_that_of_the_last_stage_that_trained() -> None:
    slower = Work("sft", tokens=1e8, done=0.5, seconds=10 * HOUR)
    done = Work("pretrain", tokens=1e9, done=1.0, seconds=20 * HOUR)
    assert forecast(0.0, 1.0, [done, slower, Work("preference", tokens=1e8)]) == Forecast(pytest.approx(10 + 20))


def test_an_evaluation_counts_while_it_runs_and_is_named_before() -> None:
    found = forecast(1.0, 2.0, [Work("base-eval", left=HOUR), Work("agent-eval"), Work("pretrain", 1e9, 1.0, HOUR)])
    assert found == Forecast(3.0, ("agent-eval",))


def test_a_run_that_is_done_costs_what_it_has() -> None:
    assert forecast(7.0, None, [Work("pretrain", 1e9, 1.0, HOUR), Work("base-eval", done=1.0)]) == Forecast(7.0)


def test_nothing_is_said_before_anything_has_trained_or_has_a_price() -> None:
    assert forecast(1.0, 4.0, [Work("pretrain", tokens=1e9)]) is None
    assert forecast(1.0, None, [HALF]) is None


@given(
    done=st.floats(0.01, 0.99),
    productive=st.floats(1, 1e6),
    overhead=st.floats(0, 1e6),
    dollars=st.floats(0.01, 100),
)
def test_time_that_is_lost_makes_the_rest_dearer_by_as_much(
    done: float, productive: float, overhead: float, dollars: float
) -> None:
    """At a goodput of g the rest takes 1/g of what it would take without losses."""
    plain = forecast(0.0, dollars, [Work("pretrain", 1e6, done, productive)])
    lossy = forecast(0.0, dollars, [Work("pretrain", 1e6, done, productive + overhead)])
    assert plain is not None
    assert lossy is not None
    goodput = productive / (productive + overhead)
    assert lossy.dollars * goodput == pytest.approx(plain.dollars)
