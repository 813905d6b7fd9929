"""Tiny runs of real processes on real text: what the tests of the jobs share."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from nanocode.run.directory import RunDirectory
from nanocode.run.segments import read_segments
from nanocode.storage.objects import open_store

STEPS = 3000
TINY = (
    "model.layers=2",
    "model.width=32",
    "model.context=64",
    "model.vocab_size=320",
    "tokenizer.megabytes=0.1",
    "tokenizer.rollouts=20",
    "corpus.tokens=60000",
    "corpus.validation_share=0.2",
    "corpus.workers=1",
    "pretrain.batch_tokens=256",
    f"pretrain.steps={STEPS}",
    "pretrain.eval_steps=1000",
    "pretrain.eval_rows=4",
    "pretrain.checkpoint_minutes=0.003",
)
BASE = "tokenizer,corpus,pretrain,base-eval,report"
"""The stages of a base model: what most tests of the jobs need."""
AGENT = (
    "model.layers=1",
    "model.context=384",
    "model.vocab_size=400",
    "tokenizer.rollouts=100",
    "pretrain.batch_tokens=1536",
    "pretrain.steps=20",
    "pretrain.copy_share=0.2",
    "synth.scenarios=120",
    "synth.shard_scenarios=20",
    "synth.workers=1",
    "sft.batch_tokens=1536",
    "sft.steps=40",
    "sft.eval_steps=20",
    "sft.eval_rows=4",
    "sft.checkpoint_minutes=0.002",
    "preference.batch_tokens=1536",
    "preference.steps=20",
    "preference.tasks=44",
    "preference.samples=2",
    "preference.eval_steps=10",
    "preference.eval_rows=4",
    "preference.checkpoint_minutes=0.002",
    "agent_eval.instances=1",
)
"""On top of `TINY`: a run through every stage, whose model has room for conversations and no time to learn any."""
MODULES = (
    "argparse",
    "ast",
    "bisect",
    "calendar",
    "cmd",
    "code",
    "copy",
    "csv",
    "glob",
    "heapq",
    "inspect",
    "json/decoder",
)


def environment() -> dict[str, str]:
    """Of a child: one CPU device, and whatever servers the tests have started."""
    return {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


def write_sources(folder: Path) -> Path:
    """A folder of Python modules and a text or two."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    folder.mkdir(parents=True)
    for name in MODULES:
        shutil.copy(stdlib / f"{name}.py", folder / f"{name.replace('/', '_')}.py")
    for name in ("argparse", "inspect", "csv", "ast"):
        (folder / f"{name}.md").write_text(f"# {name}\n\n" + (stdlib / f"{name}.py").read_text()[:4000])
    return folder


def begin(run: Path, sources: Path, *settings: str) -> list[str]:
    """Arguments of `nanocode run` for a tiny run."""
    several = (*TINY, f"corpus.sources={sources}", *settings)
    return ["run", "--run-dir", str(run), *[part for one in several for part in ("--set", one)]]


def nanocode(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command line as a user types it."""
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment() | more, check=False, timeout=900)


def job(stage: str, run: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """A stage as the cluster starts it."""
    command = [sys.executable, "-m", f"jobs.{stage}", "--run-dir", str(run), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment() | more
    )


def together(stage: str, run: Path, port: int, *arguments: str, hosts: int = 2) -> list[subprocess.Popen[str]]:
    """The same on several hosts, which find each other at this port."""
    shared = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(hosts)}
    return [job(stage, run, *arguments, **shared, JAX_PROCESS_ID=str(number)) for number in range(hosts)]


def directory(run: Path) -> RunDirectory:
    return RunDirectory(open_store(run))


def steps_of(run: Path) -> dict[int, dict[str, float]]:
    """The metrics of every step; what a later attempt did again replaces what an earlier one did."""
    records = read_segments(directory(run).store, "pretrain", "metrics")
    return {one["step"]: one for one in records if one["kind"] == "step"}
