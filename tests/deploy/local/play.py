"""What a stage does in these tests: a word for each attempt in `plays/<stage>`, the last one for all that follow."""

import ctypes
import os
import time
from pathlib import Path

from jobs.stage import Outcome, Task
from nanocode.run.exits import ConfigurationError
from nanocode.train.preemption import Preempted

FOREVER = 3600


def _note(name: str) -> None:
    Path("played").mkdir(exist_ok=True)
    Path("played", name + ".new").write_text(str(os.getpid()))
    Path("played", name + ".new").rename(Path("played", name))


def work(task: Task) -> Outcome:
    words = Path("plays", task.stage).read_text().split()
    _note(f"{task.stage}-{task.attempt}")
    match words[min(task.attempt, len(words)) - 1]:
        case "done":
            task.output.write("made", b"")
        case "fail":
            raise RuntimeError("it broke")
        case "misconfigured":
            raise ConfigurationError("the setting x is wrong: correct it")
        case "exit-0":
            os._exit(0)
        case "wait" | "show" | "narrate" as word:  # works until it is told to leave, and saves then
            if word == "show":
                task.display.show("waiting", 5, 10, "steps")
            with task.preemption.loop():
                while True:
                    left = task.preemption.reached(0)
                    if word == "narrate":
                        task.display.show("waiting", 5, 10, "steps")
                        task.display.note("still here", 5)
                        print("from a library that prints")
                    if left:
                        raise Preempted("told to leave; saved")
                    time.sleep(0.02)
        case "slow-to-save":
            with task.preemption.loop():
                time.sleep(FOREVER)
        case "deaf":  # stuck in C with Python's lock in its hand: no other thread can run
            mutex = ctypes.create_string_buffer(64)
            for _ in range(2):
                ctypes.PyDLL(None).pthread_mutex_lock(mutex)
        case "orphans":  # a child of a child that has ended, which ends as well
            if (child := os.fork()) == 0:
                if os.fork() == 0:
                    _note("orphan")
                    time.sleep(0.5)
                os._exit(0)
            os.waitpid(child, 0)
            with task.preemption.loop():
                while not task.preemption.reached(0):
                    time.sleep(0.02)
                raise Preempted("told to leave; saved")
        case "crowd":  # it has a child of its own
            if os.fork() == 0:
                _note("child")
                time.sleep(FOREVER)
            time.sleep(FOREVER)
    return Outcome({"made": f"{task.folder}/made"})
