"""A run of real processes whose stages do nothing much: `jobs.<stage>` is found in the world's folder first."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from nanocode.config.settings import load
from nanocode.run.attempts import End, ExitRecord, recorded
from nanocode.run.digests import stage_digests
from nanocode.run.directory import RunDirectory
from nanocode.run.intent import change_intent
from nanocode.run.segments import read_segments
from nanocode.storage.objects import open_store

ROOT = Path(__file__).parents[3]
STAGES = ("tokenizer", "corpus")
QUICK = (
    "controller.seconds_between_looks=0.5",
    "controller.retry_seconds=0.05",
    "controller.termination_seconds=2",
    "pretrain.grace_seconds=20",
)
SHADOW = "from pkgutil import extend_path\n\n__path__ = extend_path(__path__, __name__)\n"
STAGE = 'import sys\n\nfrom jobs.stage import run_stage\nfrom tests.deploy.local.play import work\n\nsys.exit(run_stage("{}", work))\n'


class World:
    def __init__(self, folder: Path, *settings: str, location: str | None = None, **plays: str) -> None:
        self.folder = folder
        (folder / "jobs").mkdir(parents=True)
        (folder / "plays").mkdir()
        (folder / "jobs/__init__.py").write_text(SHADOW)
        for stage in STAGES:
            (folder / f"jobs/{stage}.py").write_text(STAGE.format(stage))
            (folder / f"plays/{stage}").write_text(plays.get(stage, "done"))
        (folder / "text.md").write_text("a text")
        self.run = RunDirectory(open_store(location or folder / "run"))
        self.settings = load("demo", [*QUICK, f"corpus.sources={folder}/text.md", *settings], environment={})
        self.run.add_config(self.settings.to_yaml())
        change_intent(self.run, stages=STAGES)
        self._begun: list[subprocess.Popen[str]] = []

    @property
    def digests(self) -> dict[str, str]:
        return stage_digests(self.settings, self.run)

    def start(self, *command: str, **more: str) -> subprocess.Popen[str]:
        """A process in this world; what it prints is kept for `communicate`."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._begun.append(process)
        return process

    def controller(self) -> subprocess.Popen[str]:
        return self.start("deploy.local.loop", "--run-dir", self.run.store.url)

    def keeper(self, stage: str = "tokenizer", attempt: int = 1) -> subprocess.Popen[str]:
        return self.start(
            "deploy.local.keeper", "--run-dir", self.run.store.url, "--stage", stage, "--attempt", str(attempt)
        )

    def in_pod(
        self,
        stage: str = "tokenizer",
        worker: int = 0,
        of: int = 1,
        termination_log: Path | None = None,
        subreaper: bool = False,
    ) -> subprocess.Popen[str]:
        """A keeper as a pod's template begins it; `subreaper`: orphans become its children, as in a pod."""
        options = ["--run-dir", self.run.store.url, "--stage", stage, "--attempt", "1"]
        options += ["--worker", str(worker), "--of", str(of)]
        options += ["--termination-log", str(termination_log)] if termination_log is not None else []
        return self.start("tests.deploy.local.subreaper" if subreaper else "deploy.local.keeper", *options)

    def claimed(self, stage: str = "tokenizer", attempt: int = 1, who: str = "nobody") -> None:
        self.run.claim_number(stage, attempt, self.digests[stage], who)

    def pid(self, attempt: int = 1, stage: str = "tokenizer", name: str | None = None) -> int:
        """Of the process that plays this attempt, once it plays."""
        note = self.folder / "played" / (name or f"{stage}-{attempt}")
        until(note.exists, f"{note.name} plays")
        return int(note.read_text())

    def keeper_pid(self, attempt: int = 1, stage: str = "tokenizer") -> int:
        name = f"{stage}/attempts/{attempt}/keeper.json"
        until(lambda: self.run.store.exists(name), name)
        return int(json.loads(self.run.store.read(name))["pid"])

    def end(self, attempt: int = 1, stage: str = "tokenizer") -> End | None:
        return recorded(self.run, stage, attempt, End)

    def exit(self, attempt: int = 1, stage: str = "tokenizer") -> ExitRecord | None:
        return recorded(self.run, stage, attempt, ExitRecord)

    def said(self, attempt: int = 1, stage: str = "tokenizer") -> str:
        """What an attempt wrote to stderr, as its log has it."""
        records = read_segments(self.run.store, stage, "log", attempt, host="keeper")
        return "\n".join(str(record["event"]) for record in records)

    def close(self) -> None:
        """End whatever this world has begun."""
        for process in psutil.process_iter(["cmdline"]):
            if self.run.store.url in (process.info["cmdline"] or []):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        for begun in self._begun:
            begun.kill()
            begun.communicate()


def until(claim: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether no process of this number does anything any more."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
