"""Which attempt `nanocode status` shows, and what it says of one that may be alive."""

import re
import socket
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs import local, status
from nanocode.config.settings import load
from nanocode.run.digests import stage_digests
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.exits import Exit
from nanocode.run.segments import SegmentWriter
from nanocode.storage.objects import open_store

HELD_BY_NOBODY = "elsewhere:1"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(open_store(tmp_path / "run"))
    run.add_config(local.pinned(load("demo", environment={}), run).to_yaml())
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
    return stage_digests(status.read_settings(run), run)["pretrain"]


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
    assert "1 of 2" in status.table(status.read(run.store.url))


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
