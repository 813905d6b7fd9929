"""The report: everything a run directory says, on one page that needs nothing else."""

from nanocode.report.facts import Report, build
from nanocode.report.page import render_html, render_markdown

__all__ = ["Report", "build", "render_html", "render_markdown"]
