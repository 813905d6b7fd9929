"""A copy from bucket to bucket is the server's work, in as many calls as it takes; a server on loopback says how many."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from google.cloud import storage

from nanocode.storage.gcs import GcsStore
from tests.json_server import storage_client

SIZE = 3 << 20


@pytest.fixture
def server() -> Iterator[tuple[storage.Client, list[str]]]:
    """Copies a third at each call (cloud.google.com/storage/docs/json_api/v1/objects/rewrite); the calls it was asked."""
    asked: list[str] = []

    def answer(path: str) -> tuple[int, dict[str, Any]]:
        asked.append(path)
        token = parse_qs(urlsplit(path).query).get("rewriteToken", ["0"])[0]
        done = int(token) + SIZE // 3
        body: dict[str, Any] = {"totalBytesRewritten": str(done), "objectSize": str(SIZE), "done": done >= SIZE}
        body |= {"resource": {"name": "d24/x"}} if done >= SIZE else {"rewriteToken": str(done)}
        return 200, body

    with storage_client("POST", answer) as client:
        yield client, asked


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
