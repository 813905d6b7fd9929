"""Which attempt `nanocode status` shows, and what it says of one that may be alive."""

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs import local, status_table
from jobs.cli import main
from jobs.status_table import table
from nanocode.config.settings import load
from nanocode.run import copied, segments, status
from nanocode.run.attempts import End, Ending, ExitRecord, record
from nanocode.run.digests import stage_digests
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.exits import Exit
from nanocode.run.exposition import exposition
from nanocode.run.graph import order
from nanocode.run.intent import change_intent, latest_intent
from nanocode.run.segments import SegmentWriter
from nanocode.run.settling import pinned, read_settings
from nanocode.storage.objects import StorageError, Store, open_store

pytestmark = pytest.mark.slow

HELD_BY_NOBODY = "elsewhere:1"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(open_store(tmp_path / "run"))
    run.add_config(pinned(load("demo", environment={}), run).to_yaml())
    return run


def attempt(run: RunDirectory, last_step: int, seconds_ago: float = 0.0, who: str = HELD_BY_NOBODY) -> int:
    number = run.claim("pretrain", digest(run), who)
    at = time.time() - seconds_ago
    claim = run.attempts("pretrain")[-1].model_copy(update={"claimed": datetime.fromtimestamp(at, UTC)})
    run.store.write(f"pretrain/attempts/{number}/claim.json", claim.model_dump_json().encode())
    with SegmentWriter(run.store, "pretrain", number, "metrics", 0, clock=lambda: at) as writer:
        writer.write({"kind": "step", "step": last_step - 1, "loss": 2.0})
    return number


def digest(run: RunDirectory) -> str:
    return stage_digests(read_settings(run), run)["pretrain"]


def pretrain(run: RunDirectory) -> dict[str, Any]:
    found = status.read(run.store.url)
    return next(stage for stage in found["stages"] if stage["name"] == "pretrain")


def test_a_done_stage_shows_the_attempt_of_its_marker(run: RunDirectory) -> None:
    made = attempt(run, 1400, seconds_ago=90)
    attempt(run, 700, seconds_ago=60)
    now = datetime.now(UTC)
    run.finish("pretrain", Marker(stage="pretrain", input_digest=digest(run), attempt=made, started=now, ended=now))
    shown = pretrain(run)
    assert (shown["state"], shown["attempt"], shown["attempts"], shown["step"]) == ("done", made, 2, 1400)
    assert "1 of 2" in table(status.read(run.store.url), 100)


def test_the_attempt_that_wrote_last_is_shown_whatever_its_number(run: RunDirectory) -> None:
    alive = attempt(run, 300, seconds_ago=3)
    attempt(run, 700, seconds_ago=100)
    shown = pretrain(run)
    assert (shown["state"], shown["attempt"], shown["step"]) == ("running", alive, 300)
    assert status.read(run.store.url)["state"] == "running"


def test_an_attempt_that_has_been_silent_is_begun_and_says_since_when(run: RunDirectory) -> None:
    attempt(run, 300, seconds_ago=100)
    shown = pretrain(run)
    assert shown["state"] == "begun"
    assert shown["reason"] in (
        "attempt 1 by elsewhere:1 wrote last 100 s ago",
        "attempt 1 by elsewhere:1 wrote last 101 s ago",
    )


def test_a_second_process_on_a_run_is_warned_of_the_first(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "control", lambda directory: Exit.PREEMPTED)

    def warned() -> str:
        assert local.run(run.store.url, None, [], None, "pretrain", yes=False) == Exit.PREEMPTED
        return capsys.readouterr().err

    attempt(run, 300, seconds_ago=100)
    gone = subprocess.Popen(["true"])
    gone.wait()
    attempt(run, 300, who=f"{socket.gethostname()}:{gone.pid}")
    assert warned() == "", "silent for long, and known to be gone"
    attempt(run, 300, seconds_ago=3)
    told = r"attempt 3 of pretrain by elsewhere:1 wrote \d s ago; if it is alive, its end is awaited"
    assert re.search(told, warned())


def timed(at: float, step: int, seconds: float = 10.0) -> dict[str, Any]:
    spent = {"step_seconds": seconds, "data": 0.0, "checkpoint": 0.0, "evaluation": 0.0}
    speed = {"tokens_per_second": 6100.0, "mfu": 0.31}
    return {"kind": "time", "step": step, "steps_timed": 10, **spent, **speed, "time": at}


def write(run: RunDirectory, stage: str, kind: Any, *records: dict[str, Any], number: int = 1) -> None:
    with SegmentWriter(run.store, stage, number, kind, 0) as writer:
        for record in records:
            writer.write(record)


def stage(run: RunDirectory, name: str) -> dict[str, Any]:
    return next(one for one in status.read(run.store.url)["stages"] if one["name"] == name)


def test_fine_tuning_shows_its_steps_and_the_time_left_at_its_recent_speed(run: RunDirectory) -> None:
    run.claim("sft", stage_digests(read_settings(run), run)["sft"], HELD_BY_NOBODY)
    now = time.time()
    write(run, "sft", "metrics", {"kind": "step", "step": 19, "loss": 0.5}, timed(now - 20, 10), timed(now, 20))
    shown = stage(run, "sft")
    assert (shown["state"], shown["step"], shown["loss"]) == ("running", 20, 0.5)
    assert (shown["tokens_per_second"], shown["mfu"]) == (6100.0, 0.31)
    assert shown["eta_seconds"] == pytest.approx((shown["steps"] - 20) * 2.0)


def test_a_stage_without_steps_shows_its_last_progress(run: RunDirectory) -> None:
    run.claim("synth", stage_digests(read_settings(run), run)["synth"], HELD_BY_NOBODY)
    now = time.time()
    progress = {"kind": "progress", "phase": "playing", "total": 200, "unit": "scenarios"}
    write(run, "synth", "events", {**progress, "done": 50, "time": now - 10}, {**progress, "done": 100, "time": now})
    shown = stage(run, "synth")
    assert (shown["step"], shown["steps"], shown["unit"]) == (100, 200, "scenarios")
    assert shown["eta_seconds"] == pytest.approx(20.0)


def test_preemptions_and_failures_are_counted_from_how_attempts_ended(run: RunDirectory) -> None:
    for number, ending in enumerate([Ending.PREEMPTED, Ending.PREEMPTED, Ending.FAILED, Ending.STOPPED], start=1):
        attempt(run, 100 * number, seconds_ago=60)
        record(run, "pretrain", number, End(ending=ending, reason="", at=time.time(), progress=0))
    attempt(run, 500, seconds_ago=60)
    record(run, "pretrain", 5, ExitRecord(code=Exit.PREEMPTED, at=time.time()))
    shown = pretrain(run)
    assert (shown["attempts"], shown["preemptions"], shown["failures"]) == (5, 3, 1)
    attempt(run, 600, seconds_ago=60)
    record(run, "pretrain", 6, ExitRecord(code=-signal.SIGTERM, at=time.time()))
    assert pretrain(run)["preemptions"] == 4, "before the controller has said what it counts as"


def controller_says(run: RunDirectory, seconds_ago: float, state: str, **stages: str) -> None:
    told = {name: {"state": one, "reason": f"why {one}"} for name, one in stages.items()}
    status = {"at": time.time() - seconds_ago, "state": state, "reason": "why", "stages": told, "spent_dollars": 3.5}
    run.store.write("controller/status.json", json.dumps(status).encode())


def test_what_the_controller_wrote_a_moment_ago_counts(run: RunDirectory) -> None:
    attempt(run, 300, seconds_ago=100)
    controller_says(run, 2, "running", pretrain="preempted")
    shown = status.read(run.store.url)
    assert (shown["state"], shown["spent_dollars"]) == ("running", 3.5)
    assert (pretrain(run)["state"], pretrain(run)["reason"]) == ("preempted", "why preempted")


def test_what_a_controller_wrote_long_ago_counts_only_where_it_rests(run: RunDirectory) -> None:
    attempt(run, 300, seconds_ago=900)
    controller_says(run, 600, "running", pretrain="running")
    assert pretrain(run)["state"] == "begun"
    controller_says(run, 600, "failed", pretrain="failed")
    assert (pretrain(run)["state"], pretrain(run)["reason"]) == ("failed", "why failed")
    assert status.read(run.store.url)["state"] == "failed"
    attempt(run, 300)
    assert pretrain(run)["state"] == "running", "somebody began again"


def test_a_run_that_the_user_stopped_says_so_without_a_controller_until_it_is_resumed(run: RunDirectory) -> None:
    for want, state in (("suspend", "suspended"), ("cancel", "cancelled")):
        change_intent(run, want=want)
        assert status.read(run.store.url)["state"] == state
    controller_says(run, 600, "suspended", pretrain="suspended")
    change_intent(run, want="run")
    assert (status.read(run.store.url)["state"], pretrain(run)["state"]) == ("unfinished", "waiting")


def test_a_controller_whose_clock_is_ahead_is_heard(run: RunDirectory) -> None:
    controller_says(run, -5, "provisioning", pretrain="provisioning")
    assert pretrain(run)["state"] == "provisioning"


def test_the_documented_keys_are_there(run: RunDirectory) -> None:
    found = status.read(run.store.url)
    assert {"run", "state", "stages"} <= set(found)
    assert {
        "name", "state", "step", "steps", "loss", "tokens_per_second", "mfu", "attempts", "preemptions", "failures",
        "goodput", "cost_dollars", "reason",
    } <= set(found["stages"][0])  # fmt: skip


@pytest.mark.parametrize("width", [80, 100, 160])
def test_nothing_is_cut_off_at_any_width(run: RunDirectory, width: int) -> None:
    attempt(run, 300, seconds_ago=3)
    write(run, "pretrain", "metrics", timed(time.time() - 30, 1300, 50.0))
    controller_says(run, 1, "running", pretrain="provisioning", preference="suspended")
    shown = table(status.read(run.store.url), width)
    assert "…" not in shown
    assert all(len(line) <= width for line in shown.splitlines())
    assert all(word in shown for word in ("provisioning", "preference", "31%", "1 of 1"))


def test_prometheus_reads_what_the_exposition_says(run: RunDirectory) -> None:
    attempt(run, 300, seconds_ago=3)
    write(run, "pretrain", "metrics", timed(time.time(), 300))
    families = text_string_to_metric_families(exposition(status.read(run.store.url)))
    samples = {(one.name, one.labels.get("stage"), one.labels.get("state")): one for f in families for one in f.samples}
    assert samples["nanocode_stage_state", "pretrain", "running"].value == 1
    assert samples["nanocode_stage_step", "pretrain", None].value == 300
    assert samples["nanocode_stage_tokens_per_second", "pretrain", None].value == 6100.0
    assert ("nanocode_stage_loss", "tokenizer", None) not in samples
    assert ("nanocode_stage_wall_seconds", "pretrain", None) in samples


def test_a_look_at_a_long_run_takes_well_under_a_second(run: RunDirectory) -> None:
    now = time.time()
    for number in range(1, 21):
        attempt(run, 100 * number, seconds_ago=600)
        for part in range(20):
            write(run, "pretrain", "metrics", *(timed(now - 500 + part, 10 * k) for k in range(10)), number=number)
    began = time.process_time()
    status.read(run.store.url)
    assert time.process_time() - began < 1.0, "0.15 s where this was written"


def test_who_looks_again_parses_only_what_is_new(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt(run, 100, seconds_ago=60)
    for part in range(5):
        write(run, "pretrain", "metrics", timed(time.time() - 50 + part, 10 * part))
    now = time.time()
    looker, parsed = status.Status(run.store.url, lambda: now), list[str]()

    def count(store: Store, name: str) -> Iterator[dict[str, Any]]:
        parsed.append(name)
        return segments.records(store, name)

    monkeypatch.setattr(status, "records", count)
    looker.read()
    assert len(parsed) == len(set(parsed)) == 6
    write(run, "pretrain", "metrics", timed(time.time(), 60))
    again = looker.read()
    assert len(parsed) == 7
    assert again == status.Status(run.store.url, lambda: now).read()


def test_ages_are_by_the_clock_that_was_given(run: RunDirectory) -> None:
    attempt(run, 100, seconds_ago=5)
    (now,) = [one for one in status.Status(run.store.url).read()["stages"] if one["name"] == "pretrain"]
    (later,) = [
        one
        for one in status.Status(run.store.url, lambda: time.time() + 3600).read()["stages"]
        if one["name"] == "pretrain"
    ]
    assert (now["state"], later["state"]) == ("running", "begun")
    assert re.search(r"wrote last 3,60\d s ago", later["reason"])


def test_goodput_is_shown_without_the_waits_for_slices_where_there_were_any(run: RunDirectory) -> None:
    assert "on slices" not in table(status.read(run.store.url), 120)
    attempt(run, 100, seconds_ago=100)
    write(run, "pretrain", "metrics", {**timed(time.time() - 60, 40, 40.0), "steps_timed": 40})
    record(run, "pretrain", 1, ExitRecord(code=75, at=time.time() - 60))
    wish = {"zone": "east", "dollars_per_hour": 6.0, "at": time.time() - 60}
    run.store.create("slices/slice-1/REQUEST.json", json.dumps(wish).encode())
    shown = pretrain(run)
    assert (shown["goodput"], shown["goodput_with_a_slice"]) == (
        pytest.approx(0.4, abs=0.02),
        pytest.approx(1.0, abs=0.05),
    )
    assert "on slices" in table(status.read(run.store.url), 120)


def on_a_slice(run: RunDirectory, hours: float, steps: int) -> None:
    """A slice of $6 an hour for so long, and an attempt that has worked on it all the time."""
    now = time.time()
    begin = now - hours * 3600
    for fact, values in {"REQUEST": {"zone": "east", "dollars_per_hour": 6.0}, "ready": {}}.items():
        run.store.create(f"slices/slice-1/{fact}.json", json.dumps({**values, "at": begin}).encode())
    claim = run.claim_number("pretrain", 1, digest(run), HELD_BY_NOBODY, "slice-1")
    early = claim.model_copy(update={"claimed": datetime.fromtimestamp(begin, UTC)})
    run.store.write("pretrain/attempts/1/claim.json", early.model_dump_json().encode())
    took = timed(now - 1, steps, hours * 3600)
    write(run, "pretrain", "metrics", {**took, "steps_timed": steps}, {"kind": "step", "step": steps - 1, "loss": 2.0})


def test_the_forecast_is_what_as_many_tokens_have_cost(run: RunDirectory) -> None:
    settings = read_settings(run)
    on_a_slice(run, 2.0, settings.pretrain_steps // 2)
    found = status.read(run.store.url)
    assert found["spent_dollars"] == pytest.approx(12.0, rel=0.01)
    tokens = {
        "pretrain": settings.pretrain_steps * settings.pretrain.batch_tokens,
        "sft": settings.sft.steps * settings.sft.batch_tokens,
        "preference": settings.preference.steps * settings.preference.batch_tokens,
    }
    by_tokens = 24.0 * sum(tokens.values()) / tokens["pretrain"]
    assert found["forecast_dollars"] == pytest.approx(by_tokens, rel=0.02)
    assert found["forecast_without"] == ["base-eval", "agent-eval"]
    assert [(one["name"], one["zone"], one["costs"]) for one in found["slices"]] == [("slice-1", "east", True)]
    shown = table(found, 160)
    assert f"$12.00 spent, about ${found['forecast_dollars']:.2f} by the end without base-eval and agent-eval" in shown
    samples = {one.name: one for f in text_string_to_metric_families(exposition(found)) for one in f.samples}
    assert samples["nanocode_run_forecast_dollars"].value == pytest.approx(found["forecast_dollars"])
    assert samples["nanocode_slice_dollars"].labels["slice"] == "slice-1"


def test_without_a_price_there_is_no_forecast_and_the_zone_is_named(run: RunDirectory) -> None:
    on_a_slice(run, 2.0, 700)
    run.store.write("slices/slice-1/REQUEST.json", json.dumps({"zone": "east", "at": time.time() - 7200}).encode())
    found = status.read(run.store.url)
    assert (found["forecast_dollars"], found["unpriced_zones"]) == (None, ["east"])
    assert "nobody has said what slices in east cost" in table(found, 160)
    assert "nanocode_run_forecast_dollars" not in exposition(found)


def test_what_went_between_regions_is_told_with_its_price_or_as_unpriced(run: RunDirectory) -> None:
    assert "between regions" not in table(status.read(run.store.url), 500)
    copied.count(run, 3 * 2**30, "pretrain", 1)
    found = status.read(run.store.url)
    assert (found["copied_bytes"], found["copied_dollars"], found["spent_dollars"]) == (3 * 2**30, None, 0.0)
    assert "nobody has said what 3.0 GB between regions cost (prices.egress_gb)" in table(found, 500)
    run.add_config(read_settings(run).to_yaml().replace("egress_gb: null", "egress_gb: 0.05"))
    found = status.read(run.store.url)
    assert found["spent_dollars"] == found["copied_dollars"] == pytest.approx(0.15)
    assert "$0.15 spent, $0.15 of it for 3.0 GB between regions" in table(found, 500)


def finish_all(run: RunDirectory) -> None:
    """Every stage done, with what agent-eval and report say of a good agent."""
    now, digests = datetime.now(UTC), stage_digests(read_settings(run), run)
    scores = {"fresh": {"pass@1": 0.96, "interval": [0.94, 0.99]}}
    models = {
        "pretrain": {"fresh": {"pass@1": 0.0, "interval": [0.0, 0.02]}},
        "preference": scores,
        "do nothing": scores,
    }
    said = {"agent-eval": {"metrics": {"models": models}}, "report": {"outputs": {"html": "report/x/report.html"}}}
    for name in order():
        more = said.get(name, {})
        made = Marker(stage=name, input_digest=digests[name], attempt=1, started=now, ended=now, **more)
        run.finish(name, made)
        digests = stage_digests(read_settings(run), run)


def test_a_finished_run_says_how_good_its_agent_is_where_the_report_is_and_how_to_talk_to_it(run: RunDirectory) -> None:
    assert status.read(run.store.url)["agent"] is None
    finish_all(run)
    found = status.read(run.store.url)
    assert found["agent"] == {"stage": "preference", "pass@1": 0.96, "interval": [0.94, 0.99]}
    assert found["report"] == f"{run.store.url}/report/x/report.html"
    shown = table(found, 200)
    assert "96% of unseen tasks (94% to 99%)" in shown
    assert f"report: {found['report']}" in shown and f"nanocode chat {run.store.url}" in shown
    run.store.delete("agent-eval/DONE.json")
    assert status.read(run.store.url)["agent"] is None


@pytest.mark.parametrize("wish", ["suspend", "cancel", "resume"])
def test_a_finished_run_has_nothing_to_stop(wish: str, run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    finish_all(run)
    assert main([wish, run.store.url]) == Exit.DONE
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(f"{run.store.url} is done: there is nothing to ")
    assert latest_intent(run).want == "run" and run.store.children("control") == ()


@pytest.mark.parametrize("last", ["done", "failed", "cancelled", "over budget"])
def test_a_watch_outlasts_a_look_without_an_answer_and_ends_where_the_run_rests(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], last: str
) -> None:
    monkeypatch.setattr(status_table, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal, where every picture is drawn
    found = status.read(run.store.url)
    looks = [
        *({**found, "state": "running"},) * 2,
        StorageError("cannot use gs://b: no route"),
        {**found, "state": last},
    ]
    left = iter(looks)

    def read() -> dict[str, Any]:
        look = next(left)
        if isinstance(look, StorageError):
            raise look
        return look

    status_table.watch(read)
    assert not list(left), "it ends with the last picture"
    assert "no answer, asked again in a moment: cannot use gs://b: no route" in capsys.readouterr().out
