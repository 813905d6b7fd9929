"""A container's place in its pod: pulled, started, ended, started again."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.access import Json
from tests.cluster.containers import Container, NotStarted, Plan, remove, run
from tests.cluster.environment import Unresolved
from tests.cluster.images import Image, Images

FIRST_WAIT, LONGEST_WAIT = 10.0, 300.0
"""Crash loops and image pulls wait 10 s, 20 s, 40 s ... at most 5 minutes (kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle,
"container restarts"; .../docs/concepts/containers/images, "ImagePullBackOff")."""
FORGIVEN_SECONDS = 600.0
"""A container that ran this long starts its waits anew (the same page)."""
MESSAGE_BYTES = 4096

Note = Callable[[str, str, str], None]
"""(type, reason, message) of an event about the pod."""


@dataclass
class Slot:
    """`restart(code)` says whether an ended container starts again."""

    spec: Json
    folder: Path
    images: Images
    restart: Callable[[int], bool]
    note: Note
    container: Container | None = None
    image: Image | None = None
    runs: int = 0
    waiting: tuple[str, str] = ("ContainerCreating", "")
    ended: Json | None = None
    """The `terminated` state of a container that will not start again."""
    last: Json | None = None
    """The `terminated` state of the run before this one."""
    ready: bool = False
    _next: float = 0.0
    _wait: float = 0.0
    _pull_wait: float = FIRST_WAIT
    _logs: list[Path] = field(default_factory=list)

    @property
    def running(self) -> bool:
        return self.container is not None and self.ended is None

    def log(self, previous: bool = False) -> Path | None:
        """The log of the newest run, or of the one before."""
        index = -2 if previous else -1
        return self._logs[index] if len(self._logs) >= -index else None

    def advance(self, plan: Callable[[Image, Path], Plan]) -> None:
        """Starts what is due and notices what has ended."""
        if self.ended is not None:
            return
        if self.container is not None:
            code = self.container.exit_code()
            if code is None:
                return
            self._end(code)
        if self.ended is None and time.time() >= self._next:
            self._start(plan)

    def stop(self, number: int) -> None:
        if self.container is not None and self.ended is None:
            self.container.signal(number)

    def reap(self) -> None:
        """Waits for a container that was killed, and forgets what it wrote."""
        if self.container is not None:
            self.container.runtime.wait()
            remove(self.folder / f"{self.runs - 1}.layer")

    def close(self, code: int = 137) -> None:
        """The pod ends: no further start, and a container that never ran is one that was ended."""
        if self.container is not None and self.container.exit_code() is not None:
            self._end(self.container.exit_code() or 0, for_good=True)
        elif self.container is None and self.ended is None:
            # What the kubelet reports for a container it cannot say more of.
            self.ended = self.last or _terminated(code, "ContainerStatusUnknown", "", 0, time.time())

    def _start(self, plan: Callable[[Image, Path], Plan]) -> None:
        name = self.spec["image"]
        image = self.image or self._pull(name)
        if image is None:
            return
        self.image = image
        number = self.runs
        log, message = self.folder / f"{number}.log", self.folder / f"{number}.message"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o711)
        layer = self.folder / f"{number}.layer"
        try:
            self.container = run(plan(image, message), layer, log)
        except Unresolved as problem:
            self._hold("CreateContainerConfigError", str(problem), 2.0)
            return
        except NotStarted as problem:
            self.runs += 1
            self._logs.append(log)
            self.note("Warning", "Failed", f"Error: failed to start container: {problem}")
            self._settle(_terminated(128, "StartError", str(problem), 0, time.time()), 128)
            return
        self.runs += 1
        self._logs.append(log)
        self.note("Normal", "Started", f"Container started: {self.spec['name']}")

    def _pull(self, name: str) -> Image | None:
        """An image that is not there is what a registry answers about a name that nobody pushed."""
        found = self.images.find(name)
        if found is not None:
            self.note("Normal", "Pulled", f'Container image "{name}" already present on machine')
            return found
        if self.waiting[0] == "ErrImagePull":
            self._hold(
                "ImagePullBackOff", f'Back-off pulling image "{name}": ErrImagePull: {self.waiting[1]}', self._pull_wait
            )
            self._pull_wait = min(2 * self._pull_wait, LONGEST_WAIT)
        elif self.spec.get("imagePullPolicy") == "Never":
            self._hold("ErrImageNeverPull", f'Container image "{name}" is not present with pull policy of Never', 2.0)
        else:
            # Shown for a moment before the back-off, as by a real kubelet.
            self._hold("ErrImagePull", f'failed to pull and unpack image "{name}": {name}: not found', 1.0)
        return None

    def _hold(self, reason: str, message: str, seconds: float) -> None:
        if self.waiting != (reason, message):
            self.note("Warning", "BackOff" if reason == "ImagePullBackOff" else "Failed", message)
        self.waiting = (reason, message)
        self._next = time.time() + seconds

    def _end(self, code: int, for_good: bool = False) -> None:
        container = self.container
        assert container is not None and container.finished is not None
        began, finished = container.started, container.finished
        message = self._message(code)
        state = _terminated(code, "Completed" if code == 0 else "Error", message, began, finished)
        if finished - began > FORGIVEN_SECONDS:
            self._wait = 0.0
        self._settle(state, code, for_good)

    def _settle(self, state: Json, code: int, for_good: bool = False) -> None:
        remove(self.folder / f"{self.runs - 1}.layer")
        self.container, self.ready = None, False
        if for_good or not self.restart(code):
            self.ended = state
            return
        self.last = state
        # The first restart is at once, each further one waits longer.
        self._next = time.time() + self._wait
        self.waiting = ("CrashLoopBackOff", f"back-off {self._wait:g}s restarting failed container={self.spec['name']}")
        if self._wait:
            self.note("Warning", "BackOff", f"Back-off restarting failed container {self.spec['name']}")
        self._wait = min(2 * self._wait or FIRST_WAIT, LONGEST_WAIT)

    def _message(self, code: int) -> str:
        """kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure"""
        text = (self.folder / f"{self.runs - 1}.message").read_bytes()
        if not text and code and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            text = b"\n".join(self._logs[-1].read_bytes()[-2048:].split(b"\n")[-80:])
        return text[:MESSAGE_BYTES].decode(errors="replace")


def _terminated(code: int, reason: str, message: str, began: float, finished: float) -> Json:
    state: Json = {"exitCode": code, "reason": reason, "finishedAt": timestamp(finished), "startedAt": timestamp(began)}
    return state | ({"message": message} if message else {})


def timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
