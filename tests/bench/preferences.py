"""Is the preference stage worth its time? From one base model, and for each seed: SFT, then either of two for equal time.

`python -m tests.bench.preferences RUN [--seeds 3]`: preference optimisation against continued SFT, on the run's rollouts.
`python -m tests.bench.preferences RUN --sloppy`: one seed, after SFT on rollouts of which most end with an offer of more
work, which the SOUL forbids. There the preference stage has something to do; this shows whether its mechanism works.

RUN is a copy of a finished run of the demo: the trials add attempts and folders to it, and leave its markers. A second
bench needs a fresh copy, or the times of what is done already are missing. No run is measured on the tasks of this one.
"""

import argparse
import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from jobs import fine_tuning, preferring
from nanocode.agent.conversation import to_json
from nanocode.agent.soul import Soul, read_soul
from nanocode.config.settings import Settings
from nanocode.evals.agent import Rate, TaskResult, by_family, macro_average
from nanocode.run.directory import Marker
from nanocode.synth.rollouts import INDEX, attempt, write_index
from nanocode.tasks.families import training_scenario
from tests.bench.trial import Bench

INSTANCES = 50
SLOPPY_FLAW = "no-soliciting"
SLOPPY_SHARE = 0.8
"""Far above half: what the greedy agent does is what most rollouts do. Half, spread over all flaws, left it without any."""
PAIRED_SHARE = 0.1
"""Of the sloppy rollouts' scenarios: those whose clean and flawed attempt make a pair of synthesis."""
SLOPPY_SCENARIOS = 4000
SLOPPY_STEPS = 1200


def main(run: Path, seeds: int, sloppy: bool) -> None:
    bench = Bench(run)
    soul = read_soul(bench.settings.soul)
    check = SLOPPY_FLAW if sloppy else None
    if check is not None and not soul.has(check):
        raise SystemExit(f"the run's SOUL has no principle with the check {check}: choose a run that has")
    found: dict[str, list[tuple[list[TaskResult], dict[str, float]]]] = {}
    for seed in range(1, 2 if sloppy else seeds + 1):
        settings = bench.settings.model_copy(update={"seed": seed})
        synth = bench.markers["synth"]
        if sloppy:
            settings = with_steps(settings, SLOPPY_STEPS)
            synth = sloppy_marker(bench, soul, settings)
        for name, marker in models(bench, settings, synth, "sloppy" if sloppy else "natural").items():
            results = bench.results(marker, "fresh", INSTANCES, soul)
            bits: Any = marker.metrics["bits_per_byte"]
            found.setdefault(name, []).append((results, bits))
            print(f"seed {seed}, {name}: {described([found[name][-1]], None, check)}", flush=True)
    print(f"\n| model | pass@1 | keeps {check or 'the SOUL'} | bits per byte against SFT |\n|---|---|---|---|")
    for name, runs in found.items():
        print(f"| {name} | {described(runs, found['SFT'], check)} |")


def models(bench: Bench, settings: Settings, synth: Marker, label: str) -> dict[str, Marker]:
    """SFT, and what each of the two ways to spend the same time makes of it."""
    task = partial(bench.task, synth=synth)
    sft, seconds = bench.stage(fine_tuning.train, task("sft", label, settings))
    preferred, spent = bench.stage(preferring.train, task("preference", label, settings, sft=sft))
    # The base it begins from is the fine-tuned model; what compiling and packing take is not training in either.
    times: Any = sft.metrics["seconds"]
    per_step = times["step"] / settings.sft.steps
    more = max(1, round((spent - times["compile"]) / per_step))
    print(f"SFT {seconds:.0f} s, preference {spent:.0f} s, which are {more} more steps of SFT", flush=True)
    longer = with_steps(settings, more, warmup_share=0.0, decay_share=1.0)
    continued, _ = bench.stage(fine_tuning.train, task("sft", f"{label} continued", longer, pretrain=sft))
    return {"SFT": sft, "SFT + preference": preferred, "SFT + more SFT": continued}


def with_steps(settings: Settings, steps: int, **changes: Any) -> Settings:
    return settings.model_copy(update={"sft": settings.sft.model_copy(update={"steps": steps, **changes})})


def sloppy_marker(bench: Bench, soul: Soul, settings: Settings) -> Marker:
    """Rollouts of which most break the SOUL, in the layout of stage synth."""
    task = bench.task("synth", "sloppy", settings)
    if not task.output.exists(INDEX):
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in sloppy_lines(soul))
        task.output.write("shards/00000.jsonl", lines.encode())
        write_index(task.output, {"expert": ["shards/00000.jsonl"]})
    return bench.markers["synth"].model_copy(update={"outputs": {"rollouts": task.folder}})


def sloppy_lines(soul: Soul) -> Iterator[dict[str, Any]]:
    """A rollout of every scenario, flawed or not by a coin; a pair of some."""
    for number in range(SLOPPY_SCENARIOS):
        one = training_scenario("sloppy", number)
        dice = random.Random(one.task.id)
        good = attempt(one, soul)
        flawed = attempt(one, soul, SLOPPY_FLAW) if dice.random() < SLOPPY_SHARE else good
        about = {"id": one.task.id, "family": one.task.family}
        if good.fault or (flawed.fault and not flawed.fault.startswith("breaks SOUL")):
            continue
        yield {"kind": "rollout", **about, "messages": to_json(flawed.messages)}
        if flawed.fault and dice.random() < PAIRED_SHARE:
            yield {"kind": "pair", **about, "chosen": to_json(good.messages), "rejected": to_json(flawed.messages)}


Runs = list[tuple[list[TaskResult], dict[str, float]]]


def described(runs: Runs, before: Runs | None, check: str | None) -> str:
    """pass@1, adherence (to one check, or to all) and drift over all seeds together."""
    every = [one for results, _ in runs for one in results]
    mean, (low, high) = macro_average(by_family(every))
    kept = [kept for one in every for name, kept in one.kept.items() if check in (None, name)]
    adherence = Rate(passed=sum(kept), total=len(kept))
    text = f"{mean:.1%} ({low:.1%} to {high:.1%}) | {adherence.share:.2%} ({adherence.interval[0]:.2%} to {adherence.interval[1]:.2%})"
    if before is None:
        return text
    drifts = [sum(bits.values()) / sum(b.values()) - 1 for (_, bits), (_, b) in zip(runs, before, strict=True)]
    return f"{text} | {min(drifts):+.1%} to {max(drifts):+.1%}" if len(drifts) > 1 else f"{text} | {drifts[0]:+.2%}"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench.preferences", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sloppy", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    options = read_arguments()
    main(options.run, options.seeds, options.sloppy)
