"""Stages on slices of another region than the run: killed in either region, they end as if they had been at home."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nanocode.run import copied, near
from nanocode.run.digests import stage_digests
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import Exit
from nanocode.run.segments import read_segments
from nanocode.run.settling import read_settings
from nanocode.storage.objects import LocalStore, Store, open_store
from tests.gcs import AWAY
from tests.jobs.runs import job, steps_of, together

Process = subprocess.Popen[str]
STEPS = 100
pytestmark = pytest.mark.slow


class Far:
    """A run in one bucket, whose slices are near another."""

    def __init__(self, url: str, like: Path) -> None:
        self.url = url
        self.run = RunDirectory(open_store(url))
        for name in LocalStore(like).list():
            self.run.store.upload(like / name, name)
        place = near.address({"europe-west4": f"gs://{AWAY}"}, "europe-west4", url)
        assert place is not None
        self.away: Store = open_store(place)
        wish = {"zone": "europe-west4-a", "dollars_per_hour": 1.0, "at": time.time(), "near": place}
        self.run.store.create("slices/slice-1/REQUEST.json", json.dumps(wish).encode())

    def begin(self, stage: str, slice: str | None) -> Process:
        """The next attempt, claimed for a slice as the controller does."""
        attempt = max((one.attempt for one in self.run.attempts(stage)), default=0) + 1
        digest = stage_digests(read_settings(self.run), self.run)[stage]
        self.run.claim_number(stage, attempt, digest, "a controller", slice)
        module, place = stage.replace("-", "_"), self.url
        return job(module, place, "--attempt", str(attempt))

    def checkpoints(self, attempt: int) -> list[int]:
        """Steps that an attempt has saved."""
        names = self.run.store.children(f"pretrain/attempts/{attempt}/checkpoints")
        return sorted(int(name.removesuffix(".json")) for name in names if name.endswith(".json"))

    def counted(self, stage: str, attempt: int) -> int:
        """Bytes that an attempt has copied, by the run."""
        names = self.run.store.children(copied.FOLDER)
        return copied.total(name for name in names if name.split("-", 2)[2].startswith(f"{stage}.{attempt}-"))

    def weights(self, stage: str, folder: Path) -> dict:
        """Of the finished stage, from home alone."""
        marker = self.run.done(stage)
        assert marker is not None
        name = marker.outputs["checkpoint"]
        for file in self.run.store.list(name + "/"):
            self.run.store.download(file, folder / file)
        return restored(folder / name)


def restored(folder: Path) -> dict:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return jax.device_get(checkpointer.restore(folder))


def until(claim: Callable[[], object], process: Process, what: str) -> None:
    deadline = time.monotonic() + 90
    while not claim():
        assert process.poll() is None, (what, process.communicate())
        assert time.monotonic() < deadline, f"not within 90 s: {what}"
        time.sleep(0.02)


def kill(process: Process) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def finish(process: Process) -> str:
    out, errors = process.communicate(timeout=180)
    assert process.returncode == Exit.DONE, errors
    return str(out)


def size(store: Store, name: str) -> int:
    return sum(int(size) for size, _ in store.checksums(name + "/").values())


def test_killed_abroad_and_at_home_it_ends_with_the_same_bits(run: Path, gcs_url: str, tmp_path: Path) -> None:
    config = max((run / "config").iterdir()).read_text()
    config = config.replace("steps: 3000", f"steps: {STEPS}").replace("eval_steps: 1000", f"eval_steps: {STEPS}")
    (run / "config/2.yaml").write_text(config.replace("log_steps: 10", "log_steps: 1"))
    far = Far(gcs_url, run)
    finish(job("pretrain", run))
    corpus = far.run.done("corpus").outputs["corpus"]  # type: ignore[union-attr]

    first = far.begin("pretrain", "slice-1")
    until(lambda: len(far.checkpoints(1)) > 1, first, "it has saved abroad")
    kill(first)
    assert far.away.checksums(corpus + "/") == far.run.store.checksums(corpus + "/")
    assert far.counted("pretrain", 1) == size(far.away, corpus)
    saved = far.checkpoints(1)[-1]
    name = f"pretrain/attempts/1/checkpoints/{saved}"
    assert far.away.list(name + "/") and not far.run.store.list(name + "/")

    second = far.begin("pretrain", None)
    until(lambda: far.checkpoints(2), second, "it has saved at home")
    kill(second)
    assert far.counted("pretrain", 2) == size(far.away, name), "what it resumed from was brought home"
    newest = f"pretrain/attempts/2/checkpoints/{far.checkpoints(2)[-1]}"
    resumed = size(far.run.store, newest)

    out = finish(far.begin("pretrain", "slice-1"))
    assert f'"checkpoint": "{newest}"' in out, "it has resumed from home"
    last = far.run.done("pretrain").outputs["checkpoint"]  # type: ignore[union-attr]
    marker = json.loads(far.run.store.read(last + ".json"))
    assert "at" not in marker and set(marker["files"]) == {
        file.removeprefix(last + "/") for file in far.run.store.list(last + "/")
    }
    assert far.counted("pretrain", 3) == resumed + size(far.away, last), "and nothing of the corpus again"
    whole = restored(run / RunDirectory(LocalStore(run)).done("pretrain").outputs["checkpoint"])  # type: ignore[union-attr]
    jax.tree.map(np.testing.assert_array_equal, far.weights("pretrain", tmp_path / "brought"), whole)
    records = read_segments(far.run.store, "pretrain", "metrics")
    losses = {one["step"]: one["loss"] for one in records if one["kind"] == "step"}
    assert losses == {step: one["loss"] for step, one in steps_of(run).items()} and len(losses) == STEPS


def test_two_hosts_abroad_copy_once_and_end_together(run: Path, tmp_path: Path, free_port: int) -> None:
    config = max((run / "config").iterdir()).read_text()
    config = config.replace("steps: 3000", "steps: 20").replace("eval_steps: 1000", "eval_steps: 20")
    home = RunDirectory(LocalStore(run))
    home.add_config(config.replace("checkpoint_minutes: 0.003", "checkpoint_minutes: 9"))
    away = LocalStore(tmp_path / "away")
    wish = {"zone": "europe-west4-a", "dollars_per_hour": 1.0, "at": time.time(), "near": away.url}
    home.store.create("slices/slice-1/REQUEST.json", json.dumps(wish).encode())
    home.claim_number("pretrain", 1, stage_digests(read_settings(home), home)["pretrain"], "a controller", "slice-1")
    hosts = together("pretrain", run, free_port, "--attempt", "1")
    for host in hosts:
        finish(host)
    done, corpus = home.done("pretrain"), home.done("corpus")
    assert done is not None and corpus is not None
    saved, text = done.outputs["checkpoint"], corpus.outputs["corpus"]
    assert home.store.checksums(saved + "/") == away.checksums(saved + "/") != {}
    assert away.checksums(text + "/") == home.store.checksums(text + "/")
    assert copied.total(home.store.children(copied.FOLDER)) == size(away, text) + size(away, saved)


def test_later_stages_on_a_slice_abroad_make_what_they_make_at_home(agent: Path, gcs_url: str, tmp_path: Path) -> None:
    run = Path(shutil.copytree(agent, tmp_path / "run"))
    stages = ("base-eval", "sft", "preference")
    for stage in (*stages, "agent-eval", "report"):
        shutil.rmtree(run / stage)
    far = Far(gcs_url, run)
    for stage in stages:
        finish(far.begin(stage, "slice-1"))
    home = RunDirectory(LocalStore(agent))
    for stage in ("sft", "preference"):
        marker = home.done(stage)
        assert marker is not None
        there = far.weights(stage, tmp_path / "brought")
        jax.tree.map(np.testing.assert_array_equal, there, restored(agent / marker.outputs["checkpoint"]))
    assert far.run.done("base-eval").metrics == home.done("base-eval").metrics  # type: ignore[union-attr]
    done = {stage: far.run.done(stage) for stage in ("corpus", "pretrain", "sft", "preference", "synth")}
    outputs = {stage: next(iter(one.outputs.values())) for stage, one in done.items() if one is not None}
    text = {name: int(sums[0]) for name, sums in far.run.store.checksums(outputs["corpus"] + "/").items()}
    part = sum(size for name, size in text.items() if os.path.basename(name).startswith(("index.json", "valid-")))
    base = size(far.run.store, outputs["pretrain"])
    assert far.counted("base-eval", 1) == part + base and part < sum(text.values())
    assert far.counted("sft", 1) == size(far.run.store, outputs["synth"]) + size(far.run.store, outputs["sft"])
    assert far.counted("preference", 1) == size(far.run.store, outputs["preference"])
