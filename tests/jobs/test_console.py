"""What a job keeps to itself, and what it must not."""

import asyncio
import gc
import io
import logging
import sys
import threading

import pytest
import structlog
import tensorstore
from rich.console import Console

from jobs.console import Display, hide_late_writes


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    errors: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: errors.append(unraisable.exc_value))
    return errors


def end_a_write_after_its_event_loop() -> None:
    promise, future = tensorstore.Promise.new()

    async def wait() -> None:
        await future

    loop = asyncio.new_event_loop()
    waiting = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    thread = threading.Thread(target=promise.set_result, args=(1,))
    thread.start()
    thread.join()
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_write_that_ends_after_its_save_has_failed_says_nothing(shown: list) -> None:
    end_a_write_after_its_event_loop()
    assert [str(error) for error in shown] == ["Event loop is closed"], "tensorstore is quiet by itself: drop the hook"
    hide_late_writes()
    end_a_write_after_its_event_loop()
    assert len(shown) == 1


def test_every_other_error_nobody_can_catch_is_shown(shown: list) -> None:
    hide_late_writes()

    class Broken:
        def __del__(self) -> None:
            raise RuntimeError("a bug of ours")

    broken = Broken()
    del broken
    assert [str(error) for error in shown] == ["a bug of ours"]


def test_of_writes_that_fail_together_only_the_one_that_is_raised_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write(number: int) -> None:
        raise OSError(f"no space left for array {number}")

    async def save() -> None:
        writes = [asyncio.gather(write(number)) for number in range(3)]
        for one in writes:
            await one

    def told() -> list[str]:
        caplog.clear()
        with pytest.raises(OSError, match="array 0"):
            asyncio.run(save())
        gc.collect()
        return [record.getMessage().splitlines()[0] for record in caplog.records]

    monkeypatch.setattr(logging.getLogger("asyncio"), "filters", [])
    assert told() == ["_GatheringFuture exception was never retrieved"] * 2
    hide_late_writes()
    assert told() == []
    logging.getLogger("asyncio").error("a bug of ours")
    assert [record.getMessage() for record in caplog.records] == ["a bug of ours"]


def test_the_end_of_a_phase_is_one_line() -> None:
    with structlog.testing.capture_logs() as lines:
        display = Display("tokenizer")
        for _ in range(33):
            display.show("reading", 4.0, 4.0, "MB")
        display.show("learning", 1, 1, "vocabularies")
    assert [line["event"] for line in lines] == ["reading", "learning"]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_time_left_survives_many_facts(width: int) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=width, record=True)
    with Display("pretrain", terminal) as display:
        display.show(
            "training", 10, 1400, "steps", **dict.fromkeys(("loss", "tokens/s", "MFU %", "code bpb"), 12_345.0)
        )
    last = terminal.export_text().rstrip("\n")[-width:]
    assert "10/1,400 steps" in last and "left -:--:-- loss" in last and last.endswith("…")


def test_what_was_measured_at_a_step_is_a_line_of_its_own() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, record=True)
    Display("pretrain", terminal).note("evaluated", 1400, **{"code bpb": 1.5})
    assert terminal.export_text() == "pretrain: evaluated at step 1,400  code bpb 1.5\n"
    with structlog.testing.capture_logs() as lines:
        Display("pretrain").note("evaluated", 1400, **{"code bpb": 1.5})
    assert lines == [{"event": "evaluated", "stage": "pretrain", "step": 1400, "code bpb": 1.5, "log_level": "info"}]


@pytest.mark.parametrize("terminal", [None, Console(file=io.StringIO(), force_terminal=True)])
def test_progress_is_recorded_at_most_every_five_seconds_on_a_terminal_too(
    terminal: Console | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, kept = [1000.0], []
    monkeypatch.setattr("jobs.console.time.monotonic", lambda: now[0])
    display = Display("synth", terminal)
    display.keep = kept.append
    for done in range(1, 101):
        now[0] += 0.2
        display.show("playing", done, 100, "scenarios", passed=0.123456789)
    assert [one["done"] for one in kept] == [1, 26, 51, 76, 100]
    assert kept[0] == {
        "kind": "progress", "phase": "playing", "done": 1, "total": 100, "unit": "scenarios", "facts": {"passed": 0.12346},
    }  # fmt: skip
