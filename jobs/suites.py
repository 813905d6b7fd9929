"""`nanocode eval`: how many tasks of a suite the agent of a run can do."""

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jobs.agent_model import load_agent
from jobs.console import Display, set_up_logging
from jobs.printable import visible
from nanocode.agent.policies import EnginePolicy
from nanocode.agent.sandbox import Grade, best_grade
from nanocode.evals.agent import Score, TaskResult, by_family, score
from nanocode.evals.agent import evaluate as evaluate_tasks
from nanocode.run.exits import ConfigurationError, Exit
from nanocode.tasks.families import FAMILIES, scenario
from nanocode.tasks.suite import read_suite
from nanocode.tasks.task import Task

BUILT_IN = "agent"
STREAM = "eval"
"""Where built-in instances come from: no stage trains on it."""
SLOTS = 32
"""Episodes that are decoded side by side."""


def evaluate(location: str, suite: str, stage: str | None, instances: int, as_json: bool, unsafe_bash: bool) -> int:
    """Play the suite, and print a table or JSON."""
    tasks = built_in(instances) if suite == BUILT_IN else read_suite(Path(suite))
    if best_grade() is Grade.NONE and not unsafe_bash:
        raise ConfigurationError("nothing can hold commands on this machine: install bubblewrap, or add --unsafe-bash")
    model = load_agent(location, stage, slots=min(SLOTS, len(tasks)))
    policy = EnginePolicy(model.engine, model.tokenizer)
    results: list[TaskResult] = []
    set_up_logging()
    with nullcontext() if as_json else Display("eval") as display:
        for group in evaluate_tasks(policy, tasks, group=min(2 * SLOTS, 64), unsafe_bash=unsafe_bash):
            results += group
            if display is not None:
                passed = sum(one.passed for one in results)
                display.show(model.stage, len(results), len(tasks), "tasks", passed=passed)
    print(json.dumps(as_values(suite, model.stage, results))) if as_json else Console().print(table(results))
    return Exit.DONE


def built_in(instances: int) -> list[Task]:
    """Fresh instances of every family, the families in turn."""
    return [scenario(family, STREAM, number).task for number in range(instances) for family in FAMILIES]


def as_values(suite: str, stage: str, results: list[TaskResult]) -> dict[str, object]:
    """What `--json` prints."""
    families = {name: _values(score(some)) for name, some in by_family(results).items()}
    return {"suite": suite, "stage": stage, **_values(score(results)), "families": families}


def _values(one: Score) -> dict[str, object]:
    return {"pass@1": one.share, "interval": list(one.interval), "passed": one.passed, "total": one.total}


def table(results: list[TaskResult]) -> Table:
    """Family by family, with 95 % intervals and what mostly went wrong."""
    found = Table("family", "passed", "pass@1", "95 %", "mostly fails because", title_justify="left")
    for column in found.columns[1:4]:
        column.justify = "right"
    for name, some in by_family(results).items():
        found.add_row(name, *_cells(score(some)), _commonest(some))
    found.add_section()
    found.add_row("all", *_cells(score(results)), "", style="bold")
    return found


def _cells(one: Score) -> tuple[str, str, str]:
    low, high = one.interval
    return f"{one.passed:g}/{one.total}", f"{one.share:.0%}", f"{low:.0%} to {high:.0%}"


def _commonest(results: list[TaskResult]) -> str:
    """The reason that most failures give, by its first words: the rest names files."""
    reasons = Counter(visible(" ".join(one.reason.split()[:8])) for one in results if not one.passed)
    return reasons.most_common(1)[0][0] if reasons else ""
