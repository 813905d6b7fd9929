"""Every family: its expert does the work, its check takes no mistake for it, and its splits have nothing in common."""

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from nanocode.agent.conversation import Step
from nanocode.agent.sandbox import Grade, best_grade
from nanocode.evals.agent import BASELINES
from nanocode.tasks.draw import CLOSERS, OPENERS, Novelty, phrasings
from nanocode.tasks.families import CYCLE, FAMILIES, TRAINED, TRANSFER, scenario, training
from nanocode.tasks.playing import attempts
from nanocode.tasks.task import Scenario, Task
from nanocode.tasks.words import NOUNS, VERBS, is_held_out
from tests.tasks.players import OURS, attempted, call, instance, solution, solved

pytestmark = pytest.mark.slow

needs_sandbox = pytest.mark.skipif(best_grade() is Grade.NONE, reason="commands run only where something holds them")
NOVELTIES = [Novelty(), Novelty(words=True), Novelty(phrasings=True), Novelty(words=True, phrasings=True)]
BY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
# Enough instances that every template, layout and word of a split turns up.
MANY = 400


def solves_all(family: str, seeds: range) -> None:
    for novelty in NOVELTIES:
        for seed in seeds:
            assert OURS.broken(solved(scenario(family, "expert", seed, novelty))) == ()


@needs_sandbox
@BY_FAMILY
def test_the_expert_solves_every_instance_and_keeps_our_soul(family: str) -> None:
    solves_all(family, range(2))


@pytest.mark.slow
@needs_sandbox
@BY_FAMILY
def test_the_expert_solves_thirty_instances_of_each_novelty(family: str) -> None:
    solves_all(family, range(2, 32))


@needs_sandbox
@BY_FAMILY
@pytest.mark.parametrize("idler", BASELINES)
def test_doing_nothing_and_copying_the_request_pass_at_most_one_in_twenty(family: str, idler: str) -> None:
    tasks = [scenario(family, "idle", number).task for number in range(20)]
    assert sum(one.verdict.passed for one in attempts(BASELINES[idler], tasks)) <= 1


# --- mistakes ---


@dataclass(frozen=True)
class Mistake:
    """A solution gone wrong: `spoil` gets what the expert does, and the task."""

    family: str
    sentence: str
    spoil: Callable[[list[Step], Task], list[Step]]
    fits: Callable[[Scenario], bool] = lambda one: True


def said(steps: list[Step], text: str) -> list[Step]:
    """The same, with other last words."""
    return [*steps[:-1], replace(steps[-1], text=text)]


def edited(steps: list[Step], change: Callable[[str], str]) -> list[Step]:
    """The same, with another text put in."""
    return [
        call("Edit", **{**step.call.arguments, "new": change(step.call.arguments["new"])})
        if step.call is not None and step.call.tool == "Edit"
        else step
        for step in steps
    ]


def without_last_edit(steps: list[Step]) -> list[Step]:
    last = max(place for place, step in enumerate(steps) if step.call is not None and step.call.tool == "Edit")
    return [step for place, step in enumerate(steps) if place != last]


def and_then(steps: list[Step], command: str) -> list[Step]:
    """The same, and a command before the last words."""
    return [*steps[:-1], call("Bash", command=command), steps[-1]]


def off_by_one(steps: list[Step], task: Task) -> list[Step]:
    """Every number of the last message is one too high."""
    return said(steps, re.sub(r"(?<![\w.])\d+", lambda number: str(int(number[0]) + 1), steps[-1].text))


def spoil_a_file(steps: list[Step], task: Task) -> list[Step]:
    return and_then(steps, f"echo '# mine' >> {next(iter(task.files))}")


def leave_a_file(steps: list[Step], task: Task) -> list[Step]:
    return and_then(steps, "echo notes > notes.txt")


def other_body(steps: list[Step], task: Task) -> list[Step]:
    """A new list where the list itself was to change, and the other way round, with the same value."""
    x = re.search(r"def \w+\((\w+)\)", "".join(task.files.values()))[1]  # type: ignore[index]
    assert task.check.python is not None
    is_in_place = "result is None" in task.check.python
    body = f"    return sorted({x})" if is_in_place else f"    {x}.sort()\n    return {x}"
    return edited(steps, lambda new: body)


def test_instead_of_code(steps: list[Step], task: Task) -> list[Step]:
    (test,) = task.check.restored
    return [call("Read", path=test), call("Bash", command=f"echo 'print(\"ok\")' > {test}"), steps[-1]]


test_instead_of_code.__test__ = False  # type: ignore[attr-defined]


def exit_redefined(steps: list[Step], task: Task) -> list[Step]:
    (test,) = task.check.restored
    (module,) = set(task.files) - {test}
    return [call("Bash", command=f"echo 'exit = print' >> {module}"), steps[-1]]


def a_new_file(text: str) -> Callable[[list[Step], Task], list[Step]]:
    return lambda steps, task: edited(steps, lambda new: text.format(name=re.search(r"def (\w+)", new)[1]))  # type: ignore[index]


def asks_for(words: str) -> Callable[[Scenario], bool]:
    return lambda one: words in one.task.prompt


def is_rejected(one: Scenario) -> bool:
    return one.task.rejects != ()


def has_two_bugs(one: Scenario) -> bool:
    return str(one.task.files).count("FAIL") == 2


MISTAKES = [
    Mistake("find", "names the wrong line", off_by_one),
    Mistake("find", "names the wrong file", lambda steps, task: said(steps, "It is in main.py, line 1.")),
    Mistake("find", "leaves a file behind", leave_a_file),
    Mistake("explain", "names another operation", lambda steps, task: said(steps, "It returns nothing.")),
    Mistake("explain", "changes what it explains", spoil_a_file),
    Mistake("rename", "forgets the last place", lambda steps, task: without_last_edit(steps)),
    Mistake(
        "rename", "takes another name", lambda steps, task: edited(steps, lambda new: new.replace("def ", "def x"))
    ),
    Mistake("rename", "changes more than the name", spoil_a_file),
    Mistake(
        "create",
        "takes the wrong operator",
        lambda steps, task: edited(steps, lambda new: new.replace(" + ", " - ")),
        asks_for("the sum of"),
    ),
    Mistake("create", "returns nothing", a_new_file("def {name}(*given):\n    pass\n")),
    Mistake("create", "ends the check early and in peace", a_new_file("import os\nos._exit(0)\n")),
    Mistake("create", "ends the check by the book", a_new_file("import sys\nsys.exit(0)\n")),
    Mistake("create", "ends the check when called", a_new_file("import os\ndef {name}(*given):\n    os._exit(0)\n")),
    Mistake(
        "create",
        "returns what equals everything",
        a_new_file("class All:\n    def __eq__(self, other): return True\ndef {name}(*given):\n    return All()\n"),
    ),
    Mistake("create", "spoils the file beside", spoil_a_file),
    Mistake("fix", "changes the test", test_instead_of_code),
    Mistake("fix", "redefines what the test ends with", exit_redefined),
    Mistake("fix", "does not fix it", lambda steps, task: without_last_edit(steps)),
    Mistake("fix", "fixes one of two", lambda steps, task: without_last_edit(steps), has_two_bugs),
    Mistake("command", "reports another number", off_by_one),
    Mistake("command", "leaves a file behind", leave_a_file),
    Mistake(
        "constraint",
        "makes a new list",
        other_body,
        lambda one: re.search(r"\bsort .* in place", one.task.prompt) is not None,
    ),
    Mistake(
        "constraint",
        "changes the given list",
        other_body,
        lambda one: re.search(r"\bsort .* new list", one.task.prompt) is not None,
    ),
    Mistake(
        "constraint",
        "ends the check early",
        lambda steps, task: edited(steps, lambda new: "    import os\n    os._exit(0)"),
    ),
    Mistake(
        "ask",
        "makes up the file",
        lambda steps, task: and_then(steps, f"touch {missing(task)} && echo x > {missing(task)}"),
    ),
    Mistake("ask", "does not ask", lambda steps, task: said(steps, steps[-1].text.rsplit(". ", 1)[0] + ".")),
    Mistake(
        "ask", "does not look", lambda steps, task: said(steps, f"There is no {missing(task)}. Which do you mean?")
    ),
    Mistake("recover", "reports the error", lambda steps, task: said(steps[:1] + steps[-1:], "It failed.")),
    Mistake("recover", "reports another number", off_by_one),
    Mistake("recover", "rewrites the script", spoil_a_file),
    Mistake(
        "reject",
        "edits in spite of the rejection",
        lambda steps, task: and_then(steps, f"echo x >> {next(iter(task.files))}"),
        is_rejected,
    ),
    Mistake("reject", "tries again", lambda steps, task: [*steps[:-1], *steps[-2:]], is_rejected),
    Mistake(
        "reject", "claims success", lambda steps, task: said(steps, f"Changed {next(iter(task.files))}."), is_rejected
    ),
    Mistake("reject", "does not try", lambda steps, task: steps[-1:], is_rejected),
    Mistake(
        "reject",
        "does not change what it may",
        lambda steps, task: without_last_edit(steps),
        lambda one: not is_rejected(one),
    ),
    Mistake("config", "sets another value", lambda steps, task: edited(steps, lambda new: new + "0")),
    Mistake("config", "changes more than the value", spoil_a_file),
    Mistake("count", "counts one too many", off_by_one),
    Mistake("count", "leaves a file behind", leave_a_file),
]


def missing(task: Task) -> str:
    return re.search(r"\w+\.py", task.prompt)[0]  # type: ignore[index]


@needs_sandbox
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake.family} {mistake.sentence}")
def test_whoever_makes_a_mistake_fails(mistake: Mistake) -> None:
    one = instance(mistake.family, mistake.fits)
    spoilt = mistake.spoil(solution(one), one.task)
    assert not attempted(one.task, *spoilt).verdict.passed


def test_every_family_has_a_planted_mistake() -> None:
    assert {mistake.family for mistake in MISTAKES} == set(FAMILIES)


@needs_sandbox
@pytest.mark.parametrize(
    ("family", "answer"),
    [("count", "The answer is {number}."), ("count", "{number}"), ("find", "In {where}:{number}.")],
)
def test_a_right_answer_may_be_said_in_other_words(family: str, answer: str) -> None:
    one = instance(family)
    steps = solution(one)
    number = re.findall(r"(?<![\w.])\d+", steps[-1].text)[0]
    where = re.findall(r"[\w/]+\.\w+", steps[-1].text)[0]
    assert attempted(one.task, *said(steps, answer.format(number=number, where=where))).verdict.passed


# --- splits ---


def many(family: str, novelty: Novelty) -> Iterator[Task]:
    return (scenario(family, "train-0", number, novelty).task for number in range(MANY))


def words_of(task: Task) -> set[str]:
    """The names of a task: what its code binds or uses, its file names, the words of its texts and comments."""
    found: set[str] = set()
    for path, text in task.files.items():
        found.update(re.split(r"[/_.]", path))
        if not path.endswith(".py"):
            found.update(re.findall(r"[^\W\d_]+", text))
        if not path.endswith(".py") or path.startswith("test_"):  # a test names what its module has
            continue
        found.update(word for line in re.findall(r"# (.*)", text) for word in line.split())
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name) | ast.arg(arg=name):
                    found.update(name.lower().split("_"))
                case ast.Constant(value=str(value)):
                    found.update(re.findall(r"[^\W\d_]+", value))
                case ast.ImportFrom(module=str(name)):
                    found.add(name)
    return found - COMMON


# What the generated code is written with, whatever its names: Python's own, and the sentences in it.
_WRITTEN = """
    py txt md cfg ini yaml test got exit print i range list len sum max min sorted sys argv os re json math time
    Return the of and minus product divided by rounded down rest larger smaller whether is more than equals
    doubled square with sign changed plus one length total first last element reversed in capital letters numbers
    from to which default if above else FAIL want ok True False The a an say mode missing try needs
"""
COMMON = {"", *_WRITTEN.split()}


@BY_FAMILY
def test_the_splits_share_no_name(family: str) -> None:
    trained, held_out = (
        set().union(*(words_of(task) for task in many(family, Novelty(words=is_new)))) for is_new in (False, True)
    )
    assert len(held_out) > 30
    assert trained & held_out == set()
    assert all(is_held_out(word) for word in held_out)


def test_no_held_out_name_stands_anywhere_in_a_training_task() -> None:
    names = {word for word in (*NOUNS, *VERBS) if is_held_out(word)}
    for family in FAMILIES:
        for task in many(family, Novelty()):
            assert not names & set(re.findall(r"[a-z]+", f"{task.prompt} {task.files}".lower())), task.id


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"config", "count", "reject", "command", "recover"}))
def test_the_splits_share_no_layout(family: str) -> None:
    """The layout of a file is what stands above its first function."""

    def layouts(novelty: Novelty) -> set[str]:
        heads = (
            text[: text.index("def ")]
            for task in many(family, novelty)
            for path, text in task.files.items()
            if path.endswith(".py") and not path.startswith("test_")
        )
        return {re.sub(r"[a-z]{3,}|\d+", "x", head.lower()) for head in heads}

    trained, held_out = layouts(Novelty()), layouts(Novelty(words=True))
    assert len(trained) >= 4
    assert len(held_out) >= 2
    assert trained & held_out == set()


@BY_FAMILY
def test_at_least_twenty_phrasings_of_which_four_are_held_out(family: str) -> None:
    known = phrasings()[family]
    assert len(set(known["held_out"])) >= 4
    assert len({*known["held_out"], *known["train"]}) >= 20
    assert max(Counter(map(plain, known["held_out"] + known["train"])).values()) == 1
    fields = {frozenset(re.findall(r"\{(\w+)\}", one)) for one in known["held_out"] + known["train"]}
    assert len(fields) == 1, "every phrasing says the same"


def plain(sentence: str) -> str:
    """A sentence without what people say around it."""
    for opener in sorted(filter(None, OPENERS), key=len):
        sentence = sentence.removeprefix(opener)
    for closer in filter(None, CLOSERS):
        sentence = sentence.removesuffix(closer)
    return re.sub(r"\W+", " ", sentence).strip().lower().removeprefix("please ")


@BY_FAMILY
def test_no_training_request_is_a_held_out_sentence(family: str) -> None:
    patterns = [
        re.compile("(?i).*" + re.sub(r"\\\{\w+\\\}", ".+?", re.escape(one)) + ".*")
        for one in phrasings()[family]["held_out"]
    ]
    for task in many(family, Novelty()):
        assert not any(pattern.fullmatch(task.prompt) for pattern in patterns), task.prompt
    assert all(
        any(pattern.fullmatch(task.prompt) for pattern in patterns) for task in many(family, Novelty(phrasings=True))
    )


@BY_FAMILY
def test_equal_seeds_give_equal_instances_and_other_streams_others(family: str) -> None:
    first, again, other = (
        [scenario(family, stream, number).task for number in range(MANY)] for stream in ("a", "a", "b")
    )
    assert first == again
    assert not {looks(task) for task in first} & {looks(task) for task in other}


def looks(task: Task) -> tuple[str, str]:
    """What an agent sees of a task."""
    return task.prompt, repr(task.files)


@BY_FAMILY
def test_instances_of_one_stream_hardly_ever_repeat(family: str) -> None:
    assert len({looks(task) for task in many(family, Novelty())}) > 0.99 * MANY


def test_training_takes_the_families_in_turn_and_no_transfer_family() -> None:
    tasks = [one.task for one in training("train-0", 3 * len(CYCLE))]
    assert [task.family for task in tasks] == 3 * list(CYCLE)
    assert set(CYCLE) == set(TRAINED) and not set(TRANSFER) & set(TRAINED)
    assert len({task.id for task in tasks}) == len(tasks)
    assert tasks[len(CYCLE)] == scenario(CYCLE[0], "train-0", len(CYCLE)).task


# --- what the instances claim about themselves, from an independent reading ---


def test_a_rename_changes_whole_names_and_every_one() -> None:
    for task in many("rename", Novelty()):
        both = re.findall(r"`(\w+)`", task.prompt)
        old = next(name for name in both if re.search(rf"\b{name}\b", "".join(task.files.values())))
        (new,) = set(both) - {old}
        assert task.check.files == {path: re.sub(rf"\b{old}\b", new, text) for path, text in task.files.items()}


def test_a_broken_test_fails_and_says_which_function() -> None:
    for number in range(60):
        task = scenario("fix", "reading", number).task
        (test,) = task.check.restored
        (module,) = set(task.files) - {test}
        names = dict[str, object]()
        exec(compile(task.files[module], module, "exec"), names)
        body = task.files[test].replace(f"from {module[:-3]} import *\n", "")
        with pytest.raises(SystemExit, match=r"FAIL \w+: got .*, want "):
            exec(compile(body, test, "exec"), {**names, "exit": _exit})


def _exit(text: str) -> None:
    raise SystemExit(text)


def test_the_file_and_line_to_find_are_where_the_definition_is() -> None:
    for task in many("find", Novelty()):
        (name,) = re.findall(r"`(\w+)`", task.prompt)
        places = [
            (path, node.lineno)
            for path, text in task.files.items()
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef) and node.name == name
        ]
        ((path, line),) = places
        assert all(re.search(pattern, f"{path}, line {line}.") for pattern in task.check.answer)
