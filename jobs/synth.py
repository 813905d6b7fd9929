"""Stage synth: rollouts by the built-in expert, with really executed tools, verified and held against the SOUL."""

import os
import sys
import time

from jobs.stage import Outcome, Task, run_stage
from nanocode.agent.soul import read_soul
from nanocode.run.exits import ConfigurationError
from nanocode.synth import rollouts


def work(task: Task) -> Outcome | None:
    settings, began = task.settings, time.monotonic()
    soul = read_soul(settings.soul)
    counts = rollouts.build(
        task.output,
        soul,
        settings.synth.scenarios,
        settings.seed,
        settings.synth.shard_scenarios,
        settings.synth.workers or os.cpu_count() or 1,
        task.worker,
        task.workers,
        lambda done, total: task.display.show("playing scenarios", done, total, "scenarios"),
    )
    if counts is None:
        return None
    if not counts.get("kept"):
        raise ConfigurationError(f"none of {settings.synth.scenarios} scenarios was kept ({counts}): look at `soul`")
    return Outcome(
        outputs={"rollouts": task.folder},
        metrics={"gates": dict(counts), "seconds": time.monotonic() - began, "soul": soul.text},
    )


if __name__ == "__main__":
    sys.exit(run_stage("synth", work))
