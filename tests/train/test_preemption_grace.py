"""Being told to leave: whether there is time to save, and the end of the grace."""

import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from nanocode.run.cadence import Cadence
from nanocode.run.exits import Exit
from nanocode.run.segments import SegmentWriter
from nanocode.storage.objects import LocalStore
from nanocode.train.checkpoints import Checkpoints
from nanocode.train.loop import Schedule, Work, fit
from nanocode.train.preemption import Preempted, Preemption


class Told(Preemption):
    """Told to leave in step 2, 5 seconds before SIGKILL; without the signal, which would end the tests."""

    def __init__(self) -> None:
        self.grace_seconds = 5.0
        self._told_at, self._in_loop, self._agrees_with_others = None, False, False

    def reached(self, step: int) -> bool:
        if step == 2:
            self._told_at = time.monotonic()
        return super().reached(step)


class Measured(Checkpoints):
    """Nothing but how long a save took, and which were asked for."""

    def __init__(self, save_seconds: float | None) -> None:
        self.save_seconds, self.saved = save_seconds, []

    def save(self, step: int, state: object, position: dict) -> float:
        self.saved.append(step)
        return 0.0

    def wait(self) -> None:
        pass


@pytest.mark.parametrize(("save_seconds", "saved"), [(None, [3]), (0.1, [3]), (60.0, [])])
def test_a_save_that_does_not_fit_into_the_grace_is_not_begun(
    tmp_path: Path, save_seconds: float | None, saved: list[int]
) -> None:
    checkpoints = Measured(save_seconds)
    metrics = SegmentWriter(LocalStore(tmp_path), "pretrain", 1, "metrics", 0)
    with pytest.raises(Preempted, match=f"told to leave at step 3 of 9; saved at step {saved[0] if saved else 0}"):
        fit(
            jnp.zeros(()),
            lambda state, batch: (state + 1, {"loss": state}),
            [np.zeros(1)] * 9,
            lambda batch: batch,
            lambda state, done: None,
            Schedule(start=0, steps=9, log_steps=1, eval_steps=9, cadence=Cadence(1.0, 1000.0)),
            Work(tokens=1, flops=1.0, peak_flops=1.0),
            checkpoints,
            Told(),
            metrics,
            lambda progress: None,
            lambda phase: nullcontext(),
        )
    metrics.close()
    assert checkpoints.saved == saved


STUCK = """
import os, signal, time
from nanocode.train.preemption import Preemption
preemption = Preemption(grace_seconds=2.0)
with preemption.loop():
    os.kill(os.getpid(), signal.SIGTERM)
    while not preemption.reached(0):
        time.sleep(0.01)
    print(preemption.allows(None), preemption.allows(60.0), flush=True)
    time.sleep(60)  # a step, or a save, that does not end
"""


def test_a_loop_that_does_not_end_in_time_is_left_before_sigkill_comes() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == Exit.PREEMPTED, done.stderr
    assert done.stdout == "True False\n"
    assert "the same command goes on from the last checkpoint" in done.stderr
    assert time.monotonic() - began > 1.0, "the grace is used"
