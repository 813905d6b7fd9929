"""The controller's pod.

    python -m deploy.kubernetes --namespace NS --run R [--address IP] [--port 9090]

SIGTERM ends it at once: it stops nothing, and the next one goes on.
"""

import argparse
import signal
import sys
import time
from types import FrameType

import structlog

from deploy.controller.backend import Unreachable
from deploy.kubernetes.client import connect
from deploy.kubernetes.loop import Controller
from deploy.kubernetes.metrics import Health, serve

log = structlog.get_logger()


def leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> int:
    parser = argparse.ArgumentParser("python -m deploy.kubernetes", description="Be the controller of a TrainingRun.")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--run", required=True, metavar="NAME", help="of the TrainingRun")
    parser.add_argument("--address", default="", metavar="IP", help="to listen on: the pod's own [all there are]")
    parser.add_argument("--port", type=int, default=9090, help="for /metrics, /healthz and /readyz [9090]")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)  # a container's first process ignores them otherwise
    structlog.configure(processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()])
    try:
        cluster = connect(options.namespace)
    except Unreachable as error:
        print(f"nanocode: {error}", file=sys.stderr)
        return 1
    health = Health()
    # Probes and scrapes come to the pod's address, `kubectl port-forward` to the other.
    for address in (options.address, "127.0.0.1") if options.address else ("",):
        try:
            serve(health, options.port, address)
        except OSError as error:
            # A run goes on without its metrics; where the probes fail as well, the kubelet says so.
            log.warning("no metrics at this address", address=address, port=options.port, error=error.strerror)
    controller = Controller(cluster, options.run, health)
    log.info("controlling", namespace=options.namespace, run=options.run)
    while True:
        with health.seconds.time():
            controller.round()
        time.sleep(controller.seconds_between_looks)


if __name__ == "__main__":
    sys.exit(main())
