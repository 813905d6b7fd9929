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
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MODULES = ("decide", "policies", "stages", "slices")
"""`decide` and the pure functions that it is made of, in `deploy.controller`."""
FOLDER = Path(__file__).parents[2] / "deploy" / "controller"
TABLES = tuple(f"tests.deploy.controller.test_{name}" for name in ("decide", "policies", "prices"))
SECONDS = 60
"""Of processor time, for one mutant: ten times as much as the tables and the schedules take."""
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
OTHERS = {"min": "max", "max": "min", "any": "all", "all": "any"}
Change = tuple[ast.AST, str, object, str]
"""Node, field and its new value; and what this is, where the code does not show it."""
EXPLAINED = {
    r" > .*  ->  .* >= | <= .*  ->  .* < ": "it differs at one instant only",
    r"so_far \+ needed < budget.dollars  ->  ": "it differs at one amount only",
    r"stage.digest\[:4\]": "a key that only has to be another one for other digests",
    r"(ready|requested|last_sign) or 0\.0  ->  .*(1\.0|`0\.0`)": "there is a time, and none is in January 1970",
    r"known and \((late|why) .*without `known`": "without an answer, no process is seen to run",
    r"code <= 0|code < 1": "0 is dealt with above",
    r"for one in known if one.trouble is not None": "no trouble is none of those that are asked about next",
    r"for one in slices if not one.permanent": "permanent slices have neither trouble nor a zone of ours",
    r"reads_what_is_there or .*  ->  without `not": "whoever reads what nobody asked for is out of reach already",
}
"""Survivors that are no gap: what the change looks like -> why nobody can notice it."""


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str
    line: int
    change: str
    source: str

    def __str__(self) -> str:
        why = next((why for pattern, why in EXPLAINED.items() if re.search(pattern, self.change)), "")
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
            parents = _parents(mutated)
            owner, field, value, what = _changes(node, parents)[way]
            around = _around(node, parents)
            before = _short(around)
            setattr(owner, field, value)
            source = ast.unparse(ast.fix_missing_locations(mutated))
            if source not in seen:
                seen.add(source)
                yield Mutant(module, getattr(node, "lineno", 0), f"{before}  ->  {what or _short(around)}", source)


def _parents(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    return {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}


def _above(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    while node in parents:
        node = parents[node]
        yield node


def _around(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.AST:
    """So much of the code around a node that a reader recognises it."""
    while (
        isinstance(node, ast.expr) and len(ast.unparse(node)) < 15 and isinstance(parents[node], ast.expr | ast.Slice)
    ):
        node = parents[node]
    return node


def _short(node: ast.AST) -> str:
    text = ast.unparse(node).splitlines()[0]
    return text if len(text) <= 70 else text[:67] + "..."


def _changes(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> list[Change]:
    """What can be done to one node."""
    above = [node, *_above(node, parents)]
    if any(isinstance(one, ast.arguments | ast.AnnAssign | ast.JoinedStr) for one in above):
        return []
    match node:
        case ast.Compare(ops=[op]):
            return [(node, "ops", [to()], "") for to in SWAPS.get(type(op), ())]
        case ast.BoolOp(op=op, values=values):
            dropped = [(node, "values", _but(values, one), f"without `{_short(one)}`") for one in values]
            return [(node, "op", ast.Or() if isinstance(op, ast.And) else ast.And(), ""), *dropped]
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            return [(node, "test", ast.UnaryOp(ast.Not(), test), "")]
        case ast.comprehension(ifs=ifs):
            return [(node, "ifs", _but(ifs, one), f"without `if {_short(one)}`") for one in ifs]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return [(node, "operand", ast.UnaryOp(ast.Not(), operand), "")]
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            return [(node, "op", ARITHMETIC[type(op)](), "")]
        case ast.Constant(value=bool(value)):
            return [(node, "value", not value, "")]
        case ast.Constant(value=int(value) | float(value)):
            return [(node, "value", value + 1, "")]
        case ast.Call(func=ast.Name(id=name)) if name in OTHERS:
            return [(node.func, "id", OTHERS[name], "")]
        case ast.Return(value=ast.Constant(value=value)) if not value:
            # Nothing for nothing is no change, and at the end of a function neither is to leave it out.
            at_the_end = isinstance(parents[node], ast.FunctionDef)
            return [] if at_the_end else _dropped(node, parents)
        case ast.Return(value=value) if value is not None:
            return [(node, "value", ast.Constant(None), ""), *_dropped(node, parents)]
        case ast.Expr(value=ast.Constant()):
            return []
        case ast.Expr() | ast.Assign() | ast.AugAssign() | ast.Continue():
            return _dropped(node, parents)
    return []


def _but(values: Sequence[ast.expr], one: ast.expr) -> list[ast.expr]:
    return [other for other in values if other is not one]


def _dropped(node: ast.stmt, parents: dict[ast.AST, ast.AST]) -> list[Change]:
    """A statement of a function left out."""
    above = parents[node]
    for field in ("body", "orelse"):
        block = getattr(above, field, None)
        if isinstance(block, list) and node in block and not isinstance(above, ast.Module):
            return [(above, field, [ast.Pass() if one is node else one for one in block], "dropped")]
    return []


# -- one mutant --------------------------------------------------------------------------------------------------------


class _TimeLimit(Exception):
    pass


def judge(mutant: Mutant, schedules: int) -> Verdict:
    """Who notices it. Runs in a process of its own, whose modules it changes."""

    def out_of_time(*_: object) -> None:
        raise _TimeLimit

    signal.signal(signal.SIGVTALRM, out_of_time)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return Verdict(mutant, _noticed(mutant, schedules))
    except _TimeLimit:
        return Verdict(mutant, "time limit")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _noticed(mutant: Mutant, schedules: int) -> str:
    try:
        _install(mutant)
        _run_tables()
        from tests.deploy.simulation.runner import run

        return "simulator" if run(0, schedules, stop_at_first=True).broken else ""
    except _TimeLimit:
        raise
    except Exception:
        return "tables"


def _run_tables() -> None:
    """Raise at the first case that fails. Under pytest the same takes eight times as long."""
    for table in TABLES:
        for name, test in vars(importlib.import_module(table)).items():
            if name.startswith("test_"):
                marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
                names, cases = marks[0].args if marks else ((), [()])
                for case in cases:
                    test(case) if isinstance(names, str) else test(*case)


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
