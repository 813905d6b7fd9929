"""What Prometheus and the kubelet ask the controller: /metrics, /healthz (it makes rounds), /readyz (one came through).

A controller whose rounds fail because the API server or the bucket does not answer is alive: restarting it helps
nobody. One that has made none for `SECONDS_STUCK` hangs.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from nanocode.run.exposition import exposition

SECONDS_STUCK = 300.0


class Health:
    """How the rounds go; written by the loop, read by whoever asks."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._last_round = monotonic()
        self.ready = False
        self.found: Mapping[str, Any] | None = None
        """What `nanocode status` says of the run, as of the last status."""
        self._registry = CollectorRegistry()
        self.rounds = Counter("nanocode_controller_rounds", "Rounds, by outcome", ["outcome"], registry=self._registry)
        self.seconds = Histogram("nanocode_controller_round_seconds", "Time of a round", registry=self._registry)
        self.actions = Counter("nanocode_controller_actions", "Decisions, by kind", ["kind"], registry=self._registry)
        self._age = Gauge("nanocode_controller_last_round_age_seconds", "Since the last round", registry=self._registry)
        self._age.set_function(self.age)

    def age(self) -> float:
        """Seconds since the last round ended, whatever its outcome."""
        return self._monotonic() - self._last_round

    def round_ended(self, outcome: str) -> None:
        """`outcome`: decided, waiting or unreachable."""
        self._last_round = self._monotonic()
        self.ready = self.ready or outcome != "unreachable"
        self.rounds.labels(outcome).inc()

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry) + (exposition(dict(self.found)).encode() if self.found else b"")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """A scrape every few seconds is no news."""


def serve(health: Health, port: int, address: str = "") -> WSGIServer:
    """Answer on this port (0: any that is free) until `shutdown`; `OSError` where it is taken."""

    def answer(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        match environment["PATH_INFO"]:
            case "/metrics":
                start("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
                return [health.text()]
            case "/healthz":
                good, text = health.age() < SECONDS_STUCK, f"last round {health.age():.0f} s ago\n"
            case "/readyz":
                good, text = health.ready, "ready\n" if health.ready else "no round has come through yet\n"
            case _:
                start("404 Not Found", [("Content-Type", "text/plain")])
                return [b"/metrics, /healthz or /readyz\n"]
        start("200 OK" if good else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [text.encode()]

    server = make_server(address, port, answer, server_class=_Server, handler_class=_Quiet)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
