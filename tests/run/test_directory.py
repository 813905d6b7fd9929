"""Configurations, claims and markers of a run, on both kinds of store."""

import json
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from nanocode.run.directory import Marker, RunDirectory
from nanocode.storage.objects import Store

A, B = "a" * 32, "b" * 32


def marker(digest: str = A, **fields: Any) -> Marker:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Marker.model_validate(
        {"stage": "corpus", "input_digest": digest, "attempt": 1, "started": at, "ended": at, **fields}
    )


@pytest.fixture
def run(store: Store) -> RunDirectory:
    return RunDirectory(store)


def test_the_highest_configuration_counts(run: RunDirectory) -> None:
    assert run.latest_config() is None
    for n in range(1, 12):  # past 9, where names sort differently from numbers
        assert run.add_config(f"seed: {n}\n") == n
    assert run.latest_config() == (11, "seed: 11\n")


def test_two_writers_of_configurations_do_not_overwrite_each_other(run: RunDirectory) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda i: run.add_config(f"seed: {i}\n"), range(8)))
    assert sorted(numbers) == list(range(1, 9))
    texts = {run.store.read(f"config/{n}.yaml").decode() for n in numbers}
    assert texts == {f"seed: {i}\n" for i in range(8)}


def test_attempts_are_numbered_and_remember_who_and_what(run: RunDirectory) -> None:
    assert run.attempts("corpus") == []
    assert [run.claim("corpus", A, "host-0"), run.claim("corpus", B, "host-1")] == [1, 2]
    assert run.claim("pretrain", A, "host-0") == 1
    claims = [(claim.attempt, claim.input_digest, claim.who) for claim in run.attempts("corpus")]
    assert claims == [(1, A, "host-0"), (2, B, "host-1")]


def test_two_processes_never_share_an_attempt(store: Store) -> None:
    program = textwrap.dedent("""
        import sys
        from nanocode.run.directory import RunDirectory
        from nanocode.storage.objects import open_store
        run = RunDirectory(open_store(sys.argv[1]))
        run.attempts("corpus")
        print("ready", flush=True)
        sys.stdin.readline()
        print(*[run.claim("corpus", "a" * 32, sys.argv[2]) for _ in range(20)])
    """)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, store.url, who], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for who in ("left", "right")
    ]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    left, right = ([int(n) for n in child.communicate(timeout=20)[0].split()] for child in children)
    assert sorted(left + right) == list(range(1, 41))
    claims = {claim.attempt: claim.who for claim in RunDirectory(store).attempts("corpus")}
    assert claims == {**dict.fromkeys(left, "left"), **dict.fromkeys(right, "right")}


def test_a_damaged_claim_is_left_out_loudly_and_its_number_stays_taken(run: RunDirectory) -> None:
    run.claim("corpus", A, "host-0")
    run.store.create("corpus/attempts/2/claim.json", b'{"stage": "cor')
    with structlog.testing.capture_logs() as logs:
        assert [claim.attempt for claim in run.attempts("corpus")] == [1]
    assert logs[0]["claim"].endswith("corpus/attempts/2/claim.json")
    assert run.claim("corpus", A, "host-0") == 3


def test_a_marker_comes_back_as_published(run: RunDirectory) -> None:
    assert run.done("corpus") is None
    published = marker(outputs={"shards": f"corpus/{A}"}, metrics={"loss": [1.5, None]}, cost_dollars=0.25)
    assert run.finish("corpus", published) == published
    assert run.done("corpus") == published


def test_the_first_marker_of_a_digest_wins(run: RunDirectory) -> None:
    first = run.finish("corpus", marker(attempt=1))
    assert run.finish("corpus", marker(attempt=2)) == first
    assert run.done("corpus") == first
    assert run.store.children("corpus") == ("DONE.json",)


def test_of_8_concurrent_markers_of_a_digest_all_agree_on_one(run: RunDirectory) -> None:
    with ThreadPoolExecutor(8) as pool:
        counted = list(pool.map(lambda n: run.finish("corpus", marker(attempt=n)), range(8)))
    assert counted == [run.done("corpus")] * 8


def test_a_stale_marker_is_set_aside(run: RunDirectory) -> None:
    old, new = marker(A, attempt=1), marker(B, attempt=2)
    run.finish("corpus", old)
    assert run.finish("corpus", new) == new
    assert run.done("corpus") == new
    assert Marker.model_validate_json(run.store.read("corpus/DONE.aaaaaaaaaaaa.json")) == old


WHOLE = marker().model_dump_json().encode()


@pytest.mark.parametrize("data", [b"", WHOLE[:40], b"\xff\0", b"[]", WHOLE.replace(b'"corpus"', b'"pretrain"')])
def test_a_damaged_marker_counts_as_not_done_and_is_kept(run: RunDirectory, data: bytes) -> None:
    run.store.create("corpus/DONE.json", data)
    with structlog.testing.capture_logs() as logs:
        assert run.done("corpus") is None
    assert [entry["log_level"] for entry in logs] == ["warning"]
    kept = logs[0]["set_aside_as"].removeprefix(run.store.url + "/")
    assert run.store.list("corpus/") == [kept]
    assert run.store.read(kept) == data


def test_a_marker_replaces_a_damaged_one(run: RunDirectory) -> None:
    run.store.create("corpus/DONE.json", WHOLE[:40])
    with structlog.testing.capture_logs() as logs:
        assert run.finish("corpus", marker()) == marker()
    assert len(logs) == 1
    assert run.done("corpus") == marker()
    assert len(run.store.list("corpus/DONE.damaged-")) == 1


def test_a_marker_published_while_a_damaged_one_is_set_aside_stays(run: RunDirectory) -> None:
    run.store.create("corpus/DONE.json", WHOLE[:40])
    write = run.store.write

    def meanwhile(name: str, data: bytes) -> None:
        write(name, data)
        write("corpus/DONE.json", WHOLE)

    if run.store.url.startswith("gs://"):
        pytest.skip("fake-gcs-server ignores the condition on a delete")
    run.store.write = meanwhile  # type: ignore[method-assign]
    assert run.done("corpus") == marker()


def test_fields_of_a_later_version_do_not_make_a_marker_unreadable(run: RunDirectory) -> None:
    run.store.create("corpus/DONE.json", json.dumps({**json.loads(WHOLE), "joules": 1}).encode())
    assert run.done("corpus") == marker()


def test_a_fingerprint_changes_with_any_field() -> None:
    fingerprints = {m.fingerprint() for m in (marker(), marker(B), marker(metrics={"x": 1}), marker(attempt=2))}
    assert len(fingerprints) == 4
    assert marker().fingerprint() == marker().fingerprint()
