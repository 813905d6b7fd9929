"""Where the wall-clock time of every stage went, as one bar each."""

from dataclasses import dataclass

from nanocode.report import words
from nanocode.report.charts import Part
from nanocode.report.report import Report
from nanocode.run.spans import Kind

STYLES = {
    Kind.PRODUCTIVE: "step",
    Kind.EVALUATION: "evaluation",
    Kind.DATA: "data",
    Kind.CHECKPOINT: "checkpoint",
    Kind.OTHER: "other",
    Kind.COMPILE: "compile",
    Kind.RESTORE: "restore",
    Kind.STARTUP: "startup",
    Kind.AGAIN: "again",
    Kind.CUT_OFF: "cut-off",
    Kind.UNKNOWN: "unknown",
    Kind.IDLE: "idle",
    Kind.PROVISIONING: "provisioning",
}
"""From left to right: what was wanted, what it took, what was lost."""


@dataclass(frozen=True)
class Row:
    """One stage."""

    stage: str
    seconds: float
    goodput: float | None
    parts: tuple[Part, ...]

    @property
    def description(self) -> str:
        """The bar in words, the longest part first."""
        longest = sorted(self.parts, key=lambda part: -part.percent)
        return ", ".join(f"{part.label} {part.share}" for part in longest)


def rows(report: Report) -> tuple[Row, ...]:
    """The stages that took any time, in order."""
    return tuple(_row(report, stage.name) for stage in report.stages if report.ledgers[stage.name].spans)


def legend(rows: tuple[Row, ...]) -> tuple[Part, ...]:
    """Each kind that any bar shows, once, in the bars' order."""
    shown = {part.style: part for row in rows for part in row.parts}
    return tuple(shown[style] for style in STYLES.values() if style in shown)


def _row(report: Report, stage: str) -> Row:
    ledger = report.ledgers[stage]
    seconds, whole = ledger.seconds, ledger.wall_seconds
    parts = tuple(
        Part(
            style, kind, words.duration(seconds[kind]), 100 * seconds[kind] / whole, words.share(seconds[kind] / whole)
        )
        for kind, style in STYLES.items()
        if kind in seconds
    )
    return Row(stage, whole, ledger.goodput, parts)
