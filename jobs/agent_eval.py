"""Entry point of stage agent-eval. jax is imported by the work: a signal during its import is already heeded."""

import sys

from jobs.stage import Outcome, Task, run_stage


def work(task: Task) -> Outcome | None:
    from jobs import agent_evaluation

    return agent_evaluation.evaluate(task)


if __name__ == "__main__":
    sys.exit(run_stage("agent-eval", work))
