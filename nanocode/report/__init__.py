"""The report of a run: what it was made of, what it cost, and what it reached.

`build` reads the run directory, in whatever state it is; `render_html` and `render_markdown` write it down.
"""

from nanocode.report.render import render_html, render_markdown
from nanocode.report.report import Report, build

__all__ = ["Report", "build", "render_html", "render_markdown"]
