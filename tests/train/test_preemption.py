"""Who waits for a step that does not end, and for how long."""

import signal
import subprocess
import sys
import time

import pytest

from nanocode.run.exits import Exit

STUCK = """
import sys, time
from nanocode.train.preemption import Preemption
with Preemption(grace_seconds=float(sys.argv[1])).loop():
    print("stepping", flush=True)
    time.sleep(60)
"""


def stuck(grace_seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(grace_seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "stepping\n"
    return process


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_at_once(first: int) -> None:
    process = stuck(grace_seconds=40)
    process.send_signal(first)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # the same key, passed on by `nanocode run`
    time.sleep(0.9)
    assert process.poll() is None, "the first one lets the step end"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=5)
    assert process.returncode == Exit.PREEMPTED
    assert len(errors.splitlines()) == 1


def test_a_step_that_does_not_end_within_the_grace_is_left() -> None:
    process = stuck(grace_seconds=1.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == Exit.PREEMPTED
