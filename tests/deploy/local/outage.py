"""A controller whose run directory gives it no answer while there is a file `down`."""

import sys
from pathlib import Path

from deploy.controller.backend import Unreachable
from deploy.controller.journal import Written
from deploy.controller.record import RunJournal
from deploy.local.loop import control
from nanocode.run.directory import RunDirectory
from nanocode.storage.objects import open_store

whole = RunJournal.read


def read(self: RunJournal) -> Written:
    if Path("down").exists():
        raise Unreachable("the bucket gives no answer")
    return whole(self)


RunJournal.read = read  # type: ignore[method-assign]
sys.exit(control(RunDirectory(open_store(sys.argv[1]))))
