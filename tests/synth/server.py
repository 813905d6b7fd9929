"""A chat-completions server on the loopback that answers what a test scripted, in every way that servers misbehave."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-very-secret-0123456789"


@dataclass
class Answer:
    """One scripted answer."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds before anything is sent."""
    drip: float = 0.0
    """Seconds between two bytes of the body."""
    promise: int = 0
    """Bytes that Content-Length claims and that never come: the connection closes instead."""
    slam: bool = False
    """Close without a word."""


def completion(content: str | None = "Done.", finish: str = "stop", usage: Any = (100, 10), **message: Any) -> Answer:
    body: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
        ],
    }
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Answer(json.dumps(body).encode())


def call(name: str, arguments: str, id: str = "c1") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(name: str, arguments: str, *more: dict[str, Any], content: str | None = None) -> Answer:
    return completion(content, "tool_calls", tool_calls=[call(name, arguments), *more])


def failing(status: int, message: str = "no", code: str | None = None, **headers: str) -> Answer:
    body = json.dumps({"error": {"message": message, "code": code, "type": "x"}}).encode()
    return Answer(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def events(*chunks: Any, done: bool = True) -> Answer:
    lines = [f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n" for one in chunks]
    body = "".join(lines) + ("data: [DONE]\n\n" if done else "")
    return Answer(body.encode(), headers={"Content-Type": "text/event-stream"})


def delta(finish: str | None = None, **values: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": values, "finish_reason": finish}]}


Script = Sequence[Answer] | Callable[[dict[str, Any]], Answer]


class Server:
    """Answers in order, the last for ever; or what a function makes of the request."""

    def __init__(self, script: Script) -> None:
        self.script, self.requests, self.keys = script, list[dict[str, Any]](), list[str | None]()
        self.in_flight = self.most_in_flight = 0
        self._lock, self.leaving = threading.Lock(), threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 5.0
            disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                server._enter(json.loads(data), self.headers.get("Authorization"))
                try:
                    self._send(server._next(json.loads(data)))
                except OSError:
                    self.close_connection = True  # the client left
                finally:
                    server._leave()

            def _send(self, answer: Answer) -> None:
                server.leaving.wait(answer.delay)
                if answer.slam:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body) + answer.promise))
                self.end_headers()
                if answer.drip:
                    for byte in answer.body:
                        self.wfile.write(bytes([byte]))
                        if server.leaving.wait(answer.drip):
                            break
                else:
                    self.wfile.write(answer.body)
                if answer.promise or answer.drip:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.005})
        self._thread.start()

    def _enter(self, request: dict[str, Any], key: str | None) -> None:
        with self._lock:
            self.requests.append(request)
            self.keys.append(key)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def _leave(self) -> None:
        with self._lock:
            self.in_flight -= 1

    def _next(self, request: dict[str, Any]) -> Answer:
        if callable(self.script):
            return self.script(request)
        with self._lock:
            place = min(len(self.requests), len(self.script)) - 1
        return self.script[place]

    def close(self) -> None:
        self.leaving.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    server = Server(script)
    try:
        yield server
    finally:
        server.close()


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)
