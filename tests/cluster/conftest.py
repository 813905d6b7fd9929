"""The cluster's tests run only when they are asked for: `make test-cluster`, or `pytest -m cluster`."""

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import gcs
from tests.cluster.access import Json
from tests.cluster.binaries import NoGoToolchain
from tests.cluster.built import add_built
from tests.cluster.cluster import Cluster, Missing
from tests.cluster.images import Image, Images
from tests.cluster.node import cpu_node, v6e_node
from tests.cluster.releases import Release, laptop_values
from tests.images import build

# The API server is restarted on purpose, and everybody asks again.
logging.getLogger("urllib3").setLevel(logging.ERROR)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "cluster" in config.option.markexpr:
        items.sort(key=lambda item: item.get_closest_marker("last") is not None)
        return
    left_out = [item for item in items if item.get_closest_marker("cluster")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def tools_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """This machine's own /usr as an image, with a user 1000 in it: enough to test the node itself."""
    return host_image(tmp_path_factory.mktemp("image"))


def host_image(root: Path) -> Image:
    for name in ("usr", "etc", "proc", "dev", "run", "tmp", "var", "srv"):
        (root / name).mkdir()
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    # As in Debian's images: an absolute link, which must not lead out of the image.
    (root / "var" / "run").symlink_to("/run")
    (root / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\nnano:x:1000:1000::/:/bin/sh\n")
    config = {"User": "1000", "Env": ["FROM_IMAGE=yes"], "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo the default"]}
    return Image(root, config, from_host=("/usr",))


@pytest.fixture(scope="session")
def cluster(tools_image: Image, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster with one ordinary node; tests add the nodes that they do something to. Its logs stay if one failed."""
    images = Images()
    images.add(tools_image, "tools:1")
    try:
        made = Cluster(images)
    except (NoGoToolchain, Missing) as problem:
        pytest.skip(str(problem))
    with made:
        made.add(cpu_node("cpu-0"))
        yield made
        made.keep = request.session.testsfailed > 0


def make_namespace(cluster: Cluster, name: str) -> str:
    """One that admits only pods of the restricted Pod Security standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    return name


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    name = make_namespace(cluster, f"test-{uuid.uuid4().hex[:8]}")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def values(cluster: Cluster) -> Json:
    """Of a run on simulated v6e nodes whose jax computes on CPUs, over an emulated bucket."""
    if lack := build.missing():
        pytest.skip(lack)
    add_built(cluster.images, "controller", "cpu")
    return laptop_values(gcs.server())


@pytest.fixture(scope="session")
def runs(cluster: Cluster) -> str:
    """The namespace of most runs."""
    return make_namespace(cluster, "runs")


@pytest.fixture(scope="session")
def quiet(cluster: Cluster, runs: str, values: Json) -> Release:
    """A run that nothing happened to, done; `told` is what `kubectl get -w` said meanwhile."""
    cluster.add(v6e_node("v6e-0"))
    release = Release(cluster, runs, "quiet", values)
    release.install()
    with release.watched():
        release.wait_for("Succeeded")
    return release
