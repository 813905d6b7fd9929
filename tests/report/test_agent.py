"""What a user checks in the agent's part of a report: who was better than whom, and what the agent really did."""

import re
from pathlib import Path
from typing import Any

import pytest

from nanocode.report import agent, agent_charts
from nanocode.report.agent_facts import AgentEvalFacts, SynthFacts
from nanocode.report.render import render_html, render_markdown
from nanocode.report.report import Report, build
from nanocode.report.transcripts import difference
from nanocode.run.directory import RunDirectory
from tests.report import runs
from tests.report.test_report import HOSTILE, assert_stands_alone, text


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build(runs.finished(tmp_path_factory.mktemp("finished")))


def test_the_agent_section_says_by_how_much_each_stage_helped(finished: Report) -> None:
    html = render_html(finished)
    assert_stands_alone(html)
    page = text(html)
    for shown in (
        "As an agent that runs tools it passes 93% (95% interval 87% to 99%) of 100 tasks it has never seen; the base "
        "model 3%, “do nothing” 0% and “copy the request” 1%.",
        "Tasks passed 93% 87% to 99%",
        "Fine-tuning helped: 3% → 92%.",
        "The preference stage made no difference beyond chance: 92% → 93% (the 95% intervals overlap).",
        "On families that it was never trained on it passes 6% (95% interval <1% to 12%): config 0% and count 12%.",
        "new words identifiers, file names and layouts of files that training never had 83%",
        "transfer families that no stage was trained on: config and count 6%",
        "fix 6% 3 of 50; 2% to 16% 90%",
    ):  # fmt: skip
        assert shown in page, shown
    assert page.index("The agent") < page.index("Bits per byte on held-out text")


def test_markdown_says_the_same_of_the_agent(finished: Report) -> None:
    page = render_markdown(finished)
    for shown in (
        "Fine-tuning helped: 3% → 92%.", "| **after preference** | 93% | 87% to 99% | 100 | 3.2 | 4% |",
        "| do nothing | 0% |", "| find | 0% (0% to 7%) | 94% (84% to 98%) | 94% (84% to 98%) |",
        "| 1. Look before you change. | look-first | 50% (38% to 62%, of 60) | 97% (89% to 99%, of 60) | up |",
        "```diff\n  def total(a, b):\n-     return a - b\n+     return a + b\n```",
        "| scenarios | 2,000 |\n| breaks SOUL 5 | 12 |\n| check failed | 7 |\n| duplicate | 30 |\n| kept | 1,951 |",
    ):  # fmt: skip
        assert shown in page, shown
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.rstrip().endswith("|") for line in rows)


@pytest.mark.parametrize(("before", "after", "said"), [
    ((2, 50), (45, 50), "Fine-tuning helped: 4% → 90%."),
    ((45, 50), (20, 50), "Fine-tuning hurt: 90% → 40%."),
    ((20, 50), (24, 50), "Fine-tuning made no difference beyond chance: 40% → 48% (the 95% intervals overlap)."),
    ((0, 2), (1, 2), "Fine-tuning made no difference beyond chance: 0% → 50% (the 95% intervals overlap)."),
])  # fmt: skip
def test_a_stage_helped_only_where_intervals_are_apart(
    before: tuple[int, int], after: tuple[int, int], said: str
) -> None:
    models = {"pretrain": {"fresh": runs.suite({"fix": before})}, "sft": {"fresh": runs.suite({"fix": after})}}
    assert agent.effects(AgentEvalFacts.read({"models": models})) == [said]


def test_models_that_are_not_neighbours_are_not_compared() -> None:
    models = {name: {"fresh": runs.suite({"fix": (20, 50)})} for name in ("pretrain", "preference")}
    assert agent.effects(AgentEvalFacts.read({"models": models})) == []


def test_principles_stand_beside_their_checks(finished: Report) -> None:
    page = text(render_html(finished))
    assert "1. Look before you change. look-first 50% 38% to 62%, of 60 97% 89% to 99%, of 60 up" in page
    assert "2. Be kind. for a reader to judge – – –" in page
    assert "3. Stop when done. no-soliciting 98%" in page
    assert "The preference stage moved look-first 50% → 97%, beyond chance; 1 more stayed within it." in page


def test_without_a_readable_soul_the_checks_are_still_shown(tmp_path: Path) -> None:
    run = runs.begin(tmp_path)
    runs.finish(run, "synth", {**runs.SYNTH, "soul": "1. Sing. [check: unheard-of]"})
    runs.finish(run, "agent-eval")
    rows = agent.adherence(build(run))
    assert [(one.principle, one.check) for one in rows] == [(None, "look-first"), (None, "no-soliciting")]
    assert "not in the SOUL of synth look-first" in text(render_html(build(run)))


def test_the_stages_between_show_what_they_made_and_cost(finished: Report) -> None:
    page = text(render_html(finished))
    for shown in (
        "1,951 of 2,000 scenarios became rollouts, and 61 of them preference pairs, in 44 s",
        "Gate Scenarios scenarios 2,000 breaks SOUL 5 12 check failed 7 duplicate 30 kept 1,951 pairs 61",
        "held-out loss 0.352 nats per token", "Packing left 2.8% of the slots empty", "95% of pretraining's 15.3k",
        "Code 1.702 1.911 +12.28%", "Code 1.911 1.930 +0.99%", "English 2.301 2.300 −0.04%",
        "61 from synthesis and 47 from the model's own attempts, less 3 too long for the context",
        "Of 400 attempts at training tasks 233 passed", "Margin", "Gain of the chosen",
        "agent-eval done", "preference done",
    ):  # fmt: skip
        assert shown in page, shown


def test_each_stage_has_its_own_curve(finished: Report) -> None:
    tokens = [step * runs.BATCH_TOKENS for step in range(1, 41)]
    assert finished.sft_curves.loss.x == tokens
    assert [(one.x, one.validation) for one in finished.sft_curves.evaluations] == [(0, 4.4), (tokens[-1], 0.352)]
    assert finished.preference_curves.margin.y[-1] == pytest.approx(5.7)
    assert len(finished.curves.loss) == runs.STEPS


def test_transcripts_are_blocks_with_edits_as_differences(finished: Report) -> None:
    html = render_html(finished)
    folded = html[html.index("<h2>Transcripts") :]
    assert '<span class="gone">-     return a - b</span><span class="new">+     return a + b</span>' in folded
    page = text("<body>" + folded)
    assert "fix 46 of 50 passed passed eval-0/fix/0 user The test of `total` fails, can you look? Bash python3" in page
    assert "Read shop.py, lines 1 to 2 result" in page
    assert "find 47 of 50 passed failed eval-0/find/0: the answer does not match shop" in page
    assert "Grep in src def total result error: no such file: src" in page
    assert "<details open" not in folded


def hostile(folder: Path) -> RunDirectory:
    says = [
        {"user": HOSTILE}, {"assistant": HOSTILE, "tool": HOSTILE, "arguments": {HOSTILE: HOSTILE}}, {"result": HOSTILE},
        {"assistant": "", "tool": "Edit", "arguments": {"path": HOSTILE, "old": HOSTILE, "new": HOSTILE + "\n```\n# heading"}},
        {"result": "```\n</details><script>alert(3)</script>\x1b[31m\u202e"}, {"assistant": HOSTILE},
    ]  # fmt: skip
    suite = runs.suite({HOSTILE: (1, 2)}, {HOSTILE: (1, 2)}, [runs.transcript(HOSTILE, False, *says, reason=HOSTILE)])
    run = runs.begin(folder)
    runs.finish(run, "synth", {"gates": {"expert": {HOSTILE: 3}}, "soul": f"1. {HOSTILE} [check: look-first]"})
    runs.finish(run, "sft", {"conversations": {HOSTILE: 3}})
    runs.finish(run, "preference", {"pairs": {HOSTILE: 3}})
    runs.finish(run, "agent-eval", {"models": {"sft": {"fresh": suite, HOSTILE: suite}, HOSTILE: {"fresh": suite}}})
    return run


def test_a_script_in_a_tool_result_stays_text(tmp_path: Path) -> None:
    html = render_html(build(hostile(tmp_path)))
    assert_stands_alone(html)
    assert "&lt;/details&gt;&lt;script&gt;alert(3)&lt;/script&gt;" in html
    assert html.count("<details") == html.count("</details>")
    assert not re.search("[\x00\x1b\u202e]", html)


def test_a_script_in_a_tool_result_stays_text_in_markdown(tmp_path: Path) -> None:
    outside, fence = [], ""
    for line in render_markdown(build(hostile(tmp_path))).splitlines():
        ticks = re.match("`{3,}", line)
        if not fence and ticks:
            fence = ticks[0]
        elif fence and line == fence:
            fence = ""
        elif not fence:
            outside.append(line)
    assert not fence, "every code block is closed"
    assert not [line for line in outside if "<script" in line or "<img" in line or line.startswith("# heading")]
    assert sum(line.count("<details>") for line in outside) == sum(line.count("</details>") for line in outside)


def test_a_run_without_agent_stages_says_what_is_missing(tmp_path: Path) -> None:
    report = build(runs.pretrained(tmp_path))
    html = render_html(report)
    assert_stands_alone(html)
    page = text(html)
    for stage in ("Agent-eval", "Synth", "Sft", "Preference"):
        assert f"{stage} is not done." in page
        assert f"{stage} is not done." in render_markdown(report)
    assert "sft is not begun; it waits for synth" in page
    assert "Tasks passed" not in page and "As an agent" not in page and "Principle" not in page


def test_with_only_synth_done_its_gates_and_principles_are_there(tmp_path: Path) -> None:
    run = runs.pretrained(tmp_path)
    runs.finish(run, "synth")
    page = text(render_html(build(run)))
    assert "1,951 of 2,000 scenarios" in page and "1. Look before you change. look-first – – –" in page
    assert "Sft is not done." in page and "Agent-eval is not done." in page
    assert "sft is not begun; all that it reads is there" in page
    render_markdown(build(run))


def test_a_fine_tuning_on_its_way_has_its_curve(tmp_path: Path) -> None:
    run = runs.pretrained(tmp_path)
    runs.finish(run, "synth")
    runs.fine_tune(run)
    html = render_html(build(run))
    assert "Held-out loss" in html and "Sft is not done." in text(html)


@pytest.mark.parametrize("models", [
    3, {"sft": 3}, {"sft": {"fresh": None}}, {"sft": {"fresh": {"pass@1": "x", "families": [1]}}},
    {"sft": {"fresh": {"pass@1": 7.0, "interval": [2, 1]}}},
    {"sft": {"fresh": {"pass@1": 0.5, "interval": [0.1], "families": {"fix": 3, "find": {"pass@1": None}},
                       "transcripts": [3, {"messages": [{}, 4, {"tool": 3}, {"tool": "Edit"}, {"arguments": 4}]}]}}},
])  # fmt: skip
def test_values_of_another_type_are_missing_not_fatal(tmp_path: Path, models: Any) -> None:
    run = runs.begin(tmp_path)
    runs.finish(run, "synth", {"gates": [1], "soul": 3})
    runs.finish(run, "sft", {"conversations": {"fix": "many"}, "waste": "x"})
    runs.finish(run, "preference", {"pairs": 3, "bits_per_byte_before": {"code": 0}, "bits_per_byte": {"code": 1}})
    runs.finish(run, "agent-eval", {"models": models})
    page = text(render_html(build(run)))
    assert "nan" not in page.split() and "None" not in page
    assert "None" not in re.sub("(?s)```.*?```", "", render_markdown(build(run)))


def test_marks_and_whiskers_stay_on_the_scale() -> None:
    facts = AgentEvalFacts.read({"models": {"sft": {"fresh": runs.suite({"fix": (50, 50), "find": (0, 50)})}}})
    rows = agent_charts.rows(agent.scores(facts))
    assert [row.label for row in rows] == ["all families", "fix", "find"]
    for row in rows:
        (mark,) = row.marks
        assert 0 <= mark.low <= mark.percent <= mark.low + mark.width <= 100 + 1e-9
    assert rows[1].marks[0].description == "fine-tuned 100%, 95% interval 93% to 100%"


def test_gates_read_from_what_came_in_to_what_is_left() -> None:
    gates = SynthFacts.read({"gates": {"expert": {"kept": 1, "b": 2, "a": 3, "scenarios": 9}}}).gates_in_order
    assert list(gates) == ["scenarios", "a", "b", "kept"]
    several = SynthFacts.read({"gates": {"expert": {"kept": 1}, "public": {"kept": 2}, "teacher": {}}})
    assert list(several.gates_in_order) == ["expert: kept", "public: kept"]
    assert several.total("kept") == 3 and several.total("pairs") is None


@pytest.mark.parametrize(("old", "new", "shown"), [
    ("", "a\nb", "+ a|+ b"), ("a\n", "", "- a"), ("a\nb\nc", "a\nx\nc", "  a|- b|+ x|  c"), ("", "", ""),
])  # fmt: skip
def test_an_edit_is_shown_as_its_difference(old: str, new: str, shown: str) -> None:
    assert "|".join(f"{line.sign} {line.text}" for line in difference(old, new)) == shown
