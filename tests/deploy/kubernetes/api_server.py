"""A few REST paths of an API server on loopback, for what only shows between client and server: pages, 409, 500, silence.

It keeps objects, their resource versions, finalizers and deletion; it runs no Job. The real one is in tests/cluster.
"""

import itertools
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]


class ApiServer:
    """`url` answers until `close`; `trouble(verb, resource)` may return a status to answer with, or sleep."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        """(resource, name) -> object."""
        self.requests: list[tuple[str, str]] = []
        self.trouble: Callable[[str, str], int | None] = lambda verb, resource: None
        self._versions = itertools.count(1)
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"world": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def names(self, resource: str) -> list[str]:
        return sorted(name for kind, name in self.objects if kind == resource)

    def put(self, resource: str, one: Object) -> Object:
        """There it is, as if somebody had made it."""
        metadata = one.setdefault("metadata", {})
        metadata.setdefault("uid", f"{resource}-{metadata['name']}-{next(self._versions)}")
        metadata.setdefault("creationTimestamp", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        metadata["resourceVersion"] = str(next(self._versions))
        self.objects[resource, metadata["name"]] = one
        return one

    def answer(self, method: str, path: str, query: dict[str, str], body: Object | None) -> tuple[int, Object]:
        resource, name, part = _target(path)
        verb = {"POST": "create", "GET": "get" if name else "list", "DELETE": "delete", "PATCH": "patch"}[method]
        self.requests.append((verb, f"{resource}/{part}" if part else resource))
        if (status := self.trouble(verb, resource)) is not None:
            return status, {"message": "trouble that a test has asked for"}
        with self._lock:
            return getattr(self, f"_{verb}")(resource, name, query, body, part)

    def _list(self, resource: str, name: str, query: dict[str, str], body: Any, part: str) -> tuple[int, Object]:
        labels = dict(pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair)
        fields = dict(pair.split("=", 1) for pair in query.get("fieldSelector", "").split(",") if pair)
        found = [
            one
            for (kind, _), one in sorted(self.objects.items())
            if kind == resource and labels.items() <= (one["metadata"].get("labels") or {}).items()
            if all(_field(one, path) == value for path, value in fields.items())
        ]
        first, size = int(query.get("continue", 0)), int(query.get("limit", 1000))
        more = {"continue": str(first + size)} if first + size < len(found) else {}
        return 200, {"items": found[first : first + size], "metadata": more}

    def _get(self, resource: str, name: str, query: Any, body: Any, part: str) -> tuple[int, Object]:
        one = self.objects.get((resource, name))
        return (200, one) if one is not None else (404, {"message": f"{resource} {name} not found"})

    def _create(self, resource: str, name: str, query: Any, body: Object, part: str) -> tuple[int, Object]:
        if resource == "selfsubjectaccessreviews":
            return 201, {**body, "status": {"allowed": True}}
        if (resource, body["metadata"]["name"]) in self.objects:
            return 409, {"message": f"{resource} {body['metadata']['name']} already exists"}
        return 201, self.put(resource, body)

    def _delete(self, resource: str, name: str, query: Any, body: Object | None, part: str) -> tuple[int, Object]:
        one = self.objects.get((resource, name))
        if one is None:
            return 404, {"message": f"{resource} {name} not found"}
        uid = ((body or {}).get("preconditions") or {}).get("uid")
        if uid is not None and uid != one["metadata"]["uid"]:
            return 409, {"message": "the UID in the precondition does not match"}
        if one["metadata"].get("finalizers"):
            one["metadata"].setdefault("deletionTimestamp", "2026-01-01T00:00:00Z")
        else:
            del self.objects[resource, name]
        return 200, one

    def _patch(self, resource: str, name: str, query: Any, body: Object, part: str) -> tuple[int, Object]:
        one = self.objects.get((resource, name))
        if one is None:
            return 404, {"message": f"{resource} {name} not found"}
        version = body.get("metadata", {}).get("resourceVersion", one["metadata"]["resourceVersion"])
        if version != one["metadata"]["resourceVersion"]:
            return 409, {"message": "the object has been modified"}
        if part == "status":
            one["status"] = _merged(one.get("status", {}), body["status"])
        else:
            generation = one["metadata"].get("generation", 1) + ("spec" in body)
            one |= _merged(one, {key: value for key, value in body.items() if key != "status"})
            one["metadata"]["generation"] = generation
        if "deletionTimestamp" in one["metadata"] and not one["metadata"].get("finalizers"):
            del self.objects[resource, name]
            return 200, one
        return 200, self.put(resource, one)


class _Handler(BaseHTTPRequestHandler):
    world: ApiServer
    protocol_version = "HTTP/1.1"

    def _do(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        status, answer = self.world.answer(self.command, parts.path, query, body)
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = do_PATCH = _do

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _target(path: str) -> tuple[str, str, str]:
    """Resource, name and subresource of a path such as /apis/batch/v1/namespaces/ns/jobs/a/status."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    return parts[0], parts[1] if len(parts) > 1 else "", parts[2] if len(parts) > 2 else ""


def _field(one: Object, path: str) -> Any:
    """`involvedObject.kind` of an event, and the like."""
    for part in path.split("."):
        one = one.get(part, {})
    return one


def _merged(below: Any, above: Any) -> Any:
    """RFC 7386."""
    if not isinstance(above, dict):
        return above
    merged = dict(below) if isinstance(below, dict) else {}
    for key, value in above.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged
