"""What every stage does around its work."""

import json
from pathlib import Path
from types import SimpleNamespace

from jobs.stage import other_seconds
from nanocode.run.directory import RunDirectory
from nanocode.storage.objects import LocalStore


class Counting(LocalStore):
    reads = 0

    def read(self, name: str) -> bytes:
        self.reads += 1
        return super().read(name)


def test_the_time_of_earlier_attempts_costs_a_few_reads_however_long_they_were(tmp_path: Path) -> None:
    run = RunDirectory(store := Counting(tmp_path))
    for digest in ("a", "b", "a", "a"):
        run.claim("pretrain", digest * 32, "host:1")
    for claim in run.attempts("pretrain"):
        for second in range(0, 1000, 10):
            record = {"time": claim.claimed.timestamp() + second, "kind": "step"}
            store.create(f"pretrain/attempts/{claim.attempt}/metrics/0-{second:06d}.jsonl", json.dumps(record).encode())
    store.reads = 0
    task = SimpleNamespace(run=run, stage="pretrain", digest="a" * 32, attempt=4)
    assert round(other_seconds(task)) == 2 * 990  # type: ignore[arg-type]
    assert store.reads == 4 + 2, "the claims, and the newest segment of each"
