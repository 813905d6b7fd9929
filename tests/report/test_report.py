"""What a user checks in a report: of a finished run, of half a run, of a hostile one and of none."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from nanocode.config.settings import load
from nanocode.report import time_spent
from nanocode.report.curves import Series, extremes, means, smooth
from nanocode.report.facts import SourceFacts
from nanocode.report.render import render_html, render_markdown
from nanocode.report.report import Report, build
from nanocode.report.words import quantity
from nanocode.run.directory import RunDirectory
from nanocode.run.segments import SegmentWriter
from nanocode.storage.objects import LocalStore
from tests.report import runs

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>"


def text(html: str) -> str:
    """The page as a reader sees it: no head, no tags, one kind of space."""
    body = re.sub(r"<[^>]+>", " ", html.partition("<body>")[2])
    return " ".join(body.replace("&#39;", "'").replace("&lt;", "<").replace("&gt;", ">").replace("\xa0", " ").split())


def assert_stands_alone(html: str) -> None:
    """No address is ever fetched, and the page itself forbids it."""
    assert not re.search(r"<(script|link|iframe|object|embed|img|base|form|video|audio)\b", html, re.IGNORECASE)
    for tag in re.findall(r"<[a-z][^>]*>", html):
        names = re.sub(r'"[^"]*"', '""', tag)  # what stands in quotes is text
        assert not re.search(r"\s(src|href|xlink:href|on\w+)\s*=", names), tag
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build(runs.finished(tmp_path_factory.mktemp("finished")))


def test_a_finished_run_shows_its_numbers(finished: Report) -> None:
    html = render_html(finished)
    assert_stands_alone(html)
    page = text(html)
    for shown in (
        "preset demo", "918k", "2.15M tokens from embedded code and handbook", "1.684", "2.149", "2.313", "2.871",
        "27% fewer bits than xz", "25% fewer bits than xz", "Step 100, 307k tokens", "Step 700", "return file.readlines()",
        "CC-BY-4.0", "50% of wanted", "214", "too long lines", "attrs, packaging, zipp", "cl100k_base", "4.63", "2.68",
        "31.8% of a peak of 210 GFLOP/s (measured matmul)", "1.31 GB", "jax", "0.10.2", "checkpoint_minutes: 0.5",
        "training steps 2 min 21 s, 83.9%", "waiting for data 1.9 s, 1.1%", "--set base_eval.core_bundle=PATH",
        "pretrain done 3 min 00 s 2 2 min 48 s $0.01", "Total 22 min 24 s $0.10",
        "nanocode run --preset demo --run-dir runs/demo-again --set seed=7",
    ):  # fmt: skip
        assert shown in page, shown
    assert "not finished" not in page
    assert html.count("<figure>") == 12


def test_two_figures_of_one_name_are_told_apart(finished: Report) -> None:
    told = (
        "During training bits per byte are of the first 32 rows of each kind of held-out text, at the top of all of it."
    )
    assert told in text(render_html(finished)) and told in render_markdown(finished)


def test_markdown_shows_the_same_numbers(finished: Report) -> None:
    page = render_markdown(finished)
    for shown in (
        "| Code | 1.684 | 2.313 | 27% fewer bits than xz |", "| cl100k\\_base | 4.63 | 3.71 |", "| 700 | 2.15M |",
        "attempt 2 from step 351", "return file.readlines()", "Skipped. `--set base_eval.core_bundle=PATH`",
        "| pretrain | done | 3 min 00 s | 2 | 2 min 48 s | \\$0.01 |", "waiting for data 1.1%, evaluation",
    ):  # fmt: skip
        assert shown in page, shown
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.rstrip().endswith("|") for line in rows)


def test_the_same_run_renders_the_same_bytes(tmp_path: Path) -> None:
    run = runs.finished(tmp_path)
    assert render_html(build(run)) == render_html(build(run))
    assert render_markdown(build(run)) == render_markdown(build(run))


def test_resumed_steps_replace_the_earlier_ones_and_are_not_doubled(finished: Report) -> None:
    curves = finished.curves
    tokens = [step * runs.BATCH_TOKENS for step in range(1, runs.STEPS + 1)]
    assert curves.loss.x == tokens
    again = dict(zip(curves.loss.x, curves.loss.y, strict=True))
    second = LocalStore(Path(finished.location)).read("pretrain/attempts/2/metrics/0-000000.jsonl")
    step_360 = next(r for r in map(json.loads, second.splitlines()) if r["kind"] == "step" and r["step"] == 360)
    assert again[360 * runs.BATCH_TOKENS] == step_360["loss"]
    assert [(one.attempt, one.step) for one in curves.restarts] == [(2, 351)]
    assert [one.step for one in curves.evaluations] == [100, 200, 300, 400, 500, 600, 700]
    assert "attempt 2" in text(render_html(finished))


def test_attempts_with_other_inputs_stay_out_of_the_curve(tmp_path: Path) -> None:
    run = runs.begin(tmp_path)
    runs.train(run, 1, 200, digest="ee" * 16, loss=50.0)
    runs.train(run, 1, 100)
    curves = build(run).curves
    assert len(curves.loss) == 100 and max(curves.loss.y) < 20
    assert curves.restarts == []


def test_curves_are_those_of_the_attempts_that_made_the_weights(tmp_path: Path) -> None:
    run = runs.begin(tmp_path)
    runs.train(run, 1, 200, loss=1.0)
    runs.train(run, 1, 400, loss=2.0)  # of another process: abandoned
    made = runs.train(run, 401, runs.STEPS, loss=3.0)
    runs.train(run, 351, 500, loss=50.0)  # of a third: it was too late
    runs.finish(run, "pretrain", attempt=made)
    curves = build(run).curves
    assert len(curves.loss) == runs.STEPS and max(curves.loss.y) < 20
    assert [(one.attempt, one.step) for one in curves.restarts] == [(made, 401)]


def test_before_the_end_curves_are_those_of_the_attempt_that_wrote_last(tmp_path: Path) -> None:
    run = runs.begin(tmp_path)
    alive = runs.train(run, 1, 300)
    runs.train(run, 1, 400, loss=50.0)
    with SegmentWriter(run.store, "pretrain", alive, "metrics", 0, clock=lambda: time.time() + 60) as writer:
        writer.write({"kind": "step", "step": 301, "loss": 3.0, "tokens": 301 * runs.BATCH_TOKENS})
    curves = build(run).curves
    assert len(curves.loss) == 301 and max(curves.loss.y) < 20


def test_a_half_finished_run_says_what_is_missing_and_how_to_go_on(tmp_path: Path) -> None:
    report = build(runs.half(tmp_path))
    html = render_html(report)
    assert_stands_alone(html)
    page = text(html)
    assert "This run is not finished." in page
    assert "pretrain was begun once, on" in page
    assert "base-eval is not begun; it waits for pretrain" in page
    assert f"nanocode run --run-dir {report.location}" in page
    assert f"Training has reached step 250 of {load('demo').pretrain_steps:,}, 768k tokens." in page
    assert "Base-eval is not done." in page
    assert f"Parameters {quantity(load('demo').model.parameters())}" in page, "the settings imply it"
    assert "Cost $0.03 all stages" in page
    assert report.bits_per_byte.code is not None, "the newest evaluation of training stands in for base-eval"
    assert "Base-eval is not done." in render_markdown(report)


def test_an_empty_run_directory_has_a_report(tmp_path: Path) -> None:
    report = build(RunDirectory(LocalStore(tmp_path / "new")))
    page = text(render_html(report))
    assert "Nothing is trained yet." in page
    for stage in ("tokenizer", "corpus", "pretrain", "base-eval"):
        assert f"{stage} is not begun" in page
    assert "nanocode run" in page
    assert "Parameters – Tokens seen – Bits per byte, code –" in page
    assert "Nothing is trained yet." in render_markdown(report)
    assert not (tmp_path / "new").exists(), "a report changes nothing"


def test_a_stage_that_is_made_again_is_called_stale(tmp_path: Path) -> None:
    run = runs.finished(tmp_path)
    run.claim("base-eval", "ff" * 16, "laptop")
    report = build(run)
    assert report.stage("base-eval").state == "stale"
    assert "base-eval was done with earlier settings and not yet again" in text(render_html(report))


def hostile(folder: Path) -> RunDirectory:
    run = RunDirectory(LocalStore(folder / "<b>run"))
    run.add_config(f"preset: '{HOSTILE}'\nother: ```\n")
    source = {"name": HOSTILE, "location": "javascript:alert(1)|x", "licence": "`*_<b>", "dropped": {HOSTILE: 3}}
    runs.finish(run, "corpus", {"sources": [source], "held_out": [HOSTILE, "a\u202eb"]})
    runs.finish(run, "tokenizer", {"public": {HOSTILE: {"english": 4.0}}}, versions={HOSTILE: HOSTILE})
    runs.finish(run, "base-eval", {"core": {"core": 0.1, "tasks": {HOSTILE: {"accuracy": 0.5}}}})
    attempt = run.claim("pretrain", runs.DIGEST["pretrain"], HOSTILE)
    with SegmentWriter(run.store, "pretrain", attempt, "metrics", 0) as writer:
        samples = [{"prompt": HOSTILE, "text": HOSTILE + "\x1b[31m\x00\ud800 ````\n# heading\n</code>"}]
        writer.write({"kind": "samples", "step": 1, "samples": samples})
    return run


def test_hostile_strings_are_text(tmp_path: Path) -> None:
    report = build(hostile(tmp_path), commands=[f"nanocode run '{HOSTILE}'"])
    html = render_html(report)
    assert_stands_alone(html)
    assert "<script" not in html and "<img" not in html and "<b>run" not in html
    assert html.count("&lt;script&gt;alert(1)") >= 8
    html.encode()
    assert not re.search("[\x00\x1b\u202e]", html)


def test_hostile_strings_are_text_in_markdown(tmp_path: Path) -> None:
    page = render_markdown(build(hostile(tmp_path)))
    page.encode()
    outside, fence = [], ""
    for line in page.splitlines():
        ticks = re.match("`{3,}", line)
        if not fence and ticks:
            fence = ticks[0]
        elif fence and line == fence:
            fence = ""
        elif not fence:
            outside.append(line)
    assert not fence, "every code block is closed"
    assert not [line for line in outside if "<script" in line or "<img" in line or line.startswith("# heading")]
    assert any("&lt;script&gt;" in line for line in outside)


@pytest.mark.parametrize("metrics", [
    {"parameters": "many", "tokens": None, "seconds": 3, "bits_per_byte": [1], "loss": float("1e400"), "mfu": True},
    {"seconds": {"data": -1.0, "step": "x"}, "device": 7, "bits_per_byte": {"code": None}},
])  # fmt: skip
def test_values_of_another_type_are_missing_not_fatal(tmp_path: Path, metrics: dict[str, Any]) -> None:
    run = runs.begin(tmp_path)
    runs.finish(run, "pretrain", {k: v for k, v in metrics.items() if v != float("inf")})
    runs.finish(run, "corpus", {"sources": [{"dropped": {"a": "b"}}, 3, None], "held_out": {}, "valid": 1})
    runs.finish(run, "tokenizer", {"public": {"gpt2": 4}, "bytes_per_token": "x"})
    runs.finish(run, "base-eval", {"core": {"tasks": {"t": None}}})
    with SegmentWriter(run.store, "pretrain", 1, "metrics", 0) as writer:
        for record in ({"kind": 3}, {"kind": "step"}, {"kind": "step", "step": 1, "loss": float("nan")},
                       {"kind": "eval", "step": 1, "bits_per_byte": 3}, {"kind": "samples", "step": 2, "samples": "x"},
                       {"kind": "step", "step": 2, "loss": 3.0}, {"kind": "time", "step": 2, "mfu": float("inf")}):  # fmt: skip
            writer.write(record)
    page = text(render_html(build(run)))
    assert "–" in page and "nan" not in page.split() and "None" not in page
    assert "None" not in re.sub("(?s)```.*?```", "", render_markdown(build(run)))


def test_a_core_evaluation_is_a_table(tmp_path: Path) -> None:
    run = runs.begin(tmp_path)
    runs.finish(run, "base-eval", {**runs.BASE_EVAL, "core": runs.CORE})
    page = text(render_html(build(run)))
    assert "CORE score 0.0213" in page
    assert "hellaswag 27.1% 25.0% 0.028 500" in page
    assert "Skipped" not in page


def test_a_model_worse_than_xz_is_said_to_be(tmp_path: Path) -> None:
    run = runs.begin(tmp_path)
    bits = {"bits_per_byte": {"code": 3.0, "english": 2.0}, "xz_bits_per_byte": {"code": 2.4, "english": 2.5}}
    runs.finish(run, "base-eval", bits)
    assert "the model takes 25% more on code and 20% fewer on English" in text(render_html(build(run)))


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    run = runs.begin(tmp_path)
    runs.train(run, 1, 12_000, steps=12_000)
    began = time.monotonic()
    html = render_html(build(run))
    assert len(html) < 120_000, "curves are thinned to what a screen can show"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "values", [[3.0], [3.0, 3.0], [3.0, 1e23, -2.0], [1e20, 1e20], [2.0, 1e308], [0.0, 0.0], [5e-324]]
)
def test_strange_curves_are_drawn(tmp_path: Path, values: list[float]) -> None:
    run = runs.begin(tmp_path)
    attempt = run.claim("pretrain", runs.DIGEST["pretrain"], "laptop")
    with SegmentWriter(run.store, "pretrain", attempt, "metrics", 0) as writer:
        for step, y in enumerate(values):
            named = dict.fromkeys(("loss", "gradient_norm", "learning_rate", "tokens_per_second", "mfu"), y)
            for kind in ("step", "time", "eval"):
                writer.write({"kind": kind, "step": step, **named, "bits_per_byte": {"code": y, "english": y}})
    html = render_html(build(run))
    assert html.count("<figure>") == 6
    assert not re.search(r"\b(nan|inf)\b", html)
    assert max(map(len, re.findall(r"<span>([^<]*)</span></div>", html))) < 12


def test_thinning_keeps_ends_means_and_spikes() -> None:
    series = Series([float(i) for i in range(10_000)], [1.0] * 10_000)
    series.y[5_003] = 9.0
    assert max(extremes(series, 300).y) == 9.0
    thinned = means(series, 300)
    assert (thinned.x[0], thinned.x[-1], len(thinned)) == (0.0, 9_999.0, 300)
    assert extremes(series, 300).x == sorted(extremes(series, 300).x)


def test_smoothing_does_not_lag() -> None:
    line = [2.0 * i for i in range(100)]
    assert smooth(line, 7) == pytest.approx(line)


def test_a_source_that_ran_out_says_how_much_it_gave() -> None:
    assert SourceFacts(tokens=30, wanted_tokens=40).kept_of_wanted == 0.75
    assert SourceFacts(tokens=30).kept_of_wanted is None


def test_where_the_time_went_is_one_bar_per_stage_with_its_goodput(tmp_path: Path) -> None:
    run = RunDirectory(LocalStore(tmp_path))
    number = run.claim("pretrain", runs.DIGEST["pretrain"], "laptop")
    claim = run.attempts("pretrain")[0].model_copy(update={"claimed": runs.STARTED})
    run.store.write(f"pretrain/attempts/{number}/claim.json", claim.model_dump_json().encode())
    began = runs.STARTED.timestamp()
    with SegmentWriter(run.store, "pretrain", number, "events", 0) as events:
        events.write({"kind": "begin", "phase": "compile", "time": began + 8})
        events.write({"kind": "end", "phase": "compile", "time": began + 42})
    spent = {"step_seconds": 84.0, "data": 0.0, "checkpoint": 0.0, "evaluation": 42.0}
    with SegmentWriter(run.store, "pretrain", number, "metrics", 0) as metrics:
        metrics.write({"kind": "time", "step": 700, "steps_timed": 700, "time": began + 168, **spent})
    runs.finish(run, "pretrain")
    report = build(run)
    (row,) = time_spent.rows(report)
    assert (row.stage, row.seconds, row.goodput) == ("pretrain", 168.0, 0.5)
    assert [(part.label, part.percent) for part in row.parts] == [
        ("productive", 50.0), ("evaluation", 25.0), ("compile", pytest.approx(100 * 34 / 168)),
        ("start-up", pytest.approx(100 * 8 / 168)),
    ]  # fmt: skip
    assert "goodput 50%" in render_html(report)
    assert "| pretrain | 2 min 48 s | 50% | productive 50%, evaluation 25%" in render_markdown(report)
