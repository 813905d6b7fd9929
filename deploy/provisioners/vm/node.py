"""The queued resource of a slice, with the node whose VMs `startup.sh` begins on.

Everything a VM is told is metadata of its node, which anybody in the project may read: names of secrets and never their
values. The request expires by itself some time after we would have given it up, so that nothing comes of it when nobody
is there to take it.
"""

import json
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from typing import Any

from nanocode.config.settings import Cloud

PREFIX = "nanocode-"
MINUTES_BEYOND = 15.0
"""After which a request whose controller is gone expires."""
SHUTDOWN = """#!/bin/sh
# The VM is about to go (Compute Engine gives a spot VM 30 s): let what runs save what it has.
docker ps --quiet --filter label=nanocode-stage | xargs --no-run-if-empty docker stop --time 25
"""


@dataclass(frozen=True)
class Parameters:
    """Of one slice."""

    run: str
    """Address of the run directory."""
    slice: str
    name: str
    parent: str
    """`projects/P/locations/Z`."""
    image: str
    labels: dict[str, str]


def metadata(parameters: Parameters, cloud: Cloud) -> dict[str, str]:
    """What the VMs of a slice are told."""
    told = {
        "run-dir": parameters.run,
        "slice": parameters.slice,
        "queued-resource": f"{parameters.parent}/queuedResources/{parameters.name}",
        "image": parameters.image,
        "secrets": json.dumps(cloud.secrets, sort_keys=True),
        "unattended-seconds": f"{cloud.unattended_minutes * 60:.0f}",
    }
    script = resources.files("deploy.provisioners.vm").joinpath("startup.sh").read_text()
    return {
        **{PREFIX + key: value for key, value in told.items()},
        "startup-script": script,
        "shutdown-script": SHUTDOWN,
    }


def queued_resource(parameters: Parameters, cloud: Cloud) -> Any:
    """The request for it."""
    from google.cloud import tpu_v2

    node = tpu_v2.Node(
        accelerator_type=cloud.accelerator_type,
        runtime_version=cloud.runtime_version,
        labels=parameters.labels,
        metadata=metadata(parameters, cloud),
        network_config=tpu_v2.NetworkConfig(
            network=cloud.network or "", subnetwork=cloud.subnetwork or "", enable_external_ips=cloud.external_ips
        ),
    )
    if cloud.service_account is not None:
        scope = ["https://www.googleapis.com/auth/cloud-platform"]
        node.service_account = tpu_v2.ServiceAccount(email=cloud.service_account, scope=scope)
    spec = tpu_v2.QueuedResource.Tpu.NodeSpec(parent=parameters.parent, node_id=parameters.name, node=node)
    tier: dict[str, Any] = {"spot": {}} if cloud.spot else {}  # neither tier: on demand
    return tpu_v2.QueuedResource(
        tpu=tpu_v2.QueuedResource.Tpu(node_spec=[spec]),
        queueing_policy={"valid_until_duration": timedelta(minutes=cloud.queue_minutes + MINUTES_BEYOND)},
        **tier,
    )
