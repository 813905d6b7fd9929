"""The charts, as SVG that stands in the page: its text takes the page's font and colour, light or dark."""

import io
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from nanocode.report.facts import Curves

# Text and lines of the axes are drawn in this colour and then made the page's own.
INK = "#123456"
COLOURS = {"code": "#3b7dd8", "english": "#d9822b", "loss": "#3b7dd8", "rate": "#5a9e4b", "speed": "#8a63c9"}
PARTS = (("step_seconds", "steps", "#3b7dd8"), ("evaluation", "evaluation", "#5a9e4b"),
         ("checkpoint", "checkpoints", "#d9822b"), ("data", "waiting for data", "#c94f4f"))  # fmt: skip
MOST_POINTS = 400
SMOOTHING_SHARE = 0.02


def draw(curves: Curves) -> dict[str, Markup]:
    """The charts there are numbers for, by title."""
    charts: dict[str, Markup] = {}
    if len(curves.steps) > 1:
        steps = sorted(curves.steps)
        losses = [curves.steps[step]["loss"] for step in steps]
        charts["Training loss, nats per token"] = _loss(steps, losses, curves.restarts)
    if len(curves.evaluations) > 1:
        charts["Bits per byte on held-out text"] = _bits(curves)
    if len(curves.steps) > 1 and all("learning_rate" in one for one in curves.steps.values()):
        rates = [curves.steps[step]["learning_rate"] for step in sorted(curves.steps)]
        charts["Learning rate (Muon)"] = _line(sorted(curves.steps), rates, "rate")
    if len(curves.times) > 1:
        charts["Tokens per second"] = _line(
            [one["step"] for one in curves.times], [one["tokens_per_second"] for one in curves.times], "speed"
        )
    return charts


def where_time_went(curves: Curves) -> list[tuple[str, str, float, float]]:
    """Name, colour, seconds and share of each part of the loop's time, largest first."""
    sums = [(name, colour, sum(float(one.get(key, 0)) for one in curves.times)) for key, name, colour in PARTS]
    total = sum(seconds for *_, seconds in sums)
    return [(*one, one[2] / total) for one in sorted(sums, key=lambda one: -one[2])] if total else []


def _loss(steps: Sequence[int], losses: Sequence[float], restarts: Sequence[int]) -> Markup:
    figure, axes = _figure()
    x, y = thinned(steps, losses)
    axes.plot(x, y, color=COLOURS["loss"], alpha=0.3, linewidth=0.8)
    axes.plot(*thinned(steps, smoothed(losses)), color=COLOURS["loss"], linewidth=1.8)
    for step in restarts:
        axes.axvline(step, color=INK, linestyle=":", linewidth=1)
        axes.annotate("resumed", (step, 1), xycoords=("data", "axes fraction"), fontsize=8, color=INK, rotation=90,
                      ha="right", va="top")  # fmt: skip
    return _svg(figure)


def _bits(curves: Curves) -> Markup:
    figure, axes = _figure()
    steps = sorted(curves.evaluations)
    for kind in ("code", "english"):
        points = [(step, curves.evaluations[step].get("bits_per_byte", {}).get(kind)) for step in steps]
        points = [(step, value) for step, value in points if value is not None]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=COLOURS[kind], marker="o", markersize=3)
            axes.annotate(f"{kind} {y[-1]:.2f}", (x[-1], y[-1]), xytext=(4, 4), textcoords="offset points",
                          color=COLOURS[kind], fontsize=9, ha="right", va="bottom")  # fmt: skip
    return _svg(figure)


def _line(x: Sequence[float], y: Sequence[float], colour: str) -> Markup:
    figure, axes = _figure()
    axes.plot(*thinned(x, y), color=COLOURS[colour], linewidth=1.5)
    axes.set_ylim(bottom=0)
    return _svg(figure)


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most 400 points: the means of equal buckets."""
    count = min(len(x), MOST_POINTS)
    edges = np.linspace(0, len(x), count + 1).astype(int)
    means = [(float(np.mean(x[a:b])), float(np.mean(y[a:b]))) for a, b in pairwise(edges) if b > a]
    found = np.array(means).T
    return found[0], found[1]


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential mean over about 2% of the run, without the bias of its beginning."""
    keep = 1 - 1 / max(1.0, SMOOTHING_SHARE * len(values))
    mean, weight, found = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(mean / weight)
    return found


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.4, 2.7), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color=INK, alpha=0.12)
    axes.set_xlabel("step", color=INK, fontsize=9)
    return figure, axes


def _svg(figure: Figure) -> Markup:
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nanocode"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"font: [^;\"']*", "font: 11px inherit", drawn)
    drawn = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", drawn, count=1)
    drawn = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawn, count=1)
    # Everything in it is numbers and words of ours, drawn by matplotlib.
    return Markup(drawn)  # noqa: S704
