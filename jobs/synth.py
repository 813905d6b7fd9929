"""Stage synth: rollouts by the built-in expert, from public sets, and by a teacher; verified, held against the SOUL."""

import os
import sys
import time

from pydantic import JsonValue

from jobs.stage import Outcome, Task, run_stage
from nanocode.agent.soul import Soul, read_soul
from nanocode.run.exits import ConfigurationError
from nanocode.run.leases import Leases
from nanocode.storage.objects import Store
from nanocode.synth import public_shards, rollouts, teacher_shards
from nanocode.train.preemption import Preempted

SECONDS_BETWEEN_LOOKS = 2.0


def work(task: Task) -> Outcome | None:
    settings, synth, began = task.settings, task.settings.synth, time.monotonic()
    soul = read_soul(settings.soul, settings.soul_text)
    paid = task.run.store.child(f"{task.stage}/{teacher_shards.paid_folder(synth, soul, settings.seed)}")
    expert = list(rollouts.shards(synth.scenarios, synth.shard_scenarios))
    sets = public_shards.quotas(synth)
    taught = list(teacher_shards.shards(synth.teacher_scenarios))
    wanted = [expert, [one.summary for one in sets], taught]
    with task.leases() as leases:
        shares = {name: number % leases.of for names in wanted for number, name in enumerate(names)}

        def missing() -> set[int]:
            there = {name for folder in ("shards", "public", "teacher") for name in task.output.list(f"{folder}/")}
            return {share for name, share in shares.items() if name not in there}

        def wait() -> None:
            task.display.show("waiting for other workers", leases.of - len(missing()), leases.of, "workers")
            time.sleep(SECONDS_BETWEEN_LOOKS)

        if not leases.work_off(lambda share: _make(task, soul, paid, leases, share), missing, wait):
            return None
    summaries = public_shards.summaries(task.output, sets)
    shards = {"expert": expert, "public": [name for one in summaries for name in one["shards"]], "teacher": taught}
    gates = rollouts.write_index(task.output, shards)
    if not gates["expert"].get("kept"):
        raise ConfigurationError(f"none of {synth.scenarios} scenarios was kept ({gates['expert']}): look at `soul`")
    metrics: dict[str, JsonValue] = {
        "gates": {origin: dict(counts) for origin, counts in gates.items()},
        "public": [{key: value for key, value in one.items() if key != "shards"} for one in summaries],
        "seconds": time.monotonic() - began,
        "soul": soul.text,
    }
    if synth.teacher is not None:
        metrics["teacher"] = {"model": synth.teacher.model, **teacher_shards.Paid(paid).total().as_metrics()}
    return Outcome(outputs={"rollouts": task.folder}, metrics=metrics)


def _make(task: Task, soul: Soul, paid: Store, leases: Leases, share: int) -> None:
    """A share of each of the three origins."""
    settings, synth, show = task.settings, task.settings.synth, task.display.show
    rollouts.make_shards(
        task.output,
        soul,
        synth.scenarios,
        settings.seed,
        synth.shard_scenarios,
        synth.workers or os.cpu_count() or 1,
        share,
        leases.of,
        lambda done, total: show("playing scenarios", done, total, "scenarios"),
    )
    public_shards.make(
        task.output, synth, soul, share, leases.of, lambda done, total: show("reading public sets", done, total, "rows")
    )

    def show_cost(done: float, total: float, cost: teacher_shards.Cost) -> None:
        tokens = cost.prompt_tokens + cost.completion_tokens
        show("asking the teacher", done, total, "tasks", dollars=cost.dollars, tokens=tokens)

    def leaving() -> bool:
        # What somebody else may have taken over is not asked, and paid for, here as well.
        return task.preemption.reached(0) or not leases.holds(share)

    with task.preemption.loop():
        finished = teacher_shards.make(
            task.output, paid, synth, soul, settings.seed, share, leases.of, show_cost, leaving
        )
        if not finished and task.preemption.reached(0):
            raise Preempted("told to leave; what the teacher has settled is kept, the same command goes on from there")


if __name__ == "__main__":
    sys.exit(run_stage("synth", work))
