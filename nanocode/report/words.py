"""Numbers and texts as a reader meets them. What is missing is an en dash, never a crash."""

import math
import re

MISSING = "–"
# Bidirectional overrides and isolates: they let one text reorder what stands beside it.
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# C0 and C1 controls without tab and newline, and halves of surrogate pairs, which no encoder accepts.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def clean(text: str) -> str:
    """The text without what a browser, a terminal or an encoder could trip over; U+FFFD stands in its place."""
    return _BIDI.sub("\ufffd", _CONTROL.sub("\ufffd", text.replace("\r\n", "\n")))


def number(value: float | None, digits: int = 2) -> str:
    """Fixed decimals, with thousands separated."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.{digits}f}" if abs(value) < 1e15 else f"{value:.2g}"


def count(value: float | None) -> str:
    """A whole number in full."""
    return number(value, 0)


def quantity(value: float | None) -> str:
    """Three significant digits: 950, 4.40M, 1.08B."""
    if value is None or not math.isfinite(value):
        return MISSING
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return _three_digits(value / size) + suffix
    return f"{value:.0f}" if value == int(value) else f"{value:.3g}"


def size(value: float | None) -> str:
    """Bytes in decimal units."""
    if value is None or not math.isfinite(value):
        return MISSING
    for one, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= 0.9995 * one:
            return f"{_three_digits(value / one)} {suffix}"
    return f"{value:.0f} B"


def rate(value: float | None) -> str:
    """FLOP per second."""
    return MISSING if value is None or not math.isfinite(value) else f"{_scaled(value)}FLOP/s"


def share(value: float | None, digits: int = 0) -> str:
    """A fraction as percent; what is not nothing does not become 0%."""
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value) > 1e4:
        return f"{value * 100:.1g}%"
    least = 10.0**-digits
    if 0 < value * 100 < least / 2:
        return f"<{least:.{digits}f}%"
    return f"{value * 100:.{digits}f}%"


def duration(seconds: float | None) -> str:
    """The two largest units that matter: 4.2 s, 41 s, 12 min 05 s, 3 h 20 min, 2 d 4 h."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def dollars(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return MISSING
    return "<$0.01" if 0 < value < 0.005 else f"${value:,.2f}"


def listing(words: list[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else MISSING


def cell(text: object) -> str:
    """Untrusted text inside a line or table cell of Markdown: nothing in it is markup."""
    plain = " ".join(clean(str(text)).split())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = re.sub(r"([\\`*_\[\]|#~!$])", r"\\\1", plain)
    return plain.replace("://", ":&#8203;//").replace("www.", "www&#46;")  # renderers link bare addresses


def fenced(text: str, language: str = "text") -> str:
    """Untrusted text as a Markdown code block that it cannot close."""
    plain = clean(text)
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{plain}\n{fence}"


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 1e6:
        return f"{value:.1g}"
    return f"{value:.2f}" if magnitude < 9.995 else f"{value:.1f}" if magnitude < 99.95 else f"{value:.0f}"


def _scaled(value: float) -> str:
    for one, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= 0.9995 * one:
            return f"{_three_digits(value / one)} {prefix}"
    return f"{value:.3g} "
