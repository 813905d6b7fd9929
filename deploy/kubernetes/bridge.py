"""Mirrors the log of an attempt that runs on TPU VMs to stdout, so that `kubectl logs` shows it.

    python -m deploy.kubernetes.bridge --run-dir gs://BUCKET/RUN --stage pretrain --attempt 3

It only reads what the attempt's processes have published, and ends once it is written that the attempt has ended. Of
the attempt nothing depends on it: killed and begun again, it says everything once more.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from nanocode.run.segments import records
from nanocode.storage.objects import StorageError, Store, open_store

SECONDS_BETWEEN_LOOKS = 10.0


class Bridge:
    """One attempt's."""

    def __init__(self, store: Store, stage: str, attempt: int) -> None:
        self._store, self._folder = store, f"{stage}/attempts/{attempt}"
        self._shown: set[str] = set()

    def lines(self) -> Iterator[str]:
        """What was published since the last look: by time, those of several hosts with the host before them.

        All of it or, on `StorageError`, nothing: then the next look begins where this one did.
        """
        new = [name for name in self._store.children(f"{self._folder}/log") if name not in self._shown]
        hosts = {name.rpartition("-")[0] for name in (*self._shown, *new)}
        said = []
        for name in sorted(new):
            host = f"[{name.rpartition('-')[0]}] " if len(hosts) > 1 else ""
            for record in records(self._store, f"{self._folder}/log/{name}"):
                at = record.get("time")
                if record.get("stream") == "stderr" and isinstance(at, int | float):
                    said.append(
                        (at, f"{host}{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} {record.get('event', '')}")
                    )
        self._shown.update(new)
        yield from (line for _, line in sorted(said))

    def is_over(self) -> bool:
        return "END.json" in self._store.children(self._folder)


def follow(bridge: Bridge, say: Callable[[str], object], sleep: Callable[[float], object] = time.sleep) -> None:
    """Until the attempt has ended; a store that gives no answer is asked again."""
    while True:
        try:
            over = bridge.is_over()  # before the last look at the log, which is published before the end is
            for line in bridge.lines():
                say(line)
            if over:
                return
        except StorageError as error:
            print(f"nanocode: {error}", file=sys.stderr, flush=True)
        sleep(SECONDS_BETWEEN_LOOKS)


def main() -> int:
    parser = argparse.ArgumentParser("python -m deploy.kubernetes.bridge", description=__doc__.partition("\n")[0])
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--stage", required=True)
    parser.add_argument("--attempt", required=True, type=int)
    options = parser.parse_args()
    follow(Bridge(open_store(options.run_dir), options.stage, options.attempt), lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
