"""What the controller did and why, as Events of the TrainingRun: `kubectl describe` shows them for an hour.

Core v1 Events under names made from what they say, so that saying it again, or after a restart, is a 409 and no flood.
"""

import hashlib
import time
from collections.abc import Callable, Iterator

import structlog

from deploy.controller.actions import Action, Begin, Close, Kill, Leave, Note, Release, Request, Tell
from deploy.controller.backend import Unreachable
from deploy.kubernetes.client import Cluster, Conflict, Invalid, Object
from deploy.kubernetes.trainingrun import timestamp
from nanocode.run.attempts import Ending

log = structlog.get_logger()

COMPONENT = "nanocode-controller"
LONGEST = 1000
"""The API takes 1024 characters."""
ENDINGS = {
    Ending.DONE: ("Done", "Normal"),
    Ending.PREEMPTED: ("Preempted", "Normal"),
    Ending.FAILED: ("AttemptFailed", "Warning"),
    Ending.CONFIGURATION: ("Configuration", "Warning"),
    Ending.STOPPED: ("Stopped", "Normal"),
}


class Events:
    """Publishes each thing once."""

    def __init__(self, cluster: Cluster, training_run: Object, clock: Callable[[], float] = time.time) -> None:
        metadata = training_run["metadata"]
        self._cluster, self._clock, self._said = cluster, clock, set[str]()
        self._about = {key: training_run[key] for key in ("apiVersion", "kind")} | {
            key: metadata[key] for key in ("name", "namespace", "uid")
        }

    def publish(self, reason: str, message: str, kind: str = "Normal") -> None:
        """`kind`: Normal or Warning. An event that cannot be made is none: nothing waits for it."""
        text = " ".join(message.split())[:LONGEST]
        digest = hashlib.sha256(f"{self._about['uid']} {reason} {text}".encode()).hexdigest()[:16]
        if digest in self._said:
            return
        now = timestamp(self._clock())
        event = {
            "metadata": {"name": f"{self._about['name']}.{digest}", "namespace": self._about["namespace"]},
            "involvedObject": self._about,
            "reason": reason,
            "message": text,
            "type": kind,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            self._cluster.create("events", event)
        except Conflict:
            pass
        except (Unreachable, Invalid) as error:
            log.warning("event not published", reason=reason, error=str(error))
            return
        self._said.add(digest)

    def publish_actions(self, actions: tuple[Action, ...]) -> None:
        """One for each decision."""
        for action in actions:
            for reason, message, kind in _worded(action):
                self.publish(reason, message, kind)


def _worded(action: Action) -> Iterator[tuple[str, str, str]]:
    match action:
        case Begin(stage, attempt, _, slice):
            yield "Begin", f"attempt {attempt} of {stage} begins{f' on {slice}' if slice else ''}", "Normal"
        case Leave(stage, attempt, why, hung):
            yield "Leave", f"attempt {attempt} of {stage} is told to leave: {why}", "Warning" if hung else "Normal"
        case Kill(stage, attempt):
            yield "Kill", f"attempt {attempt} of {stage} is ended by force", "Warning"
        case Close(stage, attempt, ending, why, _):
            reason, kind = ENDINGS[ending]
            yield reason, f"attempt {attempt} of {stage}: {why}", kind
        case Request(name, zone, _):
            yield "Request", f"{name} is asked for in {zone}", "Normal"
        case Release(name, why):
            yield "Release", f"{name} is given back: {why}", "Normal"
        case Note(name, fact):
            yield "Slice", f"{name} is {fact}", "Normal"
        case Tell(key, text) if not key.startswith("done"):
            yield "News", text, "Warning"
        case Tell(_, text):
            yield "Succeeded", text, "Normal"
