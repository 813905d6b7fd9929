"""What a job keeps to itself, and what it must not."""

import asyncio
import sys
import threading

import pytest
import structlog
import tensorstore

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


def test_the_end_of_a_phase_is_one_line() -> None:
    with structlog.testing.capture_logs() as lines:
        display = Display("tokenizer")
        for _ in range(33):
            display.show("reading", 4.0, 4.0, "MB")
        display.show("learning", 1, 1, "vocabularies")
    assert [line["event"] for line in lines] == ["reading", "learning"]
