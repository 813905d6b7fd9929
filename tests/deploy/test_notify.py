"""The webhook is told in time, or given up; nobody waits for it and no log holds its URL."""

import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import structlog

from deploy.controller.notify import Webhook

SECRET = "T000-B000-XXXX"


class Hook:
    """A server that answers with these codes, one after the other; the last one stays."""

    def __init__(self, *codes: int) -> None:
        self.received: queue.Queue[tuple[str, dict[str, str]]] = queue.Queue()
        self.tries = 0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                code = codes[min(hook.tries, len(codes) - 1)]
                hook.tries += 1
                self.send_response(code)
                self.end_headers()
                if code < 400:
                    hook.received.put((self.headers["Content-Type"], body))

            def log_message(self, format: str, *arguments: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/{SECRET}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hooks() -> Iterator[list[Hook]]:
    made: list[Hook] = []
    yield made
    for hook in made:
        hook.server.shutdown()
        hook.server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes a connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/services/{SECRET}"


def test_the_text_arrives_as_slack_takes_it_after_two_refusals(hooks: list[Hook]) -> None:
    hooks.append(Hook(500, 500, 200))
    with Webhook(lambda: hooks[0].url) as webhook:
        webhook.send("the run is done")
        assert hooks[0].received.get(timeout=30) == ("application/json", {"text": "the run is done"})
    assert hooks[0].tries == 3


def test_a_url_that_was_taken_back_is_not_asked_again(hooks: list[Hook]) -> None:
    hooks.append(Hook(404))
    with structlog.testing.capture_logs() as logs, Webhook(lambda: hooks[0].url) as webhook:
        webhook.send("the run is done")
    assert hooks[0].tries == 1
    assert [(entry["log_level"], entry["host"]) for entry in logs] == [("warning", "127.0.0.1")]
    assert SECRET not in str(logs)


def test_a_server_that_hangs_or_is_closed_holds_nobody_up_and_is_named_without_its_secret(
    silent: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}/services/{SECRET}"
    for url in (silent, closed):
        with structlog.testing.capture_logs() as logs:
            began = time.monotonic()
            with Webhook(lambda: url, seconds_per_try=0.2, seconds_of_tries=1, seconds_at_the_end=10) as webhook:  # noqa: B023
                webhook.send("the run is done")
                assert time.monotonic() - began < 0.1
            assert time.monotonic() - began < 8
        assert [entry["log_level"] for entry in logs] == ["warning"]
        assert SECRET not in str(logs) + "".join(capfd.readouterr())


def test_the_end_does_not_wait_longer_than_it_was_told_to(silent: str) -> None:
    began = time.monotonic()
    with structlog.testing.capture_logs() as logs:
        with Webhook(lambda: silent, seconds_per_try=5, seconds_at_the_end=0.3) as webhook:
            webhook.send("the run is done")
    assert time.monotonic() - began < 2
    assert [entry["event"] for entry in logs] == ["the last words did not reach the webhook"]


def test_without_a_url_nothing_is_sent() -> None:
    before = threading.active_count()
    with Webhook(lambda: None) as webhook:
        webhook.send("the run is done")
        assert threading.active_count() == before
