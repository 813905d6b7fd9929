"""The README is true: its shell blocks run or say why not, and what it names exists.

A shell block is run as it stands, by bash, in a folder whose `runs/demo` is a finished run with untrained weights (so
the presets' sizes are the only thing that is not as the README has it) and whose `.venv` leads to this checkout.
A block after `<!-- not run: reason -->` is not run; its `nanocode` lines still have to be possible command lines.
"""

import fnmatch
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, get_origin

import pytest
import yaml

from jobs import cli
from nanocode.agent.conversation import Message, Result, Step, User, parse
from nanocode.agent.sandbox import Grade, best_grade
from nanocode.agent.soul import CHECKS, parse_soul, read_soul
from nanocode.agent.tools import Call, execute
from nanocode.agent.workspace import Workspace
from nanocode.config.settings import PRESETS, Settings, from_yaml, load, settings
from nanocode.run.digests import stage_digests
from nanocode.run.directory import Marker
from nanocode.run.exits import Exit
from nanocode.run.graph import STAGES, downstream, order
from nanocode.run.settling import pinned
from nanocode.tasks.families import TRAINED, TRANSFER
from nanocode.text.tokenizer import Tokenizer, train
from tests.jobs.runs import environment, nanocode
from tests.jobs.tiny_agent import make_run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FENCED = re.compile(r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
PROSE = FENCED.sub("", README)
WITH_WEIGHTS = ("pretrain", "sft", "preference")
MAY_FAIL = {"nanocode ask": (Exit.DONE, Exit.FAILED)}
"""An untrained agent need not come to an end: exit code 1 says just that."""


class Block(NamedTuple):
    kind: str
    reason: str | None
    text: str


BLOCKS = [Block(one["kind"], one["reason"], one["text"]) for one in FENCED.finditer(README)]
SHELL = [one for one in BLOCKS if one.kind == "sh"]
COMMAND = re.compile(r"^nanocode .*$", re.M)


def commands() -> list[list[str]]:
    """The arguments of every `nanocode` line, comments and continuations resolved."""
    text = "".join(one.text for one in SHELL).replace("\\\n", " ")
    return [shlex.split(line, comments=True)[1:] for line in COMMAND.findall(text)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands after `make demo`."""
    folder = tmp_path_factory.mktemp("readme")
    finish(folder / "runs/demo")
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    (programs / "nanocode").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m jobs.cli "$@"\n')
    (programs / "nanocode").chmod(0o755)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    return folder


def finish(folder: Path) -> None:
    """Every stage done, with the digest that its settings have now."""
    run = make_run(folder, *WITH_WEIGHTS)
    config = run.latest_config()
    assert config is not None
    settings = pinned(from_yaml(config[1], "config"), run)
    run.add_config(settings.to_yaml())
    digests, now = stage_digests(settings, run), datetime.now(UTC)
    for stage in order():
        old = run.done(stage)
        outputs = old.outputs if old is not None else {}
        if old is not None:
            run.store.delete(f"{stage}/DONE.json")
        made = Marker(stage=stage, input_digest=digests[stage], attempt=1, outputs=outputs, started=now, ended=now)
        run.finish(stage, made)


def test_every_shell_block_is_run_or_says_why_not() -> None:
    assert {one.kind for one in BLOCKS} <= {"sh", "yaml", ""}
    assert all(one.kind == "sh" for one in BLOCKS if one.reason or re.search(r"^(make|nanocode) ", one.text, re.M))
    assert README.count("<!-- not run:") == sum(one.reason is not None for one in SHELL)
    assert sum(one.reason is None for one in SHELL) >= 5


@pytest.mark.slow
@pytest.mark.skipif(best_grade() is Grade.NONE, reason="commands run only where something holds them")
def test_the_shell_blocks_run_as_they_stand(place: Path) -> None:
    """In order, since they build on each other."""
    for block in SHELL:
        if block.reason is not None:
            continue
        script = block.text if block.text.startswith("source ") else f"source .venv/bin/activate\n{block.text}"
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=place,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        allowed = next((codes for part, codes in MAY_FAIL.items() if part in block.text), (Exit.DONE,))
        assert done.returncode in allowed, f"{block.text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_another_soul_makes_the_stages_stale_that_the_readme_names(place: Path) -> None:
    soul = next(one.text for one in SHELL if "cat > SOUL.md" in one.text)
    (place / "SOUL.md").write_text(soul.split("<<'END'\n")[1].split("\nEND\n")[0])
    run = str(place / "runs/demo")
    done = nanocode("run", "--run-dir", run, "--set", f"soul={place / 'SOUL.md'}")
    assert done.returncode == Exit.USAGE, done.stdout
    named = re.search(r"`([\w, -]+)` run again, and the report", PROSE)
    assert named is not None
    assert f"make {named[1]} stale" in done.stderr


def test_every_command_line_is_possible() -> None:
    parser = cli._parser()
    for arguments in commands():
        parser.parse_args(arguments)
        assert STAGES.keys() >= set((getattr(parser.parse_args(arguments), "stages", None) or "report").split(","))
    for name in set(re.findall(r"`(?:[^`]*/)?nanocode (\w+)", PROSE)):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([name, "--help"])
        assert ended.value.code == 0, name
    said = cli._parser().format_help() + (ROOT / "jobs/cli.py").read_text()
    assert [flag for flag in re.findall(r"`(--[a-z-]+)", PROSE) if f'"{flag}"' not in said] == []


def test_every_setting_exists() -> None:
    sections = "|".join(Settings.model_fields)
    named = set(re.findall(rf"(?<![\w./])((?:{sections})(?:\.[a-z_]+)+)(?![\w/.]*\.py)", PROSE))
    named |= {one.partition("=")[0] for line in commands() for one in line if re.match(r"[a-z_.]+=", one)}
    assert "base_eval.core_bundle" in named and "synth.teacher.url" in named
    assert [key for key in sorted(named) if not is_setting(key)] == []
    for key in re.findall(r"NANOCODE_([A-Z_]+)=", README):
        assert is_setting(key.lower().replace("__", ".")), key
    for block in BLOCKS:
        if block.kind == "yaml":
            assert all(f"{section}." in " ".join(cli.settings_help().split()) for section in yaml.safe_load(block.text))


def is_setting(key: str) -> bool:
    """Help lists every setting, those of an endpoint among them; a section counts as well, and an entry of a table."""
    if re.search(rf"^  [ *] {re.escape(key)}[ .]", cli.settings_help(), re.M) is not None:
        return True
    tables = [name for name, field in settings() if get_origin(field.annotation) is dict]
    return key.rpartition(".")[0] in tables


def test_every_path_and_target_exists() -> None:
    paths = set(re.findall(r"\]\((?!https?:|#)([^)]+)\)", PROSE))
    paths |= set(re.findall(r"(?<![\w./-])((?:jobs|nanocode|tests|deploy|charts)/[\w./-]*\w)", README))
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    rules = re.findall(r"^([a-z0-9 -]+):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    targets = {target for rule in rules for target in rule.split()}
    for named in set(re.findall(r"(?:`|^|; )make ([a-z0-9*-]+)", README, re.M)):
        assert fnmatch.filter(targets, named), named
    heads = {
        re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in re.findall(r"^#+ (.+)$", PROSE, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PROSE)) <= heads
    for module in re.findall(r"python -m ([\w.]+)(?=[ `])", README):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists() or "<stage>" in module or module == "jobs."


def test_what_the_readme_lists_is_what_the_code_has() -> None:
    lesson = section("What the demo does, stage by stage")
    assert tuple(re.findall(r"^\*\*([a-z-]+)\.?\*\*", lesson, re.M)) == order()
    assert " ".join(lesson.split()).count(f"({', '.join(TRAINED)})") == 1
    assert " and ".join(f"`{name}`" for name in TRANSFER) in " ".join(lesson.split())
    values = " ".join(section("Your own values").split())
    listed = re.search(r"These checks exist: (.+?)\. ", values)
    assert listed is not None and re.findall(r"`([\w-]+)`", listed[1]) == list(CHECKS)
    soul_readers = [name for name in order() if STAGES[name].reads_soul]
    assert set(downstream(soul_readers[0])) == {*soul_readers[1:], "sft", "report"}
    (soul,) = [one.text for one in SHELL if "cat > SOUL.md" in one.text]
    assert {one.check for one in parse_soul(soul, "README").principles} <= set(CHECKS)


def test_the_demo_is_as_large_as_the_lesson_says() -> None:
    demo, lesson = load("demo", environment={}), " ".join(section("What the demo does, stage by stage").split())
    for claim in (
        f"{demo.model.parameters() / 1e6:.1f} million",
        f"{demo.model.vocab_size:,} of them",
        f"{demo.tokenizer.megabytes:g} MB of text and from {demo.tokenizer.rollouts:,} conversations",
        f"rows of {demo.model.context}, the model's *context*",
        f"{demo.pretrain.batch_tokens:,} tokens a step, {demo.pretrain_steps:,} steps",
        f"draws {demo.synth.scenarios:,} small tasks",
        f"tries {demo.preference.tasks} new training tasks",
    ):
        assert claim in lesson, f"nowhere in the lesson: {claim}"


def test_the_table_of_presets_agrees_with_the_presets() -> None:
    rows = re.findall(r"^\| (d\w+) \| (\d+) × (\d+) \| (\S+) \| (\S+) \|", PROSE, re.M)
    assert tuple(row[0] for row in rows) == PRESETS
    for name, layers, width, size, tokens in rows:
        settings = load(name, environment={})
        assert (int(layers), int(width)) == (settings.model.layers, settings.model.width)
        assert is_rounded(size, settings.model.parameters()), name
        assert is_rounded(tokens, settings.pretrain_steps * settings.pretrain.batch_tokens), name


def is_rounded(text: str, value: float) -> bool:
    """Whether this is the value to as many digits as it has, or within 1% of it."""
    unit = {"M": 1e6, "G": 1e9, "B": 1e9}[text[-1]]
    digits = len(text[:-1].partition(".")[2])
    return abs(float(text[:-1]) - value / unit) <= max(0.5 * 10.0**-digits, 0.01 * value / unit) + 1e-9


def test_the_conversations_parse_and_their_tools_return_what_they_say() -> None:
    tokenizer = train(["def f(x):\n    return x\n"] * 9, 300, 2, True)
    shown = [one.text for one in BLOCKS if "<|user_start|>" in one.text]
    assert shown
    for text in shown:
        lines = [line[2:] for line in text.splitlines()]
        assert [line.startswith(("<|bos|>", "<|tool_result")) for line in lines] == [
            line[0] == " " for line in text.splitlines()
        ]
        conversation = parse(list(tokens(text, tokenizer)), tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            workspace = Workspace(Path(folder))
            for call, said in results(conversation):
                path, line, content = said.split(":", 2)
                workspace.put(path, "\n" * (int(line) - 1) + content + "\n")
                assert execute(workspace, call) == said


def test_the_pair_differs_by_a_principle_that_the_rejected_half_breaks() -> None:
    (text,) = [one.text for one in BLOCKS if one.text.startswith("request ")]
    request, chosen, rejected = (line.split(maxsplit=1)[1] for line in text.splitlines())
    soul = read_soul(None)
    assert soul.broken([User(request), Step(chosen)]) == ()
    assert soul.broken([User(request), Step(rejected)]) != ()


def tokens(text: str, tokenizer: Tokenizer) -> Iterator[int]:
    for part in re.split(r"(<\|\w+\|>)", "".join(line[2:] for line in text.splitlines())):
        yield from [tokenizer.special[part]] if part in tokenizer.special else tokenizer.encode(part)


def results(conversation: Sequence[Message]) -> Iterator[tuple[Call, str]]:
    for before, after in pairwise(conversation):
        if isinstance(before, Step) and isinstance(after, Result):
            assert before.call is not None and before.call.tool == "Grep"
            yield before.call, after.text


def section(head: str) -> str:
    """A section's prose, up to the next heading of any level above it."""
    found = re.search(rf"^## {re.escape(head)}\n(.*?)(?=^## |\Z)", PROSE, re.M | re.S)
    assert found is not None, head
    return found[1]
