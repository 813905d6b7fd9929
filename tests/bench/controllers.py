"""How many runs one machine could control: `python -m tests.bench.controllers`.

200 runs in a bucket (a GCS emulator on loopback, through the real client), each in the middle of pretraining with some
attempts behind it, observed and decided by 8 threads; then 10,000 rounds of one run on disk, and what they add to the
memory of the process.
"""

import statistics
import tempfile
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from deploy.controller.observed import Process, Seen, Slice
from deploy.controller.reconcile import Reconciler
from deploy.controller.record import RunJournal
from jobs.stage import peak_memory_bytes
from nanocode.config.settings import load
from nanocode.run.attempts import End, Ending
from nanocode.run.digests import stage_digests
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.segments import SegmentWriter
from nanocode.storage.objects import LocalStore, Store, open_store
from tests.gcs import BUCKET, server

RUNS, THREADS, ROUNDS, LOOKS = 200, 8, 5, 10_000
ATTEMPTS, SEGMENTS = 6, 20


class Running:
    """A backend where everything runs."""

    def observe(self, live: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Seen]:
        return {key: Seen(Process.RUNNING) for key in live}

    def start(self, stage: str, attempt: int, slice: str | None) -> None: ...
    def stop(self, stage: str, attempt: int) -> None: ...
    def kill(self, stage: str, attempt: int) -> None: ...
    def forget(self, stage: str, attempt: int) -> None: ...


class Pool:
    """A provisioner with one machine."""

    def observe(self) -> dict[str, Slice]:
        return {"pool": Slice("pool", "here", usable=True, permanent=True)}

    def request(self, name: str, zone: str) -> None: ...
    def release(self, name: str) -> None: ...


def in_the_middle(store: Store) -> Reconciler:
    """A controller of a run that pretrains at its sixth attempt."""
    run, settings = RunDirectory(store), load("demo", environment={})
    run.add_config(settings.to_yaml())
    digests = stage_digests(settings, run)
    for stage in ("tokenizer", "corpus"):
        at = datetime.now(UTC)
        run.finish(stage, Marker(stage=stage, input_digest=digests[stage], attempt=1, started=at, ended=at))
    journal = RunJournal(run)
    for number in range(1, ATTEMPTS + 1):
        journal.claim("pretrain", number, digests["pretrain"], "pool")
        with SegmentWriter(store, "pretrain", number, "metrics", 0) as writer:
            for step in range(SEGMENTS):
                writer.write({"kind": "step", "step": step, "loss": 1.0})
                writer.flush()
        store.create(f"pretrain/attempts/{number}/checkpoints/{10 * number}.json", b"{}")
        if number < ATTEMPTS:
            end = End(ending=Ending.PREEMPTED, reason="", at=time.time(), progress=10 * number)
            journal.end("pretrain", number, end)
    return Reconciler(RunJournal(run), Running(), Pool(), lambda tell: None)


def main() -> None:
    server()
    with ThreadPoolExecutor(THREADS) as pool:
        stores = [open_store(f"gs://{BUCKET}/{uuid.uuid4().hex}") for _ in range(RUNS)]
        controllers = list(pool.map(in_the_middle, stores))
        rounds = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            list(pool.map(lambda one: one.once(), controllers))
            rounds.append(time.perf_counter() - began)
    print(f"{RUNS} runs, first round {rounds[0]:.1f} s, then {statistics.median(rounds[1:]):.1f} s a round")
    with tempfile.TemporaryDirectory() as folder:
        controller = in_the_middle(LocalStore(Path(folder)))
        for _ in range(200):
            controller.once()
        before, began = peak_memory_bytes(), time.perf_counter()
        for _ in range(LOOKS):
            controller.once()
        each = (time.perf_counter() - began) / LOOKS
        print(
            f"{LOOKS} looks at one run, {each * 1e3:.2f} ms each, added {(peak_memory_bytes() - before) / 1e6:.1f} MB"
        )


if __name__ == "__main__":
    main()
