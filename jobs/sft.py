"""Entry point of stage sft. jax is imported by the work: a signal during its import is already heeded."""

import sys

from jobs.stage import Outcome, Task, run_stage


def work(task: Task) -> Outcome | None:
    from jobs import fine_tuning

    return fine_tuning.train(task)


if __name__ == "__main__":
    sys.exit(run_stage("sft", work, claims_itself=True))
