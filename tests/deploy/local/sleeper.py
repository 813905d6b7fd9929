"""A controller that falls asleep (SIGSTOP) between claiming its first attempt and starting it."""

import os
import signal
import sys

from deploy.local.backend import LocalBackend
from deploy.local.loop import control
from nanocode.run.directory import RunDirectory
from nanocode.storage.objects import open_store

start = LocalBackend.start


def late(self: LocalBackend, stage: str, attempt: int, slice: str | None) -> None:
    if attempt == 1 and stage == "tokenizer":
        os.kill(os.getpid(), signal.SIGSTOP)
    start(self, stage, attempt, slice)


LocalBackend.start = late  # type: ignore[method-assign]
sys.exit(control(RunDirectory(open_store(sys.argv[1]))))
