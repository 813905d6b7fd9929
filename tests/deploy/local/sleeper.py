"""A controller that falls asleep (SIGSTOP) in its first round: before it starts what it has claimed, or before it looks.

`start`: between claiming its first attempt and starting it; `observe`: between reading what is written and looking at
the processes that are there.
"""

import os
import signal
import sys
from typing import Any

from deploy.local.backend import LocalBackend
from deploy.local.loop import control
from nanocode.run.directory import RunDirectory
from nanocode.storage.objects import open_store

url, where = sys.argv[1:]
whole = getattr(LocalBackend, where)


def late(*arguments: Any) -> Any:
    setattr(LocalBackend, where, whole)
    os.kill(os.getpid(), signal.SIGSTOP)
    return whole(*arguments)


setattr(LocalBackend, where, late)
sys.exit(control(RunDirectory(open_store(url))))
