"""What comes back from an API server that is slow, crowded, broken, or of another opinion."""

import time
from collections.abc import Callable

import pytest

from deploy.controller.backend import Unreachable
from deploy.kubernetes.client import Cluster, Conflict, Forbidden, Invalid
from tests.deploy.kubernetes.api_server import ApiServer

pytestmark = pytest.mark.slow

MakeCluster = Callable[..., Cluster]


def pod(name: str, run: str = "r") -> dict[str, object]:
    return {"metadata": {"name": name, "labels": {"nanocode.dev/run": run}}}


def test_a_list_is_whole_however_many_pages_it_takes(server: ApiServer, cluster: MakeCluster) -> None:
    for number in range(7):
        server.put("pods", pod(f"pod-{number}"))
    server.put("pods", pod("other", run="another"))
    found = cluster(page=3).list("pods", {"nanocode.dev/run": "r"})
    assert [one["metadata"]["name"] for one in found] == [f"pod-{number}" for number in range(7)]
    assert server.requests == [("list", "pods")] * 3


def test_a_silent_server_is_unreachable_after_the_timeout_and_is_asked_once(
    server: ApiServer, cluster: MakeCluster
) -> None:
    server.trouble = lambda verb, resource: time.sleep(5)  # type: ignore[func-returns-value]
    began = time.monotonic()
    with pytest.raises(Unreachable, match="the API server does not answer \\(list pods: ReadTimeoutError\\)"):
        cluster(timeout=(1.0, 0.3)).list("pods", {})
    assert time.monotonic() - began < 3
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_unreachable_at_once(server: ApiServer, cluster: MakeCluster) -> None:
    server.close()
    began = time.monotonic()
    with pytest.raises(Unreachable, match="does not answer"):
        cluster().get("trainingruns", "r")
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (500, Unreachable, "the API server answered 500"),
        (429, Unreachable, "the API server answered 429"),
        (403, Forbidden, "check the service account's Role"),
        (409, Conflict, "create jobs"),
        (422, Invalid, "trouble that a test has asked for"),
    ],
)
def test_an_answer_means_what_its_status_says(
    server: ApiServer, cluster: MakeCluster, status: int, error: type[Exception], told: str
) -> None:
    server.trouble = lambda verb, resource: status
    with pytest.raises(error, match=told):
        cluster().create("jobs", {"metadata": {"name": "a"}})


def test_what_is_gone_is_none_and_need_not_be_deleted(server: ApiServer, cluster: MakeCluster) -> None:
    mine = cluster()
    assert mine.get("nodes", "n") is None
    mine.delete("jobs", "j")


def test_another_object_of_the_same_name_is_not_deleted(server: ApiServer, cluster: MakeCluster) -> None:
    server.put("pods", pod("a"))
    cluster().delete("pods", "a", uid="an earlier one")
    assert server.names("pods") == ["a"]


def test_a_status_over_a_newer_version_is_refused(server: ApiServer, cluster: MakeCluster) -> None:
    mine = cluster()
    read = server.put("trainingruns", {"metadata": {"name": "r"}, "spec": {}})
    version = read["metadata"]["resourceVersion"]
    body = {"metadata": {"resourceVersion": version}, "status": {"phase": "Running"}}
    mine.patch_run("r", {"spec": {"suspend": True}})
    with pytest.raises(Conflict):
        mine.patch_run_status("r", body)
    assert "status" not in server.objects["trainingruns", "r"]
