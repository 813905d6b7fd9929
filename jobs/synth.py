"""Stage synth: rollouts by the built-in expert, from public sets, and by a teacher; verified, held against the SOUL."""

import os
import sys
import time

from pydantic import JsonValue

from jobs.stage import Outcome, Task, run_stage
from nanocode.agent.soul import Soul, read_soul
from nanocode.run.exits import ConfigurationError
from nanocode.storage.objects import Store
from nanocode.synth import public_shards, rollouts, teacher_shards
from nanocode.train.preemption import Preempted


def work(task: Task) -> Outcome | None:
    settings, synth, began = task.settings, task.settings.synth, time.monotonic()
    soul, show = read_soul(settings.soul), task.display.show
    expert = rollouts.make_shards(
        task.output,
        soul,
        synth.scenarios,
        settings.seed,
        synth.shard_scenarios,
        synth.workers or os.cpu_count() or 1,
        task.worker,
        task.workers,
        lambda done, total: show("playing scenarios", done, total, "scenarios"),
    )
    sets = public_shards.make(
        task.output,
        synth,
        soul,
        task.worker,
        task.workers,
        lambda done, total: show("reading public sets", done, total, "rows"),
    )
    paid = task.run.store.child(f"{task.stage}/{teacher_shards.paid_folder(synth, soul, settings.seed)}")
    taught = _teach(task, soul, paid)
    if task.worker != 0:
        return None
    wanted = [*expert, *(one.summary for one in sets), *taught]
    rollouts.wait_for(task.output, wanted, lambda have, of: show("waiting for other workers", have, of, "shards"))
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


def _teach(task: Task, soul: Soul, paid: Store) -> list[str]:
    def show(done: float, total: float, cost: teacher_shards.Cost) -> None:
        tokens = cost.prompt_tokens + cost.completion_tokens
        task.display.show("asking the teacher", done, total, "tasks", dollars=cost.dollars, tokens=tokens)

    with task.preemption.loop():
        taught = teacher_shards.make(
            task.output,
            paid,
            task.settings.synth,
            soul,
            task.settings.seed,
            task.worker,
            task.workers,
            show,
            lambda: task.preemption.reached(0),
        )
    if taught is None:
        raise Preempted("told to leave; what the teacher has settled is kept, the same command goes on from there")
    return taught


if __name__ == "__main__":
    sys.exit(run_stage("synth", work))
