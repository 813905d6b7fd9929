"""A controller whose run directory gives it no answer while there is a file `down`.

As often as a file `mute` says, it cannot be noted that the user is told something.
"""

import sys
from pathlib import Path

from deploy.controller.backend import Unreachable
from deploy.controller.journal import Written
from deploy.controller.record import RunJournal
from deploy.local.loop import control
from nanocode.run.directory import RunDirectory
from nanocode.storage.objects import open_store

whole, whole_told = RunJournal.read, RunJournal.told


def read(self: RunJournal) -> Written:
    if Path("down").exists():
        raise Unreachable("the bucket gives no answer")
    return whole(self)


def told(self: RunJournal, key: str) -> bool:
    mute = Path("mute")
    if mute.exists() and (left := int(mute.read_text())):
        mute.write_text(str(left - 1))
        raise Unreachable("the bucket gives no answer")
    return whole_told(self, key)


RunJournal.read, RunJournal.told = read, told  # type: ignore[method-assign]
sys.exit(control(RunDirectory(open_store(sys.argv[1]))))
