"""The built-in expert: another SOUL changes how it works, never what comes of it, and each flaw breaks its own check."""

import re

import pytest

from nanocode.agent.conversation import Conversation, Message, Result, Step, User
from nanocode.agent.sandbox import Grade, best_grade
from nanocode.agent.soul import PERMISSION, Soul, edits, finals, parse_soul, steps
from nanocode.synth.expert import FLAWS, Expert, in_manner, spoken
from nanocode.synth.rollouts import attempt
from nanocode.tasks.families import FAMILIES, scenario
from tests.tasks.players import OURS, solved

pytestmark = pytest.mark.skipif(best_grade() is Grade.NONE, reason="commands run only where something holds them")
PLAIN = "1. Look. [check: look-first]\n2. Report. [check: reports]\n3. Name it. [check: name-changes]\n"
ASKING = parse_soul(PLAIN + "4. Ask before you change a file. [check: ask-first]\n", "asking.md")
ACTING = parse_soul(PLAIN + "4. Act. [check: act-at-once]\n", "acting.md")
SMALL = parse_soul(PLAIN + "4. Whisper. [check: lowercase]\n5. Stop. [check: no-soliciting]\n", "small.md")
SOULS = pytest.mark.parametrize("soul", [OURS, ASKING, ACTING, SMALL], ids=["ours", "asking", "acting", "small"])


@SOULS
@pytest.mark.parametrize("family", FAMILIES)
def test_the_expert_passes_and_keeps_whatever_soul_it_is_given(family: str, soul: Soul) -> None:
    for number in range(2):
        assert soul.broken(solved(scenario(family, "souls", number), soul)) == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_work_is_the_same_whatever_the_soul(family: str) -> None:
    one = scenario(family, "same", 1)

    def calls(conversation: Conversation) -> list[object]:
        return [step.call for step in steps(conversation) if step.call is not None]

    assert calls(solved(one, ASKING)) == calls(solved(one, ACTING)) == calls(solved(one, SMALL))


def test_who_is_to_ask_asks_once_before_the_first_edit_and_waits() -> None:
    for family in ("rename", "fix", "create", "config", "constraint", "reject"):
        conversation = list(solved(scenario(family, "asks", 0), ASKING))
        asked = [place for place, m in enumerate(conversation) if isinstance(m, Step) and PERMISSION.search(m.text)]
        assert len(asked) == 1
        assert isinstance(conversation[asked[0] + 1], User)
        (first, *_) = edits(conversation)
        assert conversation[asked[0] + 2] == first
        assert not any(PERMISSION.search(step.text) for step in steps(solved(scenario(family, "asks", 0), ACTING)))


def test_two_opposed_souls_are_each_broken_by_the_others_expert() -> None:
    one = scenario("config", "opposed", 0)
    assert [principle.check for principle in ASKING.broken(solved(one, ACTING))] == ["ask-first"]
    assert [principle.check for principle in ACTING.broken(solved(one, ASKING))] == ["act-at-once"]


def test_who_only_looks_need_not_ask() -> None:
    for family in ("find", "explain", "count", "command", "recover"):
        assert len(finals(solved(scenario(family, "looks", 0), ASKING))) == 1


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_breaks_its_own_check_and_does_the_work(flaw: str) -> None:
    soul = parse_soul(PLAIN + f"4. Be good. [check: {flaw}]\n", "flawed.md")
    found = attempt(scenario("rename", "flawed", 0), soul, flaw)
    assert found.fault == "breaks SOUL 4"
    assert [principle.check for principle in soul.broken(found.messages)] == [flaw]


@pytest.mark.parametrize(
    ("text", "small"),
    [
        ("Changed a.py.", "changed a.py."),
        ("It prints `SHOP 40`.", "it prints `SHOP 40`."),
        ("There is no File.py. I see README.md and Makefile.", "there is no File.py. i see README.md and makefile."),
        ("x in Capital letters", "x in capital letters"),
        ("", ""),
    ],
)
def test_a_small_voice_leaves_names_alone(text: str, small: str) -> None:
    assert spoken(text, SMALL) == small
    assert spoken(text, OURS) == text


def test_a_script_that_ends_ends_the_manner() -> None:
    def script() -> object:
        said = yield Step("Looking.", None)
        assert said == "go on"

    moves = in_manner(script(), OURS)  # type: ignore[arg-type]
    next(moves)
    with pytest.raises(StopIteration):
        moves.send("go on")


def test_an_expert_whose_world_is_another_is_at_a_loss() -> None:
    one = scenario("fix", "loss", 0)
    (test,) = one.task.check.restored
    files = {**one.task.files, test: 'print("ok")\n'}
    other = type(one)(one.task.model_copy(update={"files": files}), one.script)
    assert attempt(other, OURS).fault == "expert at a loss"


def test_a_user_who_says_no_is_not_what_the_expert_was_told() -> None:
    expert = Expert(scenario("config", "no", 0).script, ASKING)
    said: list[Message] = [User("Set it.")]
    for answer in (Result("    1→x = 1"), User("No.")):
        (step,) = expert([said])
        assert step is not None
        said += [step, answer]
    assert re.match(r"May I", said[-2].text)  # type: ignore[union-attr]
    with pytest.raises(AssertionError, match=r"No\."):
        expert([said])
