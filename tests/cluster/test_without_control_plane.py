"""The parts of a simulated node that are functions of their input."""

import json
import os
from pathlib import Path

import pytest

from tests.cluster.accelerators import tpu_environment
from tests.cluster.access import Json
from tests.cluster.binaries import NoGoToolchain, binaries
from tests.cluster.built import add_built, describe_built
from tests.cluster.containers import inside
from tests.cluster.environment import Unresolved, entry, expand, field_of
from tests.cluster.images import Image, Images
from tests.cluster.names import hosts_file, records
from tests.cluster.node import v6e_node
from tests.cluster.plans import unsupported
from tests.images.build import Image as Built


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)/$(B)", "1/2"),
        ("$$(A)", "$(A)"),
        ("$(NOBODY) $A ${A}", "$(NOBODY) $A ${A}"),
        ("100$", "100$"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, expected: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expected


def test_a_pods_command_replaces_the_entrypoint_with_its_arguments_and_its_args_only_those() -> None:
    image = Image(Path("/"), {"Entrypoint": ["/entry"], "Cmd": ["default"]})
    assert image.command(None, None) == ["/entry", "default"]
    assert image.command(None, ["mine"]) == ["/entry", "mine"]
    assert image.command(["other"], None) == ["other"]


def test_an_image_is_found_by_tag_and_by_digest_and_by_nothing_else() -> None:
    images = Images()
    digest = images.add(Image(Path("/a")), "host:5000/nano/jobs:1")
    for known in ("host:5000/nano/jobs:1", f"host:5000/nano/jobs@{digest}", f"host:5000/nano/jobs:9@{digest}"):
        assert images.find(known) is not None
    for unknown in ("host:5000/nano/jobs", "host:5000/nano/jobs:2", f"nano/jobs@{digest}", "jobs:1"):
        assert images.find(unknown) is None


def test_a_folder_describes_its_images_and_those_that_come_later(tmp_path: Path) -> None:
    images = Images()
    images.read(tmp_path)
    (tmp_path / "jobs").mkdir()
    described = {"names": ["jobs:1"], "root": "jobs", "config": {"User": "1000:1001", "Env": ["A=b=c"]}}
    (tmp_path / "jobs.json").write_text(json.dumps(described))
    images.read(tmp_path)
    found = images.find("jobs:1")
    assert found is not None and found.root == tmp_path / "jobs"
    assert found.user() == (1000, 1001) and found.environment == {"A": "b=c"}


def test_an_image_of_ours_is_run_as_it_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Built(
        "localhost/nanocode/cpu:test", "sha256:abc", tmp_path, (), 1, 1, "1000:1000", {"A": "b"}, ("python", "-m"), ("jobs",), "/app", {}
    )  # fmt: skip
    monkeypatch.setattr("tests.cluster.built.build", lambda target: made)
    described, added = Images(), Images()
    assert describe_built(tmp_path / "images", "cpu") == [made.reference]
    described.read(tmp_path / "images")
    assert add_built(added, "cpu") == {"cpu": "localhost/nanocode/cpu@sha256:abc"}
    for images in (described, added):
        found = images.find("localhost/nanocode/cpu@sha256:abc")
        assert found is not None and found == images.find(made.reference)
        assert (found.root, found.user(), found.environment) == (tmp_path, (1000, 1000), {"A": "b"})
        assert (found.command(None, None), found.config["WorkingDir"]) == (["python", "-m", "jobs"], "/app")


def test_a_link_of_an_image_does_not_lead_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "run").symlink_to("/run")
    (tmp_path / "up").symlink_to("../../..")
    assert inside(tmp_path, "/var/run/secrets") == "/run/secrets"
    assert inside(tmp_path, "/up/etc") == "/etc"


def test_a_missing_key_is_an_error_unless_it_is_optional() -> None:
    def lookup(kind: str, name: str) -> dict[str, dict[str, str]] | None:
        return {"data": {"there": "MQ=="}} if name == "keys" else None

    assert entry("secrets", {"name": "keys", "key": "there"}, lookup) == "1"
    assert entry("secrets", {"name": "keys", "key": "gone", "optional": True}, lookup) is None
    with pytest.raises(Unresolved, match='secret "other" not found'):
        entry("secrets", {"name": "other", "key": "there"}, lookup)
    with pytest.raises(Unresolved, match="couldn't find key gone in secret keys"):
        entry("secrets", {"name": "keys", "key": "gone"}, lookup)


def test_the_downward_api_gives_only_fields_that_it_has() -> None:
    pod = {"metadata": {"labels": {"a/b": "c"}}, "spec": {}, "status": {"podIP": "127.64.0.1"}}
    assert field_of(pod, "metadata.labels['a/b']") == "c"
    assert field_of(pod, "status.podIPs") == "127.64.0.1"
    with pytest.raises(Unresolved, match="spec.containers"):
        field_of(pod, "spec.containers")


def pod(name: str, address: str, **status: object) -> dict[str, dict[str, object]]:
    return {
        "metadata": {"name": name, "namespace": "ns", "labels": {"job": "j"}},
        "spec": {"hostname": name, "subdomain": "peers"},
        "status": {"podIP": address, "phase": "Running", **status},
    }


@pytest.mark.parametrize(
    ("publish", "status", "named"),
    [
        (True, {}, True),
        (False, {}, False),
        (False, {"conditions": [{"type": "Ready", "status": "True"}]}, True),
        (True, {"phase": "Failed"}, False),
        (True, {"podIP": ""}, False),
    ],
)
def test_a_pod_has_a_name_while_its_service_publishes_it(publish: bool, status: dict[str, object], named: bool) -> None:
    service = {
        "metadata": {"name": "peers", "namespace": "ns"},
        "spec": {"clusterIP": "None", "selector": {"job": "j"}, "publishNotReadyAddresses": publish},
    }
    found = records([pod("j-0", "127.64.0.1", **status)], [service])
    assert (("j-0.peers", "127.64.0.1") in found.get("ns", [])) is named
    assert (" j-0.peers j-0.peers.ns " in hosts_file(pod("j-1", "127.64.0.2"), "127.64.0.2", found)) is named


def test_a_container_that_asks_for_no_chips_is_told_nothing_about_them() -> None:
    asks = {"resources": {"limits": {"google.com/tpu": "8"}}}
    lone: Json = {"metadata": {}, "spec": {}}
    assert tpu_environment(lone, {}, api=None) == {}  # type: ignore[arg-type]
    assert tpu_environment(lone, asks, api=None) == {  # type: ignore[arg-type]
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }


def test_what_a_simulated_node_would_leave_out_is_named() -> None:
    main: Json = {"lifecycle": {"preStop": {}}, "livenessProbe": {}}
    assert unsupported({"spec": {"containers": [{"livenessProbe": {}}]}}) == ""
    assert (
        unsupported({"spec": {"containers": [main], "hostNetwork": True}}) == "lifecycle hooks, the host's namespaces"
    )


@pytest.mark.parametrize(("machine", "chips"), [("ct6e-standard-8t", "8"), ("ct6e-standard-4t", "4")])
def test_a_v6e_node_offers_the_chips_of_its_machine_type_and_keeps_other_pods_away(machine: str, chips: str) -> None:
    node = v6e_node("n", machine=machine)
    assert node.offers()["google.com/tpu"] == chips
    assert {key for key, _, _ in node.taints} == {"google.com/tpu", "cloud.google.com/gke-spot"}
    assert not any(key == "cloud.google.com/gke-spot" for key, _, _ in v6e_node("n", spot=False).taints)


@pytest.mark.parametrize("has_old_go", [False, True])
def test_a_machine_without_a_go_that_can_build_says_so_in_a_sentence(
    has_old_go: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_old_go:
        go = tmp_path / "go"
        go.write_text("#!/bin/sh\necho 'go: go.mod requires go >= 1.26.0 (running go 1.21.0)' >&2\nexit 1\n")
        go.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path)]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(NoGoToolchain, match=r"install Go 1\.26\.0 or newer") as problem:
        binaries(progress=lambda line: None)
    assert "\n" not in str(problem.value)
    assert ("running go 1.21.0" in str(problem.value)) is has_old_go
