"""The laptop cluster: `python -m tests.cluster up` leaves one running, `images` builds what it can run, `down` ends it.

A bucket is emulated beside it, in memory, and .cluster/values.yaml has what the chart needs to know of all this. It has one ordinary node and two spot v6e-8, and looks every second for nodes that are told what befalls them:
`kubectl annotate node v6e-0 nanocode.dev/fault=preempt` (or vanish, hang, resume). A preempted or vanished machine is
replaced by a new one after a while, as a node pool does.
"""

import argparse
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import yaml

from tests import gcs
from tests.cluster.access import UNREACHABLE, Refused
from tests.cluster.binaries import NoGoToolchain, binaries
from tests.cluster.built import describe_built
from tests.cluster.cluster import Cluster, Missing, require_programs
from tests.cluster.images import Images
from tests.cluster.node import Node, cpu_node, v6e_node
from tests.cluster.releases import laptop_values
from tests.images.build import missing

FOLDER = Path(".cluster")
"""pid, kubeconfig, values and log of the cluster that runs for this checkout."""
IMAGES = FOLDER / "images"
"""Images that are found here can be run; see `tests.cluster.images` for the layout."""
FAULT = "nanocode.dev/fault"
REPLACEMENT_SECONDS = 20.0


def up() -> None:
    """Starts one in the background, unless it runs already, and says how to use it."""
    if _process() is None:
        require_programs()
        binaries()
        FOLDER.mkdir(parents=True, exist_ok=True)
        kubeconfig = FOLDER / "kubeconfig"
        kubeconfig.unlink(missing_ok=True)
        with (FOLDER / "log").open("wb") as log:
            command = [sys.executable, "-m", "tests.cluster", "serve"]
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        (FOLDER / "pid").write_text(f"{server.pid}\n")
        while not kubeconfig.exists():
            if server.poll() is not None:
                sys.exit(f"the cluster did not start; {FOLDER / 'log'} ends:\n{(FOLDER / 'log').read_text()[-2000:]}")
            time.sleep(0.2)
    if lack := missing():
        print(f"# no images, so no run: {lack}")
    else:
        print("# building the images, minutes at first ...", flush=True)
        build_images()
    print(f"export KUBECONFIG={(FOLDER / 'kubeconfig').resolve()} PATH={binaries()}:$PATH")
    chart = "charts/nanocode"
    print(f"helm install demo {chart} -f {chart}/values-demo.yaml -f {FOLDER}/values.yaml   # then: kubectl get tr -w")


def down() -> None:
    """Ends it, and everything it runs."""
    server = _process()
    if server is None:
        print("no cluster runs here")
        return
    server.terminate()
    try:
        server.wait(60)
    except psutil.TimeoutExpired:
        server.kill()  # the kernel ends its children
    for name in ("pid", "kubeconfig", "values.yaml"):
        (FOLDER / name).unlink(missing_ok=True)


def build_images() -> None:
    """Builds the images of the controller and of the jobs, and tells a cluster that runs here about them."""
    if lack := missing():
        sys.exit(f"images cannot be built here: {lack}")
    print("\n".join(f"# {name}" for name in describe_built(IMAGES, "controller", "cpu")))


def serve() -> None:
    """Runs until it is told to stop."""
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    images = Images()
    FOLDER.joinpath("values.yaml").write_text(yaml.safe_dump(laptop_values(gcs.server()), sort_keys=False))
    with Cluster(images) as cluster:
        cluster.add(cpu_node("cpu-0"), v6e_node("v6e-0"), v6e_node("v6e-1"))
        shown = FOLDER / "kubeconfig.next"
        shown.touch(mode=0o600)
        shown.write_bytes(cluster.kubeconfig.read_bytes())
        shown.rename(FOLDER / "kubeconfig")
        numbers = itertools.count(2)
        while not over.wait(1.0):
            if IMAGES.exists():
                images.read(IMAGES)
            try:
                _befall(cluster, numbers)
            except (Refused, *UNREACHABLE) as problem:
                print(problem, flush=True)


def _befall(cluster: Cluster, numbers: "itertools.count[int]") -> None:
    for item in cluster.api.get("/api/v1/nodes")["items"]:
        name, fault = item["metadata"]["name"], (item["metadata"].get("annotations") or {}).get(FAULT)
        if fault is None or name not in cluster.kubelets:
            continue
        cluster.api.patch(f"/api/v1/nodes/{name}", {"metadata": {"annotations": {FAULT: None}}})
        node = cluster.kubelets[name].node
        match fault:
            case "preempt" | "vanish":
                threading.Thread(
                    target=_replace, args=(cluster, name, fault, node.named(f"v6e-{next(numbers)}"))
                ).start()
            case "hang":
                cluster.hang(name)
            case "resume":
                cluster.resume(name)


def _replace(cluster: Cluster, name: str, fault: str, successor: Node) -> None:
    if fault == "preempt":
        cluster.preempt(name)
        time.sleep(REPLACEMENT_SECONDS)
    else:
        cluster.vanish(name)
        time.sleep(REPLACEMENT_SECONDS)
        cluster.forget(name)
    cluster.add(successor)


def _process() -> psutil.Process | None:
    """The server that the pid file names; a number that now belongs to something else is nobody's."""
    try:
        found = psutil.Process(int((FOLDER / "pid").read_text()))
        return found if found.cmdline()[1:] == ["-m", "tests.cluster", "serve"] else None
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None


if __name__ == "__main__":
    os.umask(0o022)
    commands = {"up": up, "down": down, "images": build_images, "serve": serve}
    parser = argparse.ArgumentParser("python -m tests.cluster", description=__doc__)
    parser.add_argument("command", choices=commands)
    try:
        commands[parser.parse_args().command]()
    except (NoGoToolchain, Missing) as problem:
        sys.exit(str(problem))
