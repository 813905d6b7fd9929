"""How many runs one machine could control: `python -m tests.bench.controllers`.

200 runs through the real Google Cloud Storage client and an emulator on loopback, each in the middle of pretraining
with some attempts behind it, observed and decided by 8 threads; then 10,000 looks at one run on disk that goes on
meanwhile, and what they add to the memory of the process. Seconds of the wall are those of whatever else the machine
does, so seconds of CPU stand beside them.

Each run has a bucket of its own, as a user's would: for every listing the emulator goes through all objects of the
bucket, 0.3 ms of CPU at the 135 of one run and 2 to 3.5 ms at the 13,500 of a hundred, which the real service does not.
"""

import json
import os
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import psutil

from deploy.controller.decision import State
from deploy.controller.observed import Process, Seen, Slice
from deploy.controller.reconcile import Reconciler
from deploy.controller.record import RunJournal
from jobs.process import peak_memory_bytes
from nanocode.config.settings import load
from nanocode.run.attempts import End, Ending
from nanocode.run.digests import stage_digests
from nanocode.run.directory import Marker, RunDirectory
from nanocode.storage.gcs import GcsStore, open_bucket
from nanocode.storage.objects import LocalStore, Store
from tests.gcs import server

RUNS, THREADS, ROUNDS, LOOKS = 200, 8, 5, 10_000
ATTEMPTS, SEGMENTS = 6, 20
LOOK_SECONDS, LOOKS_PER_SEGMENT = 5.0, 2
LOOKS_PER_ATTEMPT = 250  # a preemption every 21 minutes


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


class Run:
    """A run that pretrains, and its controller; its clock is moved by hand."""

    def __init__(self, store: Store) -> None:
        self.now, self.attempt, self.segments = time.time(), 0, 0
        self._store, run, settings = store, RunDirectory(store), load("demo", environment={})
        run.add_config(settings.to_yaml())
        digests = stage_digests(settings, run)
        for stage in ("tokenizer", "corpus"):
            at = datetime.fromtimestamp(self.now, UTC)
            run.finish(stage, Marker(stage=stage, input_digest=digests[stage], attempt=1, started=at, ended=at))
        self._digest, self._journal = digests["pretrain"], RunJournal(run)
        self.controller = Reconciler(RunJournal(run), Running(), Pool(), lambda tell: None, lambda: self.now)

    def begin(self) -> None:
        """A new attempt."""
        self.attempt, self.segments = self.attempt + 1, 0
        self._journal.claim("pretrain", self.attempt, self._digest, "pool")

    def train(self) -> None:
        """One more segment of metrics."""
        record = {"time": self.now, "kind": "step", "step": self.segments, "loss": 1.0}
        name = f"pretrain/attempts/{self.attempt}/metrics/0-{self.segments:06d}.jsonl"
        self._store.create(name, json.dumps(record).encode() + b"\n")
        self.segments += 1

    def save(self) -> int:
        """A checkpoint, further on than the last attempt's."""
        self._store.create(f"pretrain/attempts/{self.attempt}/checkpoints/{10 * self.attempt}.json", b"{}")
        return 10 * self.attempt

    def preempt(self) -> None:
        """The attempt saves, and ends."""
        end = End(ending=Ending.PREEMPTED, reason="", at=self.now, progress=self.save())
        self._journal.end("pretrain", self.attempt, end)


def in_the_middle(store: Store) -> Run:
    """A run at its sixth attempt."""
    run = Run(store)
    for number in range(1, ATTEMPTS + 1):
        run.begin()
        for _ in range(SEGMENTS):
            run.train()
        if number < ATTEMPTS:
            run.preempt()
    run.save()
    return run


def in_a_bucket(requests: Counter[str]) -> Store:
    """An empty bucket; what it is asked from now on is counted by method."""
    bucket = open_bucket(uuid.uuid4().hex)
    bucket.create(project="nanocode")
    bucket.client._http.hooks["response"].append(lambda reply, **_: requests.update([reply.request.method]))
    return GcsStore(f"gs://{bucket.name}/run", bucket)


def look(run: Run) -> None:
    run.now += LOOK_SECONDS
    decision = run.controller.once()
    assert decision.stages["pretrain"].state is State.RUNNING, decision


def many() -> None:
    """Rounds over all runs."""
    server()
    (emulator,) = psutil.Process().children()
    requests: Counter[str] = Counter()
    with ThreadPoolExecutor(THREADS) as pool:
        runs = list(pool.map(lambda _: in_the_middle(in_a_bucket(requests)), range(RUNS)))
        for number in range(1, ROUNDS + 1):
            requests.clear()
            began, ours, theirs = time.perf_counter(), time.process_time(), sum(emulator.cpu_times()[:2])
            list(pool.map(look, runs))
            took, ours = time.perf_counter() - began, time.process_time() - ours
            theirs = sum(emulator.cpu_times()[:2]) - theirs
            asked = ", ".join(f"{count / RUNS:.1f} {method}" for method, count in requests.items())
            print(f"round {number} of {RUNS} runs: {took:.1f} s, CPU {ours:.1f} s and the emulator's {theirs:.1f} s; "
                  f"requests a run: {asked}; load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip


def one() -> None:
    """Looks at one run that publishes and is preempted as a real one would be."""
    with tempfile.TemporaryDirectory() as folder:
        run, before, took = Run(LocalStore(Path(folder))), 0, 0.0
        for number in range(LOOKS):
            if number % LOOKS_PER_ATTEMPT == 0:
                if number:
                    run.preempt()
                run.begin()
            if number % LOOKS_PER_SEGMENT == 0:
                run.train()
            if number == LOOKS // 10:
                before = peak_memory_bytes()
            began = time.process_time()
            look(run)
            took += time.process_time() - began
        added = (peak_memory_bytes() - before) / 1e6
        print(f"{LOOKS} looks at one run: {took / LOOKS * 1e3:.2f} ms of CPU each; "
              f"the last nine tenths of them added {added:.1f} MB to {before / 1e6:.0f} MB")  # fmt: skip


if __name__ == "__main__":
    one()
    many()
