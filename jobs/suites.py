"""`nanocode eval`: how many tasks of a suite the agent of a run can do."""

import json
from collections import Counter
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.agent_model import load_agent
from jobs.console import Display, set_up_logging
from jobs.printable import visible
from nanocode.agent.policies import EnginePolicy
from nanocode.agent.sandbox import Grade, best_grade
from nanocode.agent.soul import read_soul
from nanocode.evals.agent import Rate, TaskResult, by_family, suite
from nanocode.evals.agent import evaluate as evaluate_tasks
from nanocode.run.exits import ConfigurationError, Exit, UsageError
from nanocode.tasks.suite import read_suite
from nanocode.tasks.task import Task

BUILT_IN = "agent"
BUILT_IN_SUITES = ("fresh", "transfer")
"""Of `nanocode.evals.agent`: together they hold every family."""
SLOTS = 32
"""Episodes that are decoded side by side."""
TASKS_AT_ONCE = 64
"""Twice the slots: a conversation whose command runs leaves its slot to another. Progress is shown after each."""


def evaluate(location: str, name: str, stage: str | None, instances: int, as_json: bool, unsafe_bash: bool) -> int:
    """Play the suite, and print a table or JSON."""
    tasks = built_in(instances) if name == BUILT_IN else read_suite(Path(name))
    if best_grade() is Grade.NONE and not unsafe_bash:
        raise ConfigurationError("nothing can hold commands on this machine: install bubblewrap, or add --unsafe-bash")
    model = load_agent(location, stage, slots=min(SLOTS, len(tasks)))
    policy = EnginePolicy(model.engine, model.tokenizer)
    soul = read_soul(model.settings.soul, model.settings.soul_text)
    results: list[TaskResult] = []
    set_up_logging()
    with nullcontext() if as_json else Display("eval") as display:
        for first in range(0, len(tasks), TASKS_AT_ONCE):
            results += evaluate_tasks(policy, tasks[first : first + TASKS_AT_ONCE], soul, unsafe_bash)
            if display is not None:
                passed = sum(one.passed for one in results)
                display.show(model.stage, len(results), len(tasks), "tasks", passed=passed)
    if as_json:
        print(json.dumps(as_values(name, model.stage, results)))
    else:
        Console(highlight=False).print(table(results))
    return Exit.DONE


def built_in(instances: int) -> list[Task]:
    """Instances of every built-in family that no stage trains on."""
    if instances < 1:
        raise UsageError(f"--instances {instances}: at least 1 of each family")
    return [task for name in BUILT_IN_SUITES for task in suite(name, instances)]


def overall(results: list[TaskResult]) -> Rate:
    """Over all tasks, whatever their families."""
    return Rate(passed=sum(one.passed for one in results), total=len(results))


def as_values(name: str, stage: str, results: list[TaskResult]) -> dict[str, object]:
    """What `--json` prints."""
    families = {family: rate.to_json() for family, rate in by_family(results).items()}
    return {"suite": name, "stage": stage, **overall(results).to_json(), "families": families}


def table(results: list[TaskResult]) -> Table:
    """Family by family, with 95% intervals and what most failures say."""
    found = Table("family", "passed", "pass@1", "95% interval", "most failures say")
    for column in found.columns[1:4]:
        column.justify = "right"
    for family, rate in by_family(results).items():
        reasons = Counter(_gist(one.reason) for one in results if one.family == family and not one.passed)
        commonest = reasons.most_common(1)[0][0] if reasons else ""
        found.add_row(Text(visible(family)), *_cells(rate), Text(commonest, "dim"))
    found.add_section()
    found.add_row("all", *_cells(overall(results)), style="bold")
    return found


def _cells(rate: Rate) -> tuple[str, str, str]:
    low, high = rate.interval
    return f"{rate.passed}/{rate.total}", f"{rate.share:.0%}", f"{low:.0%} to {high:.0%}"


def _gist(reason: str) -> str:
    """The first words of a reason, without the names and values in it."""
    words = [word if word.isalpha() else "…" for word in reason.split()[:8]]
    return " ".join(word for word, _ in groupby(words))
