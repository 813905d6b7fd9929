"""Stage report: one page from every marker there is."""

import sys

from jobs.stage import Outcome, Task, run_stage
from nanocode import report


def work(task: Task) -> Outcome:
    page = report.build(task.run)
    task.output.write("report.html", report.render_html(page).encode())
    task.output.write("report.md", report.render_markdown(page).encode())
    return Outcome(outputs={"html": f"{task.folder}/report.html", "markdown": f"{task.folder}/report.md"})


if __name__ == "__main__":
    sys.exit(run_stage("report", work))
