"""From gathered facts to one HTML page and one Markdown file. What a model wrote is escaped like any text."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from nanocode.report import charts
from nanocode.report.facts import Report

ABSENT = "–"
KINDS = ("code", "english")


def render_html(report: Report) -> str:
    """A page that refers to nothing outside of itself."""
    return _environment().get_template("report.html.jinja").render(_values(report), charts=charts.draw(report.curves))


def render_markdown(report: Report) -> str:
    """The same without the curves."""
    return _environment().get_template("report.md.jinja").render(_values(report))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("nanocode.report", "."),
        autoescape=select_autoescape(["html.jinja", "html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "size": size, "duration": duration, "indented": indented}
    return environment


def _values(report: Report) -> dict[str, Any]:
    samples = report.curves.samples
    ends = sorted({min(samples), max(samples)}) if samples else []
    sources = report.metric("corpus", "sources") or []
    core = report.metric("base-eval", "core")
    return {
        "report": report,
        "metric": report.metric,
        "kinds": KINDS,
        "bars": [bar for kind in KINDS for bar in _bars(report, kind)],
        "samples": [(step, samples[step]) for step in ends],
        "sources": sources,
        "core": core,
        "time": charts.where_time_went(report.curves),
        "missing": [row for row in report.stages if row.state != "done"],
        "versions": next((marker.versions for marker in reversed(report.markers.values())), {}),
    }


def _bars(report: Report, kind: str) -> list[dict[str, Any]]:
    ours = report.metric("base-eval", "bits_per_byte", kind)
    xz = report.metric("base-eval", "xz_bits_per_byte", kind)
    widest = max((x for k in KINDS for x in [report.metric("base-eval", "xz_bits_per_byte", k)] if x), default=None)
    if ours is None or xz is None or not widest:
        return []
    longest = max(widest, ours)
    return [
        {"kind": kind, "who": "this model", "value": ours, "share": ours / longest, "ours": True},
        {"kind": kind, "who": "xz -9e", "value": xz, "share": xz / longest, "ours": False},
    ]


def number(value: Any, form: str = ",.0f") -> str:
    """A number in a format, or a dash where there is none."""
    return format(value, form) if isinstance(value, int | float) else ABSENT


def size(value: Any) -> str:
    """Bytes, or a count, with a decimal prefix: 12.6M."""
    if not isinstance(value, int | float):
        return ABSENT
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 1000 or unit == "T":
            break
        value /= 1000
    return f"{value:.3g}{unit}" if value < 1000 else f"{value:,.0f}{unit}"


def duration(seconds: Any) -> str:
    """Hours, minutes and seconds, as much as matters."""
    if not isinstance(seconds, int | float):
        return ABSENT
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def indented(text: str) -> str:
    """As a Markdown code block: whatever is in it stays text."""
    return "\n".join("    " + line for line in text.replace("\r", "").split("\n"))
