"""Families that look and report: find, explain, count, command, ask, recover. Each is `(id, draw) -> Scenario`."""

import re
from collections.abc import Generator

from nanocode.agent.conversation import Step
from nanocode.agent.tools import Call
from nanocode.tasks.draw import Draw, function
from nanocode.tasks.task import Check, Scenario, Task

Moves = Generator[Step, str, None]


def tool(name: str, text: str = "", **arguments: str) -> Step:
    return Step(text, Call(name, arguments))


def exactly(text: str) -> str:
    """A pattern for this text with nothing that could belong to it on either side."""
    return rf"(?<![\w.]){re.escape(text)}(?![\w])"


def find(id: str, draw: Draw) -> Scenario:
    """Where is a function defined? It is also called, elsewhere."""
    name, names = draw.names.function(), draw.names
    where, caller = names.file(), names.file()
    files = {
        where: draw.module(*draw.dice.sample([draw.function(), draw.function(name)], 2)),
        caller: draw.module(f"def {names.function()}():\n    return {name}({draw.dice.randint(1, 9)})\n"),
    }
    line = files[where].splitlines().index(next(x for x in files[where].splitlines() if f"def {name}(" in x)) + 1

    def script() -> Moves:
        said = yield tool("Grep", pattern=f"def {name}")
        path, number, _ = said.split(":", 2)
        yield Step(f"`{name}` is defined in {path}, line {number}.")

    check = Check(answer=(exactly(where), exactly(str(line))), unchanged=True)
    return Scenario(Task(id=id, family="find", prompt=draw.phrase("find", name=name), files=files, check=check), script)


def explain(id: str, draw: Draw) -> Scenario:
    """What does a function return? Its name says nothing about it."""
    name, operation = draw.names.function(), draw.operation()
    parameters = draw.parameters(operation)
    where = draw.names.file()
    words = operation.words.format(**parameters)
    files = {where: draw.module(*draw.dice.sample([draw.function(), function(name, operation, parameters)], 2))}

    def script() -> Moves:
        said = yield tool("Grep", pattern=f"def {name}")
        path, number, _ = said.split(":", 2)
        yield tool("Read", path=path, start=number, end=str(int(number) + 1))
        yield Step(f"`{name}` returns {words}.")

    return Scenario(
        Task(
            id=id,
            family="explain",
            prompt=draw.phrase("explain", name=name),
            files=files,
            check=Check(answer=(re.escape(words),), unchanged=True),
        ),
        script,
    )


def count(id: str, draw: Draw) -> Scenario:
    """How many lines of a file contain a word?"""
    word, others, where = draw.names.word(), [draw.names.word() for _ in range(4)], draw.names.file(".txt")
    number = draw.dice.randint(2, 7)
    lines = [f"{draw.dice.choice(others)} {word}" for _ in range(number)]
    lines += [f"{draw.dice.choice(others)} {draw.dice.choice(others)}" for _ in range(draw.dice.randint(2, 6))]
    draw.dice.shuffle(lines)

    def script() -> Moves:
        said = yield tool("Bash", command=f"grep -c {word} {where}")
        yield Step(f"{said.strip()} lines of {where} contain {word}.")

    return Scenario(
        Task(
            id=id,
            family="count",
            prompt=draw.phrase("count", word=word, file=where),
            files={where: "\n".join(lines) + "\n"},
            check=Check(answer=(rf"(?<![\w.]){number}(?!\w|\.\w)",), unchanged=True),
        ),
        script,
    )


def command(id: str, draw: Draw) -> Scenario:
    """Run a script and report. What it prints stands nowhere in the request."""
    where, word, names = draw.names.file(), draw.names.word(), draw.names
    a, b = draw.dice.randint(11, 99), draw.dice.randint(2, 9)
    source, printed = draw.dice.choice(
        [
            (f'print("{word}", {a} * {b})\n', f"{word} {a * b}"),
            (f"{names.word()} = {a}\n" + f'print("{word} is", {a} + {b})\n', f"{word} is {a + b}"),
            (f'for i in range({b}):\n    pass\nprint(i, "{word}")\n', f"{b - 1} {word}"),
            (f'print("{word}".upper(), {a} - {b})\n', f"{word.upper()} {a - b}"),
        ]
    )
    other = names.file()

    def script() -> Moves:
        said = yield tool("Bash", command=f"python3 {where}")
        yield Step(f"It prints `{said.strip()}`.")

    return Scenario(
        Task(
            id=id,
            family="command",
            prompt=draw.phrase("command", file=where),
            files={where: source, other: draw.module(draw.function())},
            check=Check(answer=(exactly(printed),), unchanged=True),
        ),
        script,
    )


def ask(id: str, draw: Draw) -> Scenario:
    """The request names a file that is not there: say so, say what is, and ask."""
    names = [draw.names.word() + draw.dice.choice((".py", ".txt", ".md")) for _ in range(draw.dice.randint(1, 3))]
    missing = draw.names.word() + ".py"
    files = {
        name: draw.module(draw.function()) if name.endswith(".py") else f"{draw.names.word()} {draw.names.word()}\n"
        for name in names
    }

    def script() -> Moves:
        yield tool("Read", path=missing)
        said = yield tool("Bash", command="ls")
        there = said.split()
        listed = there[0] if len(there) == 1 else f"{', '.join(there[:-1])} and {there[-1]}"
        yield Step(f"There is no {missing}. I see {listed}. Which file do you mean?")

    check = Check(answer=(exactly(missing), *(exactly(name) for name in names), r"\?\s*$"), unchanged=True)
    return Scenario(
        Task(id=id, family="ask", prompt=draw.phrase("ask", file=missing), files=files, check=check), script
    )


def recover(id: str, draw: Draw) -> Scenario:
    """A script refuses its arguments and says what it wants; the second call has to give it that."""
    where, word, names = draw.names.file(), draw.names.word(), draw.names
    wanted, number = names.word(), draw.dice.randint(100, 9999)
    flag, style = names.word(), draw.dice.randint(0, 2)
    extra, complaint = (
        (wanted, f"say the mode: {wanted}"),
        (f"--{flag} {wanted}", f"--{flag} is missing, try --{flag} {wanted}"),
        (f"--{flag}", f"needs --{flag}"),
    )[style]
    given = repr([word, *extra.split()])
    source = (
        f"import sys\nif sys.argv[1:] != {given}:\n"
        f'    sys.exit("{complaint}")\nprint("{names.word()}", {number - 7} + 7)\n'
    )

    def script() -> Moves:
        said = yield tool("Bash", command=f"python3 {where} {word}")
        assert said.startswith("error:"), said
        said = yield tool("Bash", command=f"python3 {where} {word} {extra}")
        yield Step(f"The build number of {word} is {said.split()[-1]}.")

    return Scenario(
        Task(
            id=id,
            family="recover",
            prompt=draw.phrase("recover", file=where, word=word),
            files={where: source},
            check=Check(answer=(exactly(str(number)),), unchanged=True),
        ),
        script,
    )
