"""Stage report: one page from every marker there is."""

import sys

from jobs.stage import Outcome, Task, run_stage
from nanocode.report.render import render_html, render_markdown
from nanocode.report.report import build


def work(task: Task) -> Outcome:
    page = build(task.run)
    task.output.write("report.html", render_html(page).encode())
    task.output.write("report.md", render_markdown(page).encode())
    return Outcome(outputs={"html": f"{task.folder}/report.html", "markdown": f"{task.folder}/report.md"})


if __name__ == "__main__":
    sys.exit(run_stage("report", work))
