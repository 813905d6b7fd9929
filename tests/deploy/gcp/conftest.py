"""Programs that stand in for gcloud, kubectl and helm: they write down what they are asked, and answer as told."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
STAND_IN = f"""#!{sys.executable}
import json, pathlib, sys, time
here = pathlib.Path(__file__).parent
asked = [pathlib.Path(__file__).name, *sys.argv[1:]]
stdin = "" if sys.stdin.isatty() else sys.stdin.read()
with (here / "asked.jsonl").open("a") as file:
    file.write(json.dumps({{"argv": asked, "stdin": stdin}}) + "\\n")
for words, out, err, code, held in json.loads((here / "answers.json").read_text()):
    if all(word in asked for word in words):
        print(out, end="" if out.endswith("\\n") or held == "torn" else "\\n", flush=True)
        print(err, file=sys.stderr)
        while (here / "held").exists() and held == "held":
            time.sleep(0.02)
        sys.exit(code)
"""
ENV = {
    "PROJECT": "my-project",
    "REGION": "us-east5",
    "ZONES": "us-east5-b,us-east5-a",
    "BUCKET": "gs://my-bucket",
    "IMAGE_TAG": "abc",
}
CONTEXT = "gke_my-project_us-east5-b_nanocode"
DIGEST = "sha256:" + "a" * 64


class Cloud:
    """What the programs were asked, and what they answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = dict(ENV)
        self._answers: list[list[Any]] = []
        self.programs = folder / "bin"
        self.programs.mkdir()
        (self.programs / "answers.json").write_text("[]")
        for name in ("gcloud", "kubectl", "helm"):
            (self.programs / name).write_text(STAND_IN)
            (self.programs / name).chmod(0o755)

    def answer(self, *words: str, out: Any = "", err: str = "", code: int = 0, held: str = "") -> None:
        """To commands with all of these words; the latest answer that fits counts.

        `held`: "held" for one that goes on until `release`, "torn" for one that ends in the middle of a line.
        """
        self._answers.insert(0, [words, out if isinstance(out, str) else json.dumps(out), err, code, held])
        aside = self.programs / "answers.aside"
        aside.write_text(json.dumps(self._answers))
        aside.rename(self.programs / "answers.json")

    def hold(self) -> None:
        (self.programs / "held").touch()

    def release(self) -> None:
        (self.programs / "held").unlink()

    def healthy(self) -> None:
        """A cluster with a pool that grows, a bucket in the region, and both images."""
        self.answer("get-contexts", out=CONTEXT)
        self.answer("buckets", "describe", out={"location": "US-EAST5"})
        self.answer("images", "describe", out={"image_summary": {"digest": DIGEST}})
        pool = {"name": "slices", "autoscaling": {"enabled": True}}
        self.answer("node-pools", "list", out=[pool | {"config": {"machineType": "ct6e-standard-8t", "spot": True}}])

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        text = "".join(f"{key}={value}\n" for key, value in self.env.items())
        (self.folder / "deploy.env").write_text(text)
        command = [sys.executable, "-m", "deploy.gcp", "--env", str(self.folder / "deploy.env"), *arguments]
        environment = {"PATH": str(self.programs), "PYTHONPATH": str(ROOT), "HOME": str(self.folder)}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        )

    def asked(self) -> list[list[str]]:
        return [one["argv"] for one in self._records()]

    def forget(self) -> None:
        (self.programs / "asked.jsonl").unlink()

    def stdin(self, *words: str) -> str:
        """What the only command with these words was given to read."""
        (one,) = [one for one in self._records() if set(words) <= set(one["argv"])]
        return str(one["stdin"])

    def _records(self) -> list[dict[str, Any]]:
        file = self.programs / "asked.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)
