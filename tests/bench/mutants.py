"""`python -m tests.bench.mutants`: which small faults in the controller's decisions nobody would notice.

Each mutant is one module of `deploy.controller` with one change: a comparison swapped or moved by one, a condition
negated or dropped, `and` for `or`, a constant off by one, a statement or a returned value dropped. The tables run
first, then some hundred schedules of the simulator, in a fresh copy of the modules. An endless loop counts as noticed.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import io
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MODULES = ("decide", "policies", "stages", "slices")
"""`decide` and the pure functions that it is made of, in `deploy.controller`."""
FOLDER = Path(__file__).parents[2] / "deploy" / "controller"
TABLES = ("tests/deploy/controller/test_decide.py", "tests/deploy/controller/test_policies.py")
SECONDS = 120
SCHEDULES = 300
SWAPS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}
EXPLAINED: dict[tuple[str, str], str] = {}
"""Survivors that are no gap: module and change -> why nobody can notice it."""


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str
    line: int
    change: str
    source: str

    def __str__(self) -> str:
        why = EXPLAINED.get((self.module, self.change), "")
        return f"survived: {self.module}.py:{self.line}: {self.change}" + (f"\n    {why}" if why else "")


@dataclass(frozen=True)
class Verdict:
    mutant: Mutant
    by: str
    """`tables`, `simulator`, `time limit`; empty: it survived."""


def mutants(module: str) -> Iterator[Mutant]:
    """All of a module."""
    tree = ast.parse((FOLDER / f"{module}.py").read_text())
    seen = {ast.unparse(tree)}
    for number, original in enumerate(ast.walk(tree)):
        for way in range(len(_changes(original, _parents(tree)))):
            mutated = copy.deepcopy(tree)
            node = next(itertools.islice(ast.walk(mutated), number, None))
            before, what = _short(node), _changes(node, _parents(mutated))[way]()
            source = ast.unparse(ast.fix_missing_locations(mutated))
            if source not in seen:
                seen.add(source)
                yield Mutant(module, getattr(node, "lineno", 0), f"{before}  ->  {what}", source)


def _parents(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    return {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}


def _short(node: ast.AST) -> str:
    text = ast.unparse(node).splitlines()[0] if isinstance(node, ast.expr | ast.stmt | ast.comprehension) else ""
    return text if len(text) <= 70 else text[:67] + "..."


def _changes(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> list[Callable[[], str]]:
    """What can be done to one node; each says what it did."""
    if any(isinstance(one, ast.arguments | ast.AnnAssign) for one in _above(node, parents)) or _is_text(node, parents):
        return []
    found: list[Callable[[], str]] = []
    if isinstance(node, ast.Compare):
        found += [_swapped(node, to) for to in SWAPS.get(type(node.ops[0]), ())]
    if isinstance(node, ast.BoolOp):
        found.append(_other_word(node))
        found += [_without_value(node, place) for place in range(len(node.values))]
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        found.append(_negated(node))
    if isinstance(node, ast.comprehension):
        found += [_without_filter(node, place) for place in range(len(node.ifs))]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        found.append(_without_not(node, parents))
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        found.append(_other_sign(node))
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        found.append(_off_by_one(node))
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        found.append(_other_truth(node))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max", "any", "all"):
        found.append(_other_function(node.func))
    if isinstance(node, ast.Return) and node.value is not None:
        found.append(_returns_nothing(node))
    if isinstance(node, ast.Expr | ast.Assign | ast.AugAssign | ast.Continue | ast.Return) and node in parents:
        found.append(_without_statement(node, parents[node]))
    return found


def _above(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    while node in parents:
        node = parents[node]
        yield node


def _is_text(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Docstrings, and what stands in messages."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    return isinstance(node, ast.JoinedStr) or any(isinstance(one, ast.JoinedStr) for one in _above(node, parents))


def _swapped(node: ast.Compare, to: type[ast.cmpop]) -> Callable[[], str]:
    def change() -> str:
        node.ops[0] = to()
        return _short(node)

    return change


def _other_word(node: ast.BoolOp) -> Callable[[], str]:
    def change() -> str:
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return _short(node)

    return change


def _without_value(node: ast.BoolOp, place: int) -> Callable[[], str]:
    def change() -> str:
        dropped = node.values.pop(place)
        if len(node.values) == 1:
            node.values.append(node.values[0])
        return f"without `{_short(dropped)}`"

    return change


def _negated(node: ast.If | ast.IfExp | ast.While) -> Callable[[], str]:
    def change() -> str:
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return f"if {_short(node.test)}"

    return change


def _without_filter(node: ast.comprehension, place: int) -> Callable[[], str]:
    def change() -> str:
        return f"without `if {_short(node.ifs.pop(place))}`"

    return change


def _without_not(node: ast.UnaryOp, parents: dict[ast.AST, ast.AST]) -> Callable[[], str]:
    def change() -> str:
        node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
        return _short(node)

    return change


def _other_sign(node: ast.BinOp) -> Callable[[], str]:
    def change() -> str:
        node.op = ARITHMETIC[type(node.op)]()
        return _short(node)

    return change


def _off_by_one(node: ast.Constant) -> Callable[[], str]:
    def change() -> str:
        assert isinstance(node.value, int | float)
        node.value = node.value + 1
        return str(node.value)

    return change


def _other_truth(node: ast.Constant) -> Callable[[], str]:
    def change() -> str:
        node.value = not node.value
        return str(node.value)

    return change


def _other_function(node: ast.Name) -> Callable[[], str]:
    def change() -> str:
        node.id = {"min": "max", "max": "min", "any": "all", "all": "any"}[node.id]
        return node.id

    return change


def _returns_nothing(node: ast.Return) -> Callable[[], str]:
    def change() -> str:
        node.value = ast.Constant(None)
        return "return None"

    return change


def _without_statement(node: ast.stmt, parent: ast.AST) -> Callable[[], str]:
    def change() -> str:
        for name in ("body", "orelse"):
            body = getattr(parent, name, None)
            if isinstance(body, list) and node in body:
                body[body.index(node)] = ast.Pass()
        return "dropped"

    return change


# -- one mutant --------------------------------------------------------------------------------------------------------


class _TimeLimit(Exception):
    pass


def judge(mutant: Mutant, schedules: int) -> Verdict:
    """Who notices it. Runs in a process of its own, whose modules it changes."""

    def out_of_time(*_: object) -> None:
        raise _TimeLimit

    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return Verdict(mutant, _noticed(mutant, schedules))
    except _TimeLimit:
        return Verdict(mutant, "time limit")
    finally:
        signal.alarm(0)


def _noticed(mutant: Mutant, schedules: int) -> str:
    import pytest

    try:
        _install(mutant)
        if pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *TABLES]) != 0:
            return "tables"
        from tests.deploy.simulation.runner import run

        return "simulator" if run(0, schedules, stop_at_first=True).broken else ""
    except _TimeLimit:
        raise
    except Exception:
        return "tables"


def _install(mutant: Mutant) -> None:
    """Make the changed module the one that everybody imports."""
    for name in list(sys.modules):
        if name.startswith(("deploy.", "tests.deploy")):
            del sys.modules[name]
    name = f"deploy.controller.{mutant.module}"
    package = importlib.import_module("deploy.controller")
    module = type(sys)(name)
    module.__package__, module.__file__ = "deploy.controller", str(FOLDER / f"{mutant.module}.py")
    sys.modules[name] = module
    setattr(package, mutant.module, module)
    exec(compile(mutant.source, module.__file__, "exec"), module.__dict__)


def main() -> int:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    parser = argparse.ArgumentParser(prog="python -m tests.bench.mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", default=MODULES, help="of deploy.controller")
    parser.add_argument("--schedules", type=int, default=SCHEDULES, help="for each that the tables let pass")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    began, console = time.monotonic(), Console()
    todo = [mutant for module in options.modules for mutant in mutants(module)]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(options.processes, mp_context=context, max_tasks_per_child=None) as pool:
        futures = [pool.submit(judge, mutant, options.schedules) for mutant in todo]
        verdicts = []
        for future in track(futures, "mutants", console=console):
            verdicts.append(one := future.result())
            if not one.by:
                console.print(str(one.mutant), highlight=False, markup=False)
    table = Table("module", "mutants", "by the tables", "by the simulator", "by time", "survived", "noticed")
    for module in (*options.modules, "all"):
        mine = [one for one in verdicts if module in ("all", one.mutant.module)]
        counts = [sum(one.by == by for one in mine) for by in ("tables", "simulator", "time limit", "")]
        table.add_row(module, *map(str, [len(mine), *counts]), f"{1 - counts[-1] / max(1, len(mine)):.1%}")
    console.print(table)
    console.print(f"in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
