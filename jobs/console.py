"""What a job says while it works: a progress bar on a terminal, JSON lines elsewhere."""

import logging
import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import structlog
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0


def set_up_logging(keep: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Route all logging to stdout, coloured on a terminal; `keep` is handed every event as well."""

    def keep_event(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if keep is not None:
            keep({key: value if isinstance(value, int | float) else str(value) for key, value in event.items()})
        return event

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.TimeStamper(fmt="iso"),
            keep_event,
            structlog.dev.ConsoleRenderer() if sys.stdout.isatty() else structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    )
    # Libraries that log through the standard library: their warnings are not lost, their chatter is.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # Orbax logs through absl what it also raises: the exception is enough.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def hide_late_writes() -> None:
    """Say nothing when a write ends, or fails as well, after the save that asked for it has failed.

    Orbax closes its event loop on the first failed write. tensorstore's threads then find it closed, where Python can
    only print a traceback; and asyncio logs one for every other write that has failed, for nobody asks them any more.
    The failure itself is raised to whoever waits for the save.
    """
    logging.getLogger("asyncio").addFilter(_is_news)
    show = sys.unraisablehook

    def show_unless_late(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and error.args == ("Event loop is closed",)):
            show(unraisable)

    sys.unraisablehook = show_unless_late


def _is_news(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


class Facts(ProgressColumn):
    """Numbers worth seeing, last in the line: where a terminal is narrow they are cut, and the time left is not."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=False))  # rich narrows a column that may wrap before any other

    def render(self, task: Task) -> Text:
        return Text(task.fields["facts"], no_wrap=True, overflow="ellipsis")


class Display:
    """One line of progress per phase, in place on a terminal, else at most every 5 seconds."""

    def __init__(self, stage: str, terminal: Console | None = None) -> None:
        self._stage = stage
        self._log = structlog.get_logger()
        self._tasks: dict[str, TaskID] = {}
        self._last_line = 0.0
        self._ended: set[str] = set()
        self._kept: dict[str, tuple[float, bool]] = {}
        self.keep: Callable[[dict[str, Any]], None] | None = None
        """Is handed a record of progress, of each phase at most every 5 seconds, terminal or not."""
        self._bar: Progress | None = None
        if terminal is not None or sys.stdout.isatty():
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(20),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                Facts(),
            )
            self._bar = Progress(*columns, console=terminal or Console())

    def show(self, phase: str, done: float, total: float, unit: str = "", **facts: float) -> None:
        """`done` of `total`; facts are numbers worth seeing, such as the loss."""
        if self.keep is not None and self._is_due(phase, done >= total):
            record = {"phase": phase, "done": done, "total": total, "unit": unit, "facts": _rounded(facts)}
            self.keep({"kind": "progress", **record})
        if self._bar is not None:
            text = _in_words(facts)
            if phase not in self._tasks:
                label = f"{self._stage}: {phase}"
                self._tasks[phase] = self._bar.add_task(label, total=total, unit=unit, facts=text)
            self._bar.update(self._tasks[phase], completed=done, total=total, facts=text)
            return
        now, ends = time.monotonic(), done >= total
        if ends and phase in self._ended:
            return  # a phase may reach its total many times, and go on
        if now - self._last_line >= SECONDS_BETWEEN_LINES or ends:
            self._last_line = now
            if ends:
                self._ended.add(phase)
            self._log.info(phase, stage=self._stage, done=done, total=total, unit=unit, **_rounded(facts))

    def _is_due(self, phase: str, ends: bool) -> bool:
        """Whether to record progress now: the first, the end, and what comes 5 seconds after the one before."""
        now, (before, ended) = time.monotonic(), self._kept.get(phase, (-math.inf, False))
        due = now - before >= SECONDS_BETWEEN_LINES or (ends and not ended)
        if due:
            self._kept[phase] = (now, ended or ends)
        return due

    def note(self, event: str, step: int, **facts: float) -> None:
        """A line that stays: what was measured at a step, and does not hold for the next one."""
        if self._bar is not None:
            self._bar.console.print(f"{self._stage}: {event} at step {step:,}  {_in_words(facts)}", highlight=False)
        else:
            self._log.info(event, stage=self._stage, step=step, **_rounded(facts))

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()


def _rounded(facts: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.5g}") for name, value in facts.items()}


def _in_words(facts: dict[str, float]) -> str:
    return "  ".join(f"{name} {_short(value)}" for name, value in facts.items())


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
