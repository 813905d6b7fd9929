"""Charts as geometry: paths in a square of 1000 by 1000 that the page stretches, and labels in percent beside it.

The labels are text of the page, not of the drawing, so they keep their size on a phone; lines keep their width by
`vector-effect`. Colours are the style sheet's, which knows light from dark.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from nanocode.report import words
from nanocode.report.curves import Curves, Series, extremes, means, smooth
from nanocode.report.facts import ByKind, Seconds

SIDE = 1000.0
# A 60th of the steps on both sides: wide enough to hide the noise of batches, narrow enough to show a decay phase.
SMOOTHING = 60


@dataclass(frozen=True)
class Line:
    style: str
    """The class that colours it: `raw`, `main`, `code`, `english`, ..."""
    path: str
    dots: str = ""
    """The same points as zero-length strokes, which round caps turn into dots."""


@dataclass(frozen=True)
class Tick:
    percent: float
    label: str


@dataclass(frozen=True)
class Legend:
    style: str
    label: str
    value: str


@dataclass(frozen=True)
class Chart:
    title: str
    note: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_unit: str
    marks: tuple[Tick, ...]
    """Vertical lines: where a later attempt took over."""
    legend: tuple[Legend, ...]
    wide: bool = False

    @property
    def description(self) -> str:
        """The chart in one sentence, for who cannot see it."""
        ends = ", ".join(f"{one.label} {one.value}".strip() for one in self.legend)
        return f"{self.title} over {self.x_unit}: {ends}"


@dataclass(frozen=True)
class Part:
    style: str
    label: str
    value: str
    percent: float
    share: str


@dataclass(frozen=True)
class Bar:
    style: str
    label: str
    value: str
    share: float
    """Of the longest bar of all kinds."""


@dataclass(frozen=True)
class Comparison:
    """Bars of one kind of text, on a scale shared by all kinds."""

    title: str
    note: str
    bars: tuple[Bar, ...]


def large(curves: Curves, xz: ByKind) -> tuple[Chart, ...]:
    """Loss and bits per byte, where there are points to draw."""
    charts = (_loss(curves), _bits_per_byte(curves, xz))
    return tuple(chart for chart in charts if chart)


def small(curves: Curves) -> tuple[Chart, ...]:
    """What explains the large ones: rate, gradient, speed, utilisation."""
    speed = curves.tokens_per_second
    rows: list[tuple[str, Series, Callable[[float], str]]] = [
        ("Learning rate", curves.learning_rate, lambda y: f"{y:.2g}"),
        ("Gradient norm", curves.gradient_norm, lambda y: f"{y:.3g}"),
        ("Tokens per second", speed, words.quantity),
        ("Utilisation (MFU)", curves.mfu, lambda y: words.share(y, 1)),
    ]
    charts = []
    for title, series, label in rows:
        if not series:
            continue
        top = max(series.y) if title != "Gradient norm" else _quantile(series.y, 0.995)
        frame = Frame(curves, 0.0, top if top > 0 else 1.0, x_ticks=3, y_ticks=3)
        line = frame.line("main", means(series, 180))
        note = f"median {label(_quantile(series.y, 0.5))}" if title != "Learning rate" else f"peak {label(top)}"
        charts.append(frame.chart(title, note, (line,), (), _shortened(label)))
    return tuple(charts)


def fine_tuning(curves: Curves) -> tuple[Chart, ...]:
    """Loss of what is trained on, and of held-out conversations."""
    held_out = [(one.x, one.validation) for one in curves.evaluations if one.validation is not None]
    charts = [_loss(curves, "Fine-tuning loss", "nats per token, most weight on what the agent wrote")]
    if held_out:
        series = Series([x for x, _ in held_out], [y for _, y in held_out])
        note = "nats per token that the agent wrote, in conversations it was not trained on"
        charts.append(_one_line(curves, "Held-out loss", note, series, dots=len(series) <= 40))
    return tuple(chart for chart in charts if chart)


def preference(curves: Curves) -> tuple[Chart, ...]:
    """What the preference stage says of its pairs, step by step."""
    rows: list[tuple[str, str, Series]] = [
        ("Preference loss", "mean over pairs", curves.loss),
        ("Margin", "nats, chosen over rejected", curves.margin),
        ("Accuracy", "share of pairs with a margin above 0", curves.accuracy),
        ("Gain of the chosen", "nats, against before the stage", curves.chosen_gain),
    ]
    return tuple(_one_line(curves, title, note, series) for title, note, series in rows if series)


def _one_line(curves: Curves, title: str, note: str, series: Series, dots: bool = False) -> Chart:
    """One smoothed series from its lowest to its highest value, 0 included."""
    smoothed = Series(series.x, smooth(series.y, len(series) // SMOOTHING))
    low, high = min(0.0, *smoothed.y), max(0.0, *smoothed.y)
    frame = Frame(curves, low, high if high > low else low + 1, x_ticks=3, y_ticks=4)
    line = frame.line("main", means(smoothed, 180), dots)
    legend = (Legend("main", "in the end", words.number(smoothed.y[-1], 3)),)
    return frame.chart(title, note, (line,), legend, _shortened(lambda y: f"{y:.3g}"))


def comparisons(ours: ByKind, xz: ByKind) -> tuple[Comparison, ...]:
    """Bits per byte of the model beside `xz -9e`, per kind of text: shorter is better."""
    known = [value for value in (ours.code, ours.english, xz.code, xz.english) if value]
    if not known:
        return ()
    top = max(known)
    compared = []
    kinds = ("Code", "code", ours.code, xz.code), ("English", "english", ours.english, xz.english)
    for title, style, model, theirs in kinds:
        bars = (
            Bar(style, "model", words.number(model, 3), _share(model, top)),
            Bar("reference", "xz\u00a0-9e", words.number(theirs, 3), _share(theirs, top)),
        )
        compared.append(Comparison(title, _versus(model, theirs), bars))
    return tuple(compared)


def time_bar(seconds: Seconds) -> tuple[Part, ...]:
    """Where training's wall-clock time went, as parts of one bar."""
    labels = {
        "step": "training steps",
        "data": "waiting for data",
        "evaluation": "evaluation",
        "checkpoint": "checkpoints",
        "compile": "compiling",
    }
    total = seconds.total
    parts = []
    for style, label in labels.items():
        value: float | None = getattr(seconds, style)
        if value is not None and total:
            part = max(0.0, value) / total
            parts.append(Part(style, label, words.duration(value), 100 * part, words.share(part, 1)))
    return tuple(parts)


class Frame:
    """The axes of one chart: data to percent and to path."""

    def __init__(self, curves: Curves, low: float, high: float, x_ticks: int, y_ticks: int) -> None:
        self.curves = curves
        series = (curves.loss, curves.learning_rate, curves.tokens_per_second, curves.mfu)
        ends = [one.x[-1] for one in series if one] + [one.x for one in curves.evaluations]
        self.right = max(ends, default=1.0) or 1.0
        # A flat line gets a frame around it that float64 can divide into steps.
        high = max(high, low + 1e-6 * max(1e-9, abs(low)))
        step = _tick_step(high - low, y_ticks)
        self.low, self.high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        self.y_values = [self.low + i * step for i in range(round((self.high - self.low) / step) + 1)]
        x_step = _tick_step(self.right, x_ticks)
        self.x_values = [i * x_step for i in range(int(self.right / x_step + 1e-9) + 1)]

    def line(self, style: str, series: Series, dots: bool = False) -> Line:
        points = [f"{self._x(x) * SIDE:.1f} {self._y(y) * SIDE:.1f}" for x, y in zip(series.x, series.y, strict=True)]
        return Line(style, "M" + "L".join(points), "".join(f"M{point}h0" for point in points) if dots else "")

    def level(self, style: str, y: float) -> Line:
        """A horizontal line across the whole chart."""
        return Line(style, f"M0 {self._y(y) * SIDE:.1f}H{SIDE:.0f}")

    def chart(
        self, title: str, note: str, lines: tuple[Line, ...], legend: tuple[Legend, ...], label: Callable[[float], str]
    ) -> Chart:
        marks = [Tick(100 * self._x(one.x), str(one.attempt)) for one in self.curves.restarts if one.x <= self.right]
        return Chart(
            title=title,
            note=note,
            lines=lines,
            x_ticks=tuple(Tick(100 * self._x(x), _short(words.quantity(x))) for x in self.x_values),
            y_ticks=tuple(Tick(100 * self._y(y), "0" if y == 0 else label(y)) for y in self.y_values),
            x_unit=self.curves.x_unit,
            marks=tuple(marks),
            legend=legend,
        )

    def _x(self, x: float) -> float:
        return x / self.right

    def _y(self, y: float) -> float:
        # Past the frame a point is cut off there; without a limit one overflowing loss makes a path no browser draws.
        return min(2.0, max(-1.0, 1 - (y - self.low) / (self.high - self.low)))


def _loss(curves: Curves, title: str = "Training loss", note: str = "nats per token") -> Chart | None:
    if not curves.loss:
        return None
    smoothed = Series(curves.loss.x, smooth(curves.loss.y, len(curves.loss) // SMOOTHING))
    # Rare spikes of the raw loss would squeeze everything else: the frame holds the smoothed line whole.
    low, high = min(_quantile(curves.loss.y, 0.005), min(smoothed.y)), max(smoothed.y)
    frame = Frame(curves, low, high if high > low else low + 1, x_ticks=5, y_ticks=5)
    lines = (frame.line("raw", extremes(curves.loss, 900)), frame.line("main", means(smoothed)))
    legend = (
        Legend("main", "smoothed", words.number(smoothed.y[-1], 3)),
        Legend("raw", "each step", ""),
    )
    step = max(frame.y_values[1] - frame.y_values[0], 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return frame.chart(title, f"{note}, by {curves.x_unit}", lines, legend, _decimals(digits))


def _bits_per_byte(curves: Curves, xz: ByKind) -> Chart | None:
    series = {}
    for kind in ("code", "english"):
        found = [
            (one.x, value) for one in curves.evaluations if (value := getattr(one.bits_per_byte, kind)) is not None
        ]
        if found:
            series[kind] = Series([x for x, _ in found], [y for _, y in found])
    if not series:
        return None
    values = [y for one in series.values() for y in one.y] + [y for y in (xz.code, xz.english) if y is not None]
    frame = Frame(curves, min(values), max(max(values), min(values) + 0.1), x_ticks=5, y_ticks=5)
    lines: list[Line] = []
    legend: list[Legend] = []
    for kind, one in series.items():
        reference: float | None = getattr(xz, kind)
        name = "English" if kind == "english" else kind
        lines.append(frame.line(kind, means(one, 120), dots=len(one) <= 40))
        legend.append(Legend(kind, name, words.number(one.y[-1], 3)))
        if reference is not None:
            lines.append(frame.level(f"{kind} dashed", reference))
    if any("dashed" in line.style for line in lines):
        legend.append(Legend("main dashed", "xz\u00a0-9e", ""))
    step = frame.y_values[1] - frame.y_values[0]
    digits = max(1, -math.floor(math.log10(step) + 1e-9))
    return frame.chart(
        "Bits per byte",
        "part of the held-out text, lower is better",
        tuple(lines),
        tuple(legend),
        _decimals(digits),
    )


def _tick_step(span: float, ticks: int) -> float:
    """The 1, 2 or 5 times a power of ten that gives about `ticks` steps."""
    raw = max(span, 1e-12) / ticks
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next(factor for factor in (1, 2, 5, 10) if raw <= factor * power * 1.0001)


def _short(label: str) -> str:
    """2.00M as 2M: an axis needs no digits that say nothing."""
    return re.sub(r"\.0+(?=\D*$)", "", re.sub(r"(\.\d*[1-9])0+(?=\D*$)", r"\1", label))


def _decimals(digits: int) -> Callable[[float], str]:
    """Fixed decimals, and powers of ten for a loss that blew up."""
    return lambda y: f"{y:.{digits}f}" if abs(y) < 1e5 else f"{y:.1e}"


def _shortened(label: Callable[[float], str]) -> Callable[[float], str]:
    return lambda y: _short(label(y))


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def _share(value: float | None, top: float) -> float:
    return 0.0 if value is None else max(0.0, value / top)


def _versus(model: float | None, theirs: float | None) -> str:
    if not model or not theirs:
        return ""
    ratio = model / theirs
    if abs(ratio - 1) < 0.005:
        return "as many bits as xz"
    return f"{words.share(abs(1 - ratio))} {'fewer' if ratio < 1 else 'more'} bits than xz"
