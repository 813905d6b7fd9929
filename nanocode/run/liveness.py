"""Which attempt of a stage seems alive: a guess from what it has published, because no attempt holds a lock."""

import os
import socket

from nanocode.run.directory import Claim, RunDirectory
from nanocode.run.segments import last_record_time

ALIVE_SECONDS = 30.0
"""An attempt publishes every 10 s what it has to say: silent for three times as long, it ended or waits for a step."""


def last_sign(run: RunDirectory, claim: Claim) -> float:
    """When the attempt was claimed or last published a record, in Unix seconds."""
    return max(claim.claimed.timestamp(), last_record_time(run.store, claim.stage, claim.attempt) or 0.0)


def seems_alive(claim: Claim, sign: float, now: float, seconds: float = ALIVE_SECONDS) -> bool:
    """Whether its last sign is not older than that, and its process is not known to be gone."""
    return now - sign < seconds and not _is_gone(claim.who)


def _is_gone(who: str) -> bool:
    """Only of a `host:pid` on this host can that be known."""
    host, _, pid = who.rpartition(":")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False  # somebody else's process, or no number of one
    return False
