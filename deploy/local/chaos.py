"""Trouble on purpose, so that a user can see a run survive it: `nanocode run --chaos preempt-every=60s,seed=1`.

The controller runs as a child of this supervisor, which outlives it: attempts are preempted (SIGTERM, and SIGKILL after
the grace), or vanish (SIGKILL of their keeper); the controller is killed and started again. The times between are
exponential with the mean that was asked for, each kind of trouble with dice of its own: the same seed, the same times.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from types import FrameType

from deploy.local import processes
from deploy.local.loop import say
from deploy.local.told import NUMBERS, held_back
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import UsageError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Chaos:
    """What goes wrong, and how often; seconds."""

    preempt_every: float | None = None
    kill_every: float | None = None
    kill_controller_every: float | None = None
    slow_storage: float | None = None
    """Every operation of the jobs on the store takes up to so long."""
    seed: int = 0


def parse_chaos(text: str) -> Chaos:
    """`preempt-every=60s,seed=1` and so on; `UsageError` on anything else."""
    known = [field.name.replace("_", "-") for field in fields(Chaos)]
    found: dict[str, float | int] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in known or not equals:
            raise UsageError(f"--chaos {part.strip()!r} is nothing that can go wrong: choose from {', '.join(known)}")
        pattern = r"\d+" if key == "seed" else r"(\d+(?:\.\d+)?)([smh])"
        match = re.fullmatch(pattern, value)
        if match is None or (key != "seed" and float(match[1]) == 0):
            example = "a whole number" if key == "seed" else "a time such as 60s or 2m"
            raise UsageError(f"--chaos {key}={value!r}: give {example}")
        found[key.replace("-", "_")] = int(value) if key == "seed" else float(match[1]) * UNITS[match[2]]
    return Chaos(**found)  # type: ignore[arg-type]


class Supervisor:
    """Runs a controller to its end, and gets in its way."""

    def __init__(self, run: RunDirectory, chaos: Chaos, grace_seconds: float) -> None:
        self._url, self._chaos, self._grace = run.store.url, chaos, grace_seconds
        self._controller: subprocess.Popen[bytes] | None = None
        self._told = False
        self._grudges: dict[tuple[str, int], float] = {}
        """Attempts that were preempted, and when their grace is over."""

    def supervise(self) -> int:
        """The exit code of the last controller."""
        before = {number: signal.signal(number, self._pass_on) for number in NUMBERS}
        try:
            return self._supervise()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _supervise(self) -> int:
        troubles = self._troubles()
        due = {name: time.monotonic() + wait() for name, (wait, _) in troubles.items()}
        process = self._start()
        while True:
            now = time.monotonic()
            times = [*due.values(), *self._grudges.values()]
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(max(0.0, min(times) - now) if times and not self._told else None)
                if code != -signal.SIGKILL:
                    return code
                process = self._start()  # told to leave or not: what runs is a controller's to stop
                continue
            self._end_of_grace()
            for name, (wait, happen) in troubles.items():
                if due[name] <= time.monotonic() and not self._told:
                    happen()
                    due[name] = time.monotonic() + wait()

    def _troubles(self) -> dict[str, tuple[Callable[[], float], Callable[[], None]]]:
        every = {
            "preempt": (self._chaos.preempt_every, self._preempt),
            "kill": (self._chaos.kill_every, self._kill),
            "controller": (self._chaos.kill_controller_every, self._kill_controller),
        }
        return {name: (self._waits(name, mean), act) for name, (mean, act) in every.items() if mean is not None}

    def _waits(self, name: str, mean: float) -> Callable[[], float]:
        dice = random.Random(f"{name} {self._chaos.seed}")
        return lambda: dice.expovariate(1 / mean)

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "deploy.local.loop", "--run-dir", self._url]
        if self._chaos.slow_storage is not None:
            command += ["--environment", f"SLOW_STORAGE={self._chaos.slow_storage},{self._chaos.seed}"]
        with held_back():
            # In a group of its own: the terminal's Ctrl-C reaches it through us, and so once.
            self._controller = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
            if self._told:
                self._controller.send_signal(signal.SIGTERM)
            return self._controller

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._told = True
        if self._controller is not None:
            self._controller.send_signal(number)

    def _preempt(self) -> None:
        for (stage, attempt), pid in sorted(processes.keepers(self._url).items()):
            if (stage, attempt) not in self._grudges:
                say(f"chaos: attempt {attempt} of {stage} is preempted")
                _send(pid, signal.SIGTERM)
                self._grudges[stage, attempt] = time.monotonic() + self._grace
                return

    def _end_of_grace(self) -> None:
        over = [key for key, until in self._grudges.items() if until <= time.monotonic()]
        there = processes.keepers(self._url) if over else {}
        for key in over:
            del self._grudges[key]
            if key in there:
                say(f"chaos: the grace of attempt {key[1]} of {key[0]} is over")
                _send(there[key], signal.SIGKILL)

    def _kill(self) -> None:
        for (stage, attempt), pid in sorted(processes.keepers(self._url).items()):
            say(f"chaos: attempt {attempt} of {stage} vanishes")
            _send(pid, signal.SIGKILL)
            return

    def _kill_controller(self) -> None:
        assert self._controller is not None
        say("chaos: the controller is killed")
        self._controller.kill()


def supervise(run: RunDirectory, chaos: Chaos, grace_seconds: float) -> int:
    """Be the supervisor of this run until its controller has ended by itself; its exit code."""
    return Supervisor(run, chaos, grace_seconds).supervise()


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
