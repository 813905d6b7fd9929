"""An API server on loopback, and clients for it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy.kubernetes.client import Cluster, at
from tests.deploy.kubernetes.api_server import ApiServer


@pytest.fixture
def server() -> Iterator[ApiServer]:
    one = ApiServer()
    yield one
    one.close()


@pytest.fixture
def cluster(server: ApiServer) -> Callable[..., Cluster]:
    """Makes clients; `timeout` and `page` as `Cluster` takes them."""
    from kubernetes import client

    def make(**how: Any) -> Cluster:
        configuration = client.Configuration()
        configuration.host = server.url
        return at("ns", configuration, **how)

    return make
