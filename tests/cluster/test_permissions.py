"""What the service accounts were used for, over all tests of the session."""

import re
from pathlib import Path

import pytest
import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.releases import CHART, Release

pytestmark = [pytest.mark.cluster, pytest.mark.last]

ANYBODY = {("create", "authorization.k8s.io", "selfsubjectaccessreviews")}
"""What Kubernetes lets every user do: ask what they may do."""


@pytest.fixture
def whole_session(request: pytest.FixtureRequest) -> None:
    """Of a selection nothing can be said."""
    there = {path.name for path in Path(__file__).parent.glob("test_*.py") if "mark.cluster" in path.read_text()}
    if lacking := there - {item.path.name for item in request.session.items}:
        pytest.skip(f"without {', '.join(sorted(lacking))}")


def test_the_controller_does_what_its_roles_allow_and_all_of_it(
    cluster: Cluster, quiet: Release, whole_session: None
) -> None:
    done = {
        (one.verb, one.group, one.resource)
        for one in cluster.control_plane.audit()
        if re.fullmatch(r"system:serviceaccount:[^:]+:.+-controller", one.user) and ":kube-system:" not in one.user
    }
    words = [*quiet.set_words(), "--show-only", "templates/rbac.yaml"]
    rendered = cluster.command("helm", "template", "any", str(CHART), *words)
    allowed = {
        (verb, group, resource)
        for role in yaml.safe_load_all(rendered)
        for rule in (role or {}).get("rules", ())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert done - ANYBODY == allowed


def test_the_trainers_account_asks_for_nothing(cluster: Cluster, quiet: Release) -> None:
    asked = [one for one in cluster.control_plane.audit() if re.search(r":[^:]+-trainer$", one.user)]
    assert asked == []
    for pod in quiet.objects("pods"):
        assert pod["spec"]["serviceAccountName"] == "quiet-trainer"
        assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["tmp", "shm"], "it has no token"
