"""A copy from bucket to bucket is the server's work, in as many calls as it takes; a server on loopback says how many."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from nanocode.storage.gcs import GcsStore

SIZE = 3 << 20


@pytest.fixture
def server() -> Iterator[tuple[storage.Client, list[str]]]:
    """Copies a third at each call (cloud.google.com/storage/docs/json_api/v1/objects/rewrite); the calls it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token = parse_qs(urlsplit(self.path).query).get("rewriteToken", ["0"])[0]
            done = int(token) + SIZE // 3
            body = {"totalBytesRewritten": str(done), "objectSize": str(SIZE), "done": done >= SIZE}
            body |= {"resource": {"name": "d24/x"}} if done >= SIZE else {"rewriteToken": str(done)}
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *arguments: object) -> None:
            """Not on the test's output."""

    one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    where = {"api_endpoint": f"http://127.0.0.1:{one.server_address[1]}"}
    yield storage.Client("lab", AnonymousCredentials(), client_options=where), asked
    one.shutdown()
    one.server_close()


def test_a_large_object_is_copied_call_by_call_until_it_is_whole(server: tuple[storage.Client, list[str]]) -> None:
    client, asked = server
    here, there = (GcsStore(f"gs://{name}/d24", client.bucket(name)) for name in ("home", "away"))
    here.copy("x", there)
    assert [parse_qs(urlsplit(path).query).get("rewriteToken") for path in asked] == [
        None,
        [f"{SIZE // 3}"],
        ["2097152"],
    ]
    assert {urlsplit(path).path for path in asked} == {"/storage/v1/b/home/o/d24%2Fx/rewriteTo/b/away/o/d24%2Fx"}
