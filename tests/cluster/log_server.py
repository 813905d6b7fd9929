"""The part of a kubelet's API that `kubectl logs` needs: the API server asks it for `/containerLogs/NS/POD/CONTAINER`.

kubernetes.io/docs/concepts/architecture/control-plane-node-communication, "API server to kubelet". One server answers for
all nodes; callers need a certificate of the cluster's authority.
"""

import http.server
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.cluster.certificates import Authority
from tests.cluster.slots import Slot

Find = Callable[[str, str, str], Slot | None]
"""(namespace, pod, container) -> where it runs; raises LookupError when its node does not answer."""
POLL_SECONDS = 0.1


class LogServer:
    """Listens on loopback from the start, at `port`."""

    def __init__(self, authority: Authority, find: Find) -> None:
        class Handler(_Handler):
            pass

        Handler.find = staticmethod(find)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        serving = authority.issue("kubelet", addresses=("127.0.0.1",))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(serving.certificate, serving.key)
        # The handshake is left to each connection's own thread.
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="kubelet api", daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    find: Find

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        match url.path.strip("/").split("/"):
            case ["containerLogs", namespace, pod, container]:
                self._logs(namespace, pod, container, {key: values[-1] for key, values in parse_qs(url.query).items()})
            case _:
                self._answer(501, f"this kubelet serves no {url.path}")

    def _logs(self, namespace: str, pod: str, container: str, options: dict[str, str]) -> None:
        unknown = options.keys() - {"follow", "tailLines", "previous", "limitBytes"}
        if unknown:
            return self._answer(
                400, f"this kubelet keeps no times with its logs, so there is no {', '.join(sorted(unknown))}"
            )
        try:
            slot = self.find(namespace, pod, container)
        except LookupError as problem:
            return self._answer(503, str(problem))
        if slot is None:
            return self._answer(404, f'pod "{pod}" has no container "{container}" on this node')
        log = slot.log(previous=options.get("previous") == "true")
        if log is None:
            return self._answer(400, f'container "{container}" in pod "{pod}" is waiting to start: {slot.waiting[0]}')
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        tail = int(options["tailLines"]) if "tailLines" in options else None
        left = int(options.get("limitBytes", 1 << 40))
        for piece in lines_of(log, slot, options.get("follow") == "true", tail):
            piece, left = piece[:left], left - len(piece)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if left <= 0:
                break
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, code: int, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nobody reads an access log here."""


def lines_of(log: Path, slot: Slot, follow: bool, tail: int | None) -> Iterator[bytes]:
    """What a log holds, its last `tail` lines or all; then what is added, until that run has ended."""
    with log.open("rb") as file:
        if tail is not None:
            content = file.read()
            kept = content.splitlines(keepends=True)
            yield from filter(None, [b"".join(kept[len(kept) - tail :] if tail else [])])
        while True:
            # Asked first: what a container wrote before it ended is there to be read afterwards.
            ended = not (slot.running and slot.log() == log)
            while piece := file.read(1 << 16):
                yield piece
            if ended or not follow:
                return
            time.sleep(POLL_SECONDS)
