"""The report of a run: what it was made of, what it cost, and what it reached.

`report.build` reads the run directory, in whatever state it is; `render` writes it down as HTML and as Markdown.
"""
