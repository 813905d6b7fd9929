"""Families that change files: rename, create, fix, config, constraint, reject. Each is `(id, draw) -> Scenario`."""

from dataclasses import dataclass

from nanocode.agent.conversation import Step
from nanocode.agent.tools import REJECTED
from nanocode.tasks.draw import Draw, function
from nanocode.tasks.operations import ON_ONE_NUMBER
from nanocode.tasks.reading import Moves, exactly, tool
from nanocode.tasks.task import Check, Scenario, Task


def rename(id: str, draw: Draw) -> Scenario:
    """A function's name, where it is defined and where it is called."""
    names = draw.names
    old, new = names.function(), names.function()
    where, caller = names.file(), names.file()
    call = f"def {names.function()}({(x := names.word())}):\n    return {old}({x}) + {draw.dice.randint(1, 9)}\n"
    operation = draw.operation(unary=True)
    own = function(old, operation, draw.parameters(operation))
    files = {where: draw.module(own), caller: draw.module(call)}
    if draw.dice.random() < 1 / 3:
        files = {where: draw.module(own, call)}
    after = {path: text.replace(old, new) for path, text in files.items()}

    def script() -> Moves:
        said = yield tool("Grep", pattern=old)
        changed = []
        for hit in said.splitlines():
            path, _, line = hit.split(":", 2)
            yield tool("Edit", path=path, old=line, new=line.replace(old, new))
            changed.append(path)
        yield Step(f"Renamed `{old}` to `{new}` in {' and '.join(dict.fromkeys(changed))}.")

    return Scenario(
        Task(
            id=id,
            family="rename",
            prompt=draw.phrase("rename", old=old, new=new),
            files=files,
            check=Check(files=after, answer=(exactly(new),)),
        ),
        script,
    )


def create(id: str, draw: Draw) -> Scenario:
    """A new file with a function to a specification."""
    name, operation, where = draw.names.function(), draw.operation(), draw.names.file()
    parameters = draw.parameters(operation)
    cases = [operation.case(draw.dice) for _ in range(3)]
    other = draw.names.file()
    source = function(name, operation, parameters)
    prompt = draw.phrase(
        "create",
        file=where,
        head=f"{name}({', '.join(parameters.values())})",
        what=operation.words.format(**parameters),
    )
    files = {other: draw.module(draw.function())}
    expected = [(name, case, operation.result(case)) for case in cases]

    def script() -> Moves:
        yield tool("Edit", path=where, old="", new=source)
        yield Step(f"Created {where} with `{name}`.")

    return Scenario(
        Task(
            id=id,
            family="create",
            prompt=prompt,
            files=files,
            check=Check(python=_expects(where, expected), files=files, answer=(exactly(where),)),
        ),
        script,
    )


def _expects(path: str, expected: list[tuple[str, tuple[object, ...], object]]) -> str:
    """A program that comes to its end when the functions of a file give for these arguments these results."""
    return (
        f"import json, runpy\nmodule = runpy.run_path({path!r})\n"
        f"for name, case, result in {expected!r}:\n    found = module[name](*case)\n"
        # Through JSON, because an object may say of itself that it equals everything.
        "    assert found == result and json.loads(json.dumps(found)) == result, (name, case)\n"
    )


@dataclass(frozen=True)
class _Bug:
    """A function with a mistake, the line to change, and what a test of it says."""

    name: str
    source: str
    wrong: str
    right: str
    case: tuple[object, ...]
    want: object

    @property
    def call(self) -> str:
        return f"{self.name}({', '.join(map(repr, self.case))})"


def _bug(draw: Draw, short: bool = False) -> _Bug:
    """A mistake; `short` for functions of which a small context has room for two, and for two repairs."""
    names, dice = draw.names, draw.dice
    name = names.short() if short else names.function()
    kind = dice.choice(("operator", "operator", "operator", "off by one", "default", "branch"))
    if kind == "operator" or short:
        operation = dice.choice(ON_ONE_NUMBER) if short else draw.operation()
        parameters = {"a": names.short()} if short else draw.parameters(operation)
        case = operation.case(dice)
        wrong, right = (f"    return {code.format(**parameters)}" for code in (operation.wrong, operation.code))
        want = operation.result(case)
        source = function(name, operation, parameters, documented=True).replace(right, wrong)
        return _Bug(name, source, wrong, right, case, want)
    if kind == "off by one":
        n, limit = names.word(), dice.randint(3, 8)
        first = dice.choice((0, 1))
        wrong, right = (f"    return list(range({first}, {end}))" for end in (n, f"{n} + 1"))
        head = f'def {name}({n}):\n    """Return the numbers from {first} to {n}."""\n'
        return _Bug(name, f"{head}{wrong}\n", wrong, right, (limit,), list(range(first, limit + 1)))
    if kind == "default":
        a, b, given = names.word(), names.word(), dice.randint(2, 40)
        value, other = dice.sample(range(2, 60), 2)
        wrong, right = (f"def {name}({a}, {b}={number}):" for number in (other, value))
        rest = f'    """Return {a} plus {b}, which is {value} by default."""\n    return {a} + {b}\n'
        return _Bug(name, f"{wrong}\n{rest}", wrong, right, (given,), given + value)
    a, limit = names.word(), dice.randint(5, 40)
    yes, no = names.word(), names.word()
    wrong, right = (
        f"    return {first!r} if {a} > {limit} else {second!r}" for first, second in ((no, yes), (yes, no))
    )
    head = f'def {name}({a}):\n    """Return {yes!r} if {a} is above {limit}, else {no!r}."""\n'
    return _Bug(name, f"{head}{wrong}\n", wrong, right, (limit + dice.randint(1, 9),), yes)


def fix(id: str, draw: Draw) -> Scenario:
    """A failing test and the code it tests: a wrong operator, default or branch, or off by one; sometimes two bugs."""
    module = draw.names.short()
    test = f"test_{module}.py"
    bugs = [_bug(draw, short=True) for _ in range(2)] if draw.dice.random() < 0.2 else [_bug(draw)]
    path = f"{module}.py"
    lines = [f"from {module} import *"]
    for bug in bugs:
        lines += [
            f"got = {bug.call}",
            f"if got != {bug.want!r}:",
            f'    exit(f"FAIL {bug.name}: got {{got}}, want {bug.want}")',
        ]
    lines.append('print("ok")')
    source = draw.module(bugs[0].source) if len(bugs) == 1 else draw.brief(*(bug.source for bug in bugs))
    files = {path: source, test: "\n".join(lines) + "\n"}
    run = f"python3 {test}"

    def script() -> Moves:
        said = yield tool("Bash", command=run)
        yield tool("Read", path=path)
        fixed = []
        for bug in bugs:
            assert bug.name in said, said
            yield tool("Edit", path=path, old=bug.wrong, new=bug.right)
            fixed.append(f"`{bug.name}`")
            said = yield tool("Bash", command=run)
        assert said.strip() == "ok", said
        yield Step(f"Fixed {' and '.join(fixed)} in {path}. {test} passes.")

    # Not the test itself: it takes all names from the module, `exit` too if it has one.
    checked = _expects(path, [(bug.name, bug.case, bug.want) for bug in bugs])
    return Scenario(
        Task(
            id=id,
            family="fix",
            prompt=draw.phrase("fix", test=test),
            files=files,
            check=Check(python=checked, restored=(test,), answer=(exactly(path),)),
        ),
        script,
    )


def config(id: str, draw: Draw) -> Scenario:
    """One value of a configuration file."""
    where = draw.names.file(draw.dice.choice((".cfg", ".ini", ".yaml")))
    keys = [draw.names.word() for _ in range(draw.dice.randint(2, 4))]
    mark = ": " if where.endswith(".yaml") else " = "
    values = draw.dice.sample(range(2, 999), len(keys) + 1)
    key = draw.dice.choice(keys)
    before = dict(zip(keys, values, strict=False))
    old, new = (f"{key}{mark}{value}" for value in (before[key], values[-1]))
    text = "".join(f"{name}{mark}{value}\n" for name, value in before.items())
    after = "".join(f"{name}{mark}{values[-1] if name == key else value}\n" for name, value in before.items())

    def script() -> Moves:
        yield tool("Read", path=where)
        yield tool("Edit", path=where, old=old, new=new)
        yield Step(f"Set {key} to {values[-1]} in {where}.")

    return Scenario(
        Task(
            id=id,
            family="config",
            prompt=draw.phrase("config", key=key, value=values[-1], file=where),
            files={where: text},
            check=Check(files={where: after}, answer=(exactly(where),)),
        ),
        script,
    )


GOALS = (
    # goal, in place, as a new list; {x} is the list
    (
        "remove falsy values from {x}",
        "    for i in reversed(range(len({x}))):\n        if not {x}[i]:\n            del {x}[i]",
        "    return [x for x in {x} if x]",
    ),
    ("sort {x}", "    {x}.sort()", "    return sorted({x})"),
    ("reverse {x}", "    {x}.reverse()", "    return {x}[::-1]"),
    (
        "double the numbers in {x}",
        "    for i in range(len({x})):\n        {x}[i] *= 2",
        "    return [x * 2 for x in {x}]",
    ),
    ("drop the first element of {x}", "    del {x}[0]", "    return {x}[1:]"),
    ("drop the last element of {x}", "    del {x}[-1]", "    return {x}[:-1]"),
    ("repeat the elements of {x}", "    {x} *= 2", "    return {x} * 2"),
)
IN_PLACE = (
    "without creating a new list",
    "in place",
    "without making another list",
    "and change the list itself",
    "keeping the same list object",
)
AS_NEW = (
    "without changing the given list",
    "and return a new list",
    "leaving the given list as it is",
    "as a new list",
    "and do not touch the list that is passed in",
)
FALSY = (0, None, "", 0)


def constraint(id: str, draw: Draw) -> Scenario:
    """Do it in place, or leave the argument alone: the check looks at the identity of the list, not only its value."""
    names, dice = draw.names, draw.dice
    name, x, where = names.function(), names.word(), names.file()
    goal, in_place, as_new = dice.choice(GOALS)
    is_in_place = dice.random() < 0.5
    body = (in_place if is_in_place else as_new).format(x=x)
    stub = f"def {name}({x}):\n    pass\n"
    files = {where: draw.module(stub)}
    given: list[object] = list(dice.sample(range(1, 60), 4))
    if "falsy" in goal:
        given = [value for number in given for value in (number, dice.choice(FALSY))]
    want = _wanted(as_new, given)

    def script() -> Moves:
        yield tool("Read", path=where)
        yield tool("Edit", path=where, old="    pass", new=body)
        yield Step(f"`{name}` in {where} is done, {'in place' if is_in_place else 'as a new list'}.")

    program = (
        f"import runpy\nfunction = runpy.run_path({where!r})[{name!r}]\n"
        f"given = {given!r}\nbefore = list(given)\nresult = function(given)\n"
    )
    if is_in_place:
        program += f"assert given == {want!r} and (result is None or result is given)\n"
    else:
        program += f"assert given == before and result == {want!r} and result is not given and type(result) is list\n"
    return Scenario(
        Task(
            id=id,
            family="constraint",
            prompt=draw.phrase(
                "constraint",
                name=name,
                file=where,
                goal=goal.format(x=x),
                limit=dice.choice(IN_PLACE if is_in_place else AS_NEW),
            ),
            files=files,
            check=Check(python=program, answer=(exactly(name),)),
        ),
        script,
    )


def _wanted(as_new: str, given: list[object]) -> list[object]:
    result: list[object] = eval(as_new.format(x="given").replace("    return ", ""), {}, {"given": given})  # noqa: S307
    return result


def reject(id: str, draw: Draw) -> Scenario:
    """The user rejects the edit, or, in one of four instances, does not: only then may the word change."""
    names, dice = draw.names, draw.dice
    old, new, where = names.word(), names.word(), names.file(".txt")
    lines = [f"{names.word()} {names.word()}" for _ in range(dice.randint(1, 3))]
    place = dice.randrange(len(lines) + 1)
    line = f"{names.word()} {old}"
    text = "\n".join([*lines[:place], line, *lines[place:]]) + "\n"
    is_rejected = dice.random() < 0.75

    def script() -> Moves:
        said = yield tool("Grep", pattern=old, path=where)
        found = said.split(":", 2)[2]
        said = yield tool("Edit", path=where, old=found, new=found.replace(old, new))
        if said == REJECTED:
            yield Step(f"I left {where} as it is.")
        else:
            yield Step(f"Changed {old} to {new} in {where}.")

    check = (
        Check(unchanged=True, called="Edit", answer=(exactly(where), "left|unchanged|not change"))
        if is_rejected
        else Check(files={where: text.replace(old, new)}, answer=(exactly(where),))
    )
    return Scenario(
        Task(
            id=id,
            family="reject",
            prompt=draw.phrase("reject", old=old, new=new, file=where),
            files={where: text},
            check=check,
            rejects=("Edit",) if is_rejected else (),
        ),
        script,
    )
