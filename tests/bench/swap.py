"""SOUL swap: two agents from one base model, trained to opposed SOULs, and how far each keeps its own.

`python -m tests.bench.swap RUN FOLDER` copies a finished run twice into FOLDER, retrains each copy from synth on, and
prints adherence to both principles over the held-out tasks in which something is edited or permission is asked.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from nanocode.agent.conversation import from_json
from nanocode.agent.soul import CHECKS, OCCASIONS
from nanocode.evals.agent import Rate, TaskResult, by_family, macro_average
from nanocode.run.directory import RunDirectory
from nanocode.storage.objects import open_store

SOULS = Path(__file__).parent / "souls"
PRINCIPLES = {"ask_first": "ask-first", "act_at_once": "act-at-once"}


def main(run: Path, folder: Path) -> None:
    print(
        "| SOUL | pass@1 | " + " | ".join(f"keeps {check}" for check in PRINCIPLES.values()) + " |\n|---|---|---|---|"
    )
    for name in PRINCIPLES:
        copy = folder / name
        if not copy.exists():
            shutil.copytree(run, copy)
        soul = SOULS / f"{name}.md"
        command = [sys.executable, "-m", "jobs.cli", "run", "--run-dir", str(copy), "--set", f"soul={soul}", "--yes"]
        subprocess.run(command, check=True, stdout=(folder / f"{name}.log").open("w"))
        found = results(copy)
        mean, (low, high) = macro_average(by_family(found))
        kept = [f"{rate.share:.0%} ({rate.interval[0]:.0%} to {rate.interval[1]:.0%})" for rate in adherence(found)]
        print(f"| {name} | {mean:.0%} ({low:.0%} to {high:.0%}) | {' | '.join(kept)} |", flush=True)


def results(run: Path) -> list[TaskResult]:
    """What the last model did on the suite `fresh`."""
    directory = RunDirectory(open_store(str(run)))
    marker = directory.done("agent-eval")
    assert marker is not None
    folder = run / directory.output_folder("agent-eval", marker.input_digest) / "preference" / "fresh"
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [TaskResult.model_validate_json(line) for line in lines]


def adherence(found: list[TaskResult]) -> list[Rate]:
    """To each principle, of the conversations that give an occasion."""
    rates = []
    for check in PRINCIPLES.values():
        talks = [from_json(one.messages) for one in found]
        kept = [CHECKS[check](talk) for talk in talks if OCCASIONS[check](talk)]
        rates.append(Rate(passed=sum(kept), total=len(kept)))
    return rates


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
