"""A door before the bucket's emulator, which knows no permissions: what an account lacks is refused as Google does.

    with refusing(gcs.server(), {"bucket": {"storage.objects.list"}}) as door:
        door.address                                 # for STORAGE_EMULATOR_HOST
        door.lacking["bucket"].clear()               # somebody has granted it

The answer: cloud.google.com/storage/docs/json_api/v1/status-codes, "403 - Forbidden"; its words are those of an account
without a role on the bucket. Which call needs which permission: cloud.google.com/storage/docs/access-control/iam-json.
"""

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ACCOUNT = "controller@project.iam.gserviceaccount.com"
VERBS = {"POST": "create", "PUT": "create", "DELETE": "delete", "PATCH": "update"}
HOP_BY_HOP = ("connection", "transfer-encoding", "keep-alive", "content-length")


@dataclass
class Door:
    """Where it is, and what the account that comes through lacks."""

    address: str
    lacking: dict[str, set[str]]
    """Bucket -> permissions."""


@contextmanager
def refusing(emulator: str, lacking: Mapping[str, set[str]]) -> Iterator[Door]:
    """The emulator at this address, but for what is lacking."""
    door = Door("", {bucket: set(permissions) for bucket, permissions in lacking.items()})
    where = urlsplit(emulator).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            bucket, permission = needed(self.command, self.path)
            if permission in door.lacking.get(bucket, ()):
                self.send(403, {"Content-Type": "application/json; charset=UTF-8"}, refusal(permission))
                return
            there = http.client.HTTPConnection(where, timeout=30)
            try:
                there.request(self.command, self.path, body, dict(self.headers))
                found = there.getresponse()
                self.send(found.status, dict(found.getheaders()), found.read())
            finally:
                there.close()

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

        def send(self, code: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response_only(code)
            for name, value in headers.items():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    door.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, name="door", daemon=True).start()
    try:
        yield door
    finally:
        server.shutdown()
        server.server_close()


def needed(verb: str, path: str) -> tuple[str, str]:
    """Bucket and permission that a request is about; empty for one that is about no object."""
    parts = urlsplit(path).path.split("/")
    if "b" not in parts or "o" not in parts:
        return "", ""
    bucket, names = parts[parts.index("b") + 1], parts[parts.index("o") + 1 :]
    return bucket, f"storage.objects.{VERBS.get(verb, 'get' if names else 'list')}"


def refusal(permission: str) -> bytes:
    """The body of the answer."""
    what = "bucket" if permission.endswith("list") else "object"
    message = (
        f"{ACCOUNT} does not have {permission} access to the Google Cloud Storage {what}. "
        f"Permission '{permission}' denied on resource (or it may not exist)."
    )
    errors = [{"message": message, "domain": "global", "reason": "forbidden"}]
    return json.dumps({"error": {"code": 403, "message": message, "errors": errors}}).encode()
