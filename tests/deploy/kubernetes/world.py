"""A TrainingRun on a loopback API server, its controller, and whoever plays the rest of the cluster."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from deploy.kubernetes.client import Cluster
from deploy.kubernetes.loop import Controller
from deploy.kubernetes.metrics import Health
from deploy.kubernetes.trainingrun import timestamp
from nanocode.run.attempts import End, recorded
from nanocode.run.directory import Marker, RunDirectory
from nanocode.storage.objects import open_store
from tests.deploy.kubernetes.api_server import ApiServer
from tests.deploy.kubernetes.objects import condition
from tests.deploy.kubernetes.releases import DIGEST, IMAGE, RUN, install

Object = dict[str, Any]


class World:
    def __init__(self, server: ApiServer, cluster: Cluster, folder: Path | str, hosts: int = 1, **spec: Any) -> None:
        """`folder`: of the run directory, or a `gs://` prefix."""
        self.server, self.cluster = server, cluster
        self.directory = RunDirectory(open_store(f"{folder}/run"))
        self.now = datetime.now(UTC).timestamp()
        install(server, f"{folder}/run", hosts, **spec)
        self.health = Health()
        self.controller = self.another_controller()

    def another_controller(self) -> Controller:
        return Controller(self.cluster, RUN, self.health, lambda: self.now)

    def rounds(self, count: int = 1, seconds: float = 11) -> None:
        """Each of them late enough to write a status."""
        for _ in range(count):
            self.now += seconds
            self.controller.round()

    @property
    def run(self) -> Object:
        return self.server.objects["trainingruns", RUN]

    @property
    def status(self) -> Object:
        found: Object = self.run["status"]
        return found

    def change(self, **spec: Any) -> None:
        """As `kubectl patch` does."""
        self.cluster.patch_run(RUN, {"spec": spec})

    @property
    def jobs(self) -> list[str]:
        return self.server.names("jobs")

    def events(self, reason: str) -> list[str]:
        found = [one for (kind, _), one in self.server.objects.items() if kind == "events"]
        return [one["message"] for one in found if one["reason"] == reason]

    def end_of(self, stage: str, attempt: int = 1) -> End | None:
        return recorded(self.directory, stage, attempt, End)

    # -- what the rest of the cluster does -----------------------------------------------------------------------------

    def pod(
        self, job: str, state: Object, index: int = 0, node: str = "node-0", *conditions: Object, **status: Any
    ) -> Object:
        """A pod of this Job, as its node reports it."""
        owner = self.server.objects["jobs", job]
        template = owner["spec"]["template"]
        phase = "Running" if "running" in state else "Pending" if "waiting" in state or not state else "Failed"
        container = {"name": "stage", "image": IMAGE, "imageID": f"registry:5000/nanocode@{DIGEST}", "state": state}
        metadata = {
            "name": f"{job}-{index}-abcde",
            "labels": template["metadata"]["labels"],
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
            "ownerReferences": [{"uid": owner["metadata"]["uid"], "kind": "Job", "name": job}],
        }
        spec = {**template["spec"], "nodeName": node}
        body = {"phase": phase, "conditions": list(conditions), "containerStatuses": [container], **status}
        return self.server.put("pods", {"metadata": metadata, "spec": spec, "status": body})

    def node(self, name: str = "node-0", ready: str = "True", ago: float = 0) -> None:
        one = {**condition("Ready", status=ready), "lastTransitionTime": timestamp(self.now - ago)}
        self.server.put("nodes", {"metadata": {"name": name}, "status": {"conditions": [one]}})

    def ended(self, job: str, kind: str = "Failed", reason: str = "") -> None:
        """Its pods stay as they are."""
        one = {**condition(kind, reason), "lastTransitionTime": timestamp(self.now)}
        self.server.objects["jobs", job]["status"] = {"conditions": [one], "completionTime": timestamp(self.now)}

    def done(self, stage: str, attempt: int = 1) -> None:
        """The stage has published its marker, and its Job is complete."""
        self.publish(stage, attempt)
        self.ended(f"{RUN}-{stage}-{attempt}", "Complete")

    def publish(self, stage: str, attempt: int = 1) -> None:
        at = datetime.fromtimestamp(self.now, UTC)
        claim = self.directory.claimed(stage, attempt)
        assert claim is not None
        marker = Marker(
            stage=stage,
            input_digest=claim.input_digest,
            attempt=attempt,
            outputs={"html": "x"},
            started=at - timedelta(seconds=9),
            ended=at,
        )
        self.directory.finish(stage, marker)
