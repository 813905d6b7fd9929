"""Runs as users have them: the chart installed by helm, and what they look at afterwards."""

import json
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from nanocode.run.directory import Marker, RunDirectory
from nanocode.storage.objects import open_store
from tests import gcs
from tests.cluster.access import UNREACHABLE, Json, Refused
from tests.cluster.cluster import Cluster
from tests.cluster.processes import wait_until

T = TypeVar("T")

CHART = Path(__file__).parents[2] / "charts" / "nanocode"
RUN, STAGE, ATTEMPT = "nanocode.dev/run", "nanocode.dev/stage", "nanocode.dev/attempt"
RUNS = "/apis/nanocode.dev/v1alpha1/namespaces"
SETTINGS: Mapping[str, Any] = {
    "model": {"layers": 1, "width": 32, "vocab_size": 400},
    "tokenizer": {"megabytes": 0.1, "rollouts": 30},
    "corpus": {"tokens": 60_000, "validation_share": 0.2},
    "pretrain": {"batch_tokens": 1536, "steps": 600, "eval_steps": 300, "eval_rows": 4, "checkpoint_minutes": 0.02},
    "synth": {"scenarios": 120, "shard_scenarios": 20},
    "sft": {"batch_tokens": 1536, "steps": 400, "eval_steps": 200, "eval_rows": 4, "checkpoint_minutes": 0.02},
    "preference": {
        "batch_tokens": 1536, "steps": 20, "tasks": 44, "samples": 2, "eval_steps": 10, "eval_rows": 4,
        "checkpoint_minutes": 0.02,
    },
    "agent_eval": {"instances": 1},
    "controller": {"seconds_between_looks": 1, "retry_seconds": 0.1},
}  # fmt: skip
"""The demo preset cut to half a minute of computing."""


def laptop_values(address: str) -> Json:
    """Of a run on simulated v6e nodes whose jax computes on CPUs, over the bucket emulated at this address."""
    return {
        "accelerator": "tpu",
        "spot": True,
        "bucket": f"gs://{gcs.BUCKET}",
        "image": {
            "repository": "localhost/nanocode/cpu",
            "controllerRepository": "localhost/nanocode/controller",
            "tag": "test",
        },
        "dollarsPerSliceHour": {"pool": 4.32},
        "extraEnv": {"JAX_PLATFORMS": "cpu", "STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address},
        "settings": dict(SETTINGS),
    }


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> Json:
    """`other` over `one`, as helm merges values."""
    result = dict(one)
    for key, value in other.items():
        there = result.get(key)
        result[key] = merged(there, value) if isinstance(there, Mapping) and isinstance(value, Mapping) else value
    return result


@dataclass
class Release:
    """One release of the chart: `install`, then look."""

    cluster: Cluster
    namespace: str
    name: str
    values: Json = field(default_factory=dict)
    told: str = ""
    """What `kubectl get -w` has said, once `watched` is over."""

    @property
    def location(self) -> str:
        return f"{self.values['bucket']}/{self.values.get('runPath') or self.name}"

    @cached_property
    def directory(self) -> RunDirectory:
        return RunDirectory(open_store(self.location))

    # -- what a user types --------------------------------------------------------------------------------------------

    def install(self, **values: Any) -> str:
        return self._with_values("install", values)

    def upgrade(self, **values: Any) -> str:
        return self._with_values("upgrade", values)

    def uninstall(self) -> str:
        """What helm says, and what its hook says through it."""
        return self.cluster.command("helm", "uninstall", self.name, "-n", self.namespace, stderr=True)

    def kubectl(self, *words: str) -> str:
        return self.cluster.kubectl("-n", self.namespace, *words)

    def patch(self, **spec: Any) -> None:
        self.kubectl("patch", "trainingrun", self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def _with_values(self, verb: str, values: Json) -> str:
        self.values = merged(self.values, values)
        return self.cluster.command("helm", verb, self.name, str(CHART), *self.set_words())

    def set_words(self) -> list[str]:
        """Namespace and values, for helm."""
        given = [f"--set-json={key}={json.dumps(value)}" for key, value in self.values.items()]
        return ["-n", self.namespace, "-f", str(CHART / "values-demo.yaml"), *given]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keeps what a user sees who watches."""
        command = [str(self.cluster.binaries / "kubectl"), "-n", self.namespace, "get", "trainingruns", "-w"]
        with tempfile.TemporaryFile("w+") as seen:
            watching = subprocess.Popen(command, stdout=seen, env=self.cluster.environment())
            try:
                yield
            finally:
                watching.terminate()
                watching.wait()
                seen.seek(0)
                self.told = seen.read()

    # -- what there is ------------------------------------------------------------------------------------------------

    def training_run(self) -> Json:
        """It, or nothing where there is none."""
        try:
            return self.cluster.api.get(f"{RUNS}/{self.namespace}/trainingruns/{self.name}")
        except Refused as problem:
            if problem.code == 404:
                return {}
            raise

    def status(self) -> Json:
        found: Json = self.training_run().get("status") or {}
        return found

    def wait_for(self, phase: str, seconds: float = 600) -> Json:
        """Its status, once it is in this phase."""

        def there() -> Json | None:
            status = self.status()
            return status if status.get("phase") == phase else None

        if phase != "Failed":
            return self.wait_until(phase, there, seconds)
        return wait_until(f"{self.name} has failed", there, seconds, every=0.5)

    def objects(self, kind: str) -> list[Json]:
        """Jobs, pods, services or events that belong to the run."""
        group = "/apis/batch/v1" if kind == "jobs" else "/api/v1"
        query = {} if kind == "events" else {"labelSelector": f"{RUN}={self.name},{STAGE}"}
        items: list[Json] = self.cluster.api.get(f"{group}/namespaces/{self.namespace}/{kind}", **query)["items"]
        if kind == "events":
            return [one for one in items if one["involvedObject"]["name"] == self.name]
        return items

    def pods(self, stage: str) -> list[Json]:
        return [one for one in self.objects("pods") if one["metadata"]["labels"][STAGE] == stage]

    def controller_pods(self) -> list[Json]:
        labels = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component=controller"
        items: list[Json] = self.cluster.api.get(f"/api/v1/namespaces/{self.namespace}/pods", labelSelector=labels)[
            "items"
        ]
        return items

    def metrics(self) -> str:
        """What Prometheus would get from the controller."""
        (pod,) = self.controller_pods()
        with urllib.request.urlopen(f"http://{pod['status']['podIP']}:9090/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    # -- moments ------------------------------------------------------------------------------------------------------

    def wait_until(self, what: str, happened: Callable[[], T | None], seconds: float = 300) -> T:
        """The same, but over at once when the run fails; an API server that is away has nothing to say."""

        def there() -> T | None:
            with suppress(Refused, *UNREACHABLE):
                status = self.status()
                assert status.get("phase") != "Failed", status.get("message")
                return happened()
            return None

        return wait_until(f"{self.name}: {what}", there, seconds, every=0.2)

    def wait_for_checkpoint(self, stage: str, attempt: int = 1) -> None:
        """Until this attempt has saved something."""
        folder = f"{stage}/attempts/{attempt}/checkpoints"
        children = self.directory.store.children
        self.wait_until(f"a checkpoint of {stage}", lambda: any(name.endswith(".json") for name in children(folder)))

    def wait_for_pod(self, stage: str, attempt: int = 1) -> Json:
        """The first pod of this attempt, once it runs."""

        def running() -> Json | None:
            for pod in self.pods(stage):
                if pod["metadata"]["labels"][ATTEMPT] == str(attempt) and pod["status"]["phase"] == "Running":
                    return pod
            return None

        return self.wait_until(f"attempt {attempt} of {stage} runs", running)

    def wait_until_done(self, stage: str) -> Marker:
        return self.wait_until(f"{stage} is done", lambda: self.directory.done(stage))


def seed(release: Release, origin: Release, *stages: str) -> None:
    """Begins its run directory with these stages of another run done: what both want the same is not made again."""
    source, target = origin.directory.store, release.directory.store
    for name in source.list():
        if name.partition("/")[0] in stages:
            target.write(name, source.read(name))


def refusal(command: Callable[[], str]) -> str:
    """What a command that fails says on stderr."""
    try:
        said = command()
    except subprocess.CalledProcessError as problem:
        return str(problem.stderr)
    raise AssertionError(f"it was not refused: {said}")
