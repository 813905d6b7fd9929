"""The logs of pods as they come: a `kubectl logs` for each, and another that goes on where one has ended too early."""

import queue
import re
import subprocess
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

MOST_LINES_AHEAD = 1000
"""Read and not shown yet; who reads more waits."""
TRIES = 3
"""At the log of a pod that has ended."""
TIMED = re.compile(r"\d{4}-\d\d-\d\dT\S+ ")
"""The kubelet puts the time in front of a line, to the nanosecond; what it says itself has none."""


class PodLogs:
    """Shows the lines of each pod once, in their order. Many threads read, who calls `show` writes."""

    def __init__(self, kubectl: tuple[str, ...]) -> None:
        self._kubectl = kubectl
        self._lines = queue.Queue[str](MOST_LINES_AHEAD)
        self._readers = dict[str, tuple[threading.Thread, subprocess.Popen[str]]]()
        self._last = dict[str, str]()
        """Pod -> the time of its last line."""
        self._tries = Counter[str]()
        """Pod that has ended -> how often its log was asked for; `TRIES` where it was had."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, process in self._readers.values():
            process.terminate()

    def follow(self, pod: str, ended: bool) -> None:
        """See to it that the pod's log is read; one that has ended is read to its end."""
        if self._tries[pod] >= TRIES or self._is_read(pod):
            return
        self._tries[pod] += ended
        last = self._last.get(pod, "")
        since = (f"--since-time={last}",) if last else ()
        argv = (*self._kubectl, "logs", pod, "--follow", "--timestamps", *since)
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace")
        thread = threading.Thread(target=self._read, args=(pod, process, last, ended), daemon=True)
        self._readers[pod] = thread, process
        thread.start()

    def show(self, seconds: float) -> None:
        """Print what comes for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                print(self._lines.get(timeout=left), end="", flush=True)
            except queue.Empty:
                return

    @property
    def at_work(self) -> bool:
        """Whether any is being read, or something was read and not shown."""
        return any(map(self._is_read, self._readers)) or not self._lines.empty()

    def _is_read(self, pod: str) -> bool:
        return pod in self._readers and self._readers[pod][0].is_alive()

    def _read(self, pod: str, process: subprocess.Popen[str], last: str, ended: bool) -> None:
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                at, text = line.split(" ", 1) if TIMED.match(line) else ("", line)
                # The API asks from a second on, and some of it was shown; a torn line comes whole the next time.
                if (at and at <= last) or not line.endswith("\n"):
                    continue
                if at:
                    self._last[pod] = at
                self._lines.put(f"[{pod}] {text}")
        if ended and process.returncode == 0:
            self._tries[pod] = TRIES
