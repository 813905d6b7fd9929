"""Talking to the API server as one user: kubeconfig files, and requests whose objects are plain JSON.

The transport is the official client's. Its typed models are left out, since a node handles objects of any kind, and
checks of the test belong to the server.
"""

import base64
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from tests.cluster.certificates import Credentials

Json = dict[str, Any]
UNREACHABLE = (urllib3.exceptions.HTTPError, OSError)
"""What a request raises while the API server is away."""
REQUEST_SECONDS = 10
WATCH_SECONDS = 60


def write_kubeconfig(path: Path, server: str, authority: Path, user: Credentials) -> Path:
    """A kubeconfig with everything inside, so that it can be copied; for its owner's eyes."""
    path.touch(mode=0o600)
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "nanocode",
                "contexts": [{"name": "nanocode", "context": {"cluster": "nanocode", "user": "user"}}],
                "clusters": [
                    {
                        "name": "nanocode",
                        "cluster": {"server": server, "certificate-authority-data": _base64(authority)},
                    }
                ],
                "users": [
                    {
                        "name": "user",
                        "user": {
                            "client-certificate-data": _base64(user.certificate),
                            "client-key-data": _base64(user.key),
                        },
                    }
                ],
            }
        )
    )
    return path


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


class Refused(Exception):
    """The API server's answer was an error: its status code, reason and message."""

    def __init__(self, code: int, body: str) -> None:
        try:
            status = json.loads(body)
        except ValueError:
            status = {}
        self.code = code
        self.reason: str = status.get("reason", "")
        super().__init__(status.get("message", body))


class Api:
    """Requests to paths such as `/api/v1/nodes`; every one has a deadline."""

    def __init__(self, kubeconfig: Path) -> None:
        configuration = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        configuration.proxy = None
        # One pool for the threads of a node; a watch keeps its connection.
        configuration.connection_pool_maxsize = 16
        self._client = client.ApiClient(configuration)
        self._server = configuration.host

    def ready(self) -> bool:
        try:
            answer: bytes = self._send("GET", "/readyz", None, {}, None, REQUEST_SECONDS).read()
        except (Refused, *UNREACHABLE):
            return False
        return answer == b"ok"

    def get(self, path: str, **query: Any) -> Json:
        return self._call("GET", path, None, query)

    def create(self, path: str, body: Json) -> Json:
        return self._call("POST", path, body, {})

    def patch(self, path: str, body: Json) -> Json:
        """A strategic merge patch: lists of conditions are merged by type."""
        return self._call("PATCH", path, body, {}, "application/strategic-merge-patch+json")

    def replace(self, path: str, body: Json) -> Json:
        return self._call("PUT", path, body, {})

    def delete(self, path: str, body: Json | None = None) -> Json:
        return self._call("DELETE", path, body or {}, {})

    def apply(self, path: str, body: Json) -> Json:
        """Server-side apply, which creates what is missing."""
        query = {"fieldManager": "harness", "force": "true"}
        return self._call("PATCH", path, body, query, "application/apply-patch+yaml")

    def watch(self, path: str, **query: Any) -> Generator[tuple[str, Json], None, None]:
        """(ADDED, object) for all there is, then every change; ends after about a minute, to be called again.

        Raises what any request raises, and ends when a list in between has become too old to follow.
        """
        listed = self.get(path, **query)
        for item in listed["items"]:
            yield "ADDED", item
        yield "LISTED", listed
        query |= {"watch": 1, "resourceVersion": listed["metadata"]["resourceVersion"], "timeoutSeconds": WATCH_SECONDS}
        response = self._send("GET", path, None, query, None, WATCH_SECONDS + REQUEST_SECONDS).response
        try:
            buffered = b""
            for chunk in response.stream(amt=None):
                *lines, buffered = (buffered + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        return
                    yield event["type"], event["object"]
        finally:
            response.close()

    def _call(self, method: str, path: str, body: Json | None, query: Json, content: str | None = None) -> Json:
        answer: Json = json.loads(self._send(method, path, body, query, content, REQUEST_SECONDS).read())
        return answer

    def _send(self, method: str, path: str, body: Json | None, query: Json, content: str | None, seconds: int) -> Any:
        url = self._server + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json", "Content-Type": content or "application/json"}
        try:
            response = self._client.call_api(method, url, headers, body, _request_timeout=seconds)
        except ApiException as problem:
            raise ConnectionError(str(problem.reason)) from None  # that is how the client reports a failed handshake
        if response.status >= 400:
            raise Refused(response.status, response.read().decode(errors="replace"))
        return response
