"""A server on loopback that answers in JSON, for the real Cloud Storage client where the emulator does not say enough."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

Answer = Callable[[str], tuple[int, dict[str, Any]]]
"""Path and query of a request -> status code and body."""


@contextmanager
def storage_client(method: str, answer: Answer) -> Iterator[storage.Client]:
    """A client whose every request by this method is answered so, and no other one at all."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, body = answer(self.path)
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *arguments: object) -> None:
            """Not on the test's output."""

    setattr(Handler, f"do_{method}", Handler.respond)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    where = {"api_endpoint": f"http://127.0.0.1:{server.server_address[1]}"}
    yield storage.Client("lab", AnonymousCredentials(), client_options=where)
    server.shutdown()
    server.server_close()
