"""What `helm install` would apply: it is valid, restricted, least-privileged, and says what the user said."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.rendering import (
    BASE,
    CHART,
    CRD,
    PRESETS,
    bridge,
    helm,
    one,
    pod,
    pods,
    program,
    refused,
    render,
    templates,
    write_schemas,
)

SLICES = (("d24", "v6e-16"), ("d24", "v6e-32"))
ALL_FILES = (*((preset,) for preset in PRESETS), *SLICES)
MONITORING = ("monitoring.coreos.com/v1/ServiceMonitor", "monitoring.googleapis.com/v1/PodMonitoring")
OPERATORS = ("ServiceMonitor", "PodMonitoring")
"""Kinds of other projects, whose schemas are not here."""
SPEC = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
FULL: dict[str, Any] = {
    "budgetDollars": 40,
    "provisioner": "gke",
    "zones": ["us-east5-b", "us-east5-a"],
    "dollarsPerSliceHour": {"us-east5-b": 4.32},
    "soul": "1. Be brief.\n",
    "queueName": "team-a",
    "secrets": {"teacherKey": "teacher", "hfToken": "hub"},
    "image": {**BASE["image"], "pullSecrets": ["registry"]},  # type: ignore[dict-item]
    "ordinaryNodes": {"nodeSelector": {"pool": "workers"}, "tolerations": [{"key": "pool", "operator": "Exists"}]},
    "serviceAccounts": {
        "controller": {"googleServiceAccount": "nanocode-controller@my-project.iam.gserviceaccount.com"},
        "trainer": {"googleServiceAccount": "nanocode-trainer@my-project.iam.gserviceaccount.com"},
    },
}
NVIDIA = {"accelerator": "nvidia", "provisioner": "existing", "nvidia": {"nodeSelector": {"gpu": "h100"}}}


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    folder = tmp_path_factory.mktemp("schemas")
    return folder, write_schemas(folder)


def conforms(objects: list[dict[str, Any]], schemas: tuple[Path, bool], tmp_path: Path) -> None:
    """By kubeconform: Kubernetes' kinds where its schemas are there, ours always."""
    folder, complete = schemas
    stages = [document for pair in templates(objects).values() for document in pair]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all([*objects, *stages, CRD]))
    argv = [program("kubeconform"), "-output", "json", "-summary", "-schema-location"]
    argv += [str(folder / "{{.ResourceKind}}{{.KindSuffix}}.json")]
    argv += ["-skip", ",".join(OPERATORS)] if complete else ["-ignore-missing-schemas"]
    done = subprocess.run([*argv, str(tmp_path / "all.yaml")], capture_output=True, text=True, check=False)
    said = json.loads(done.stdout)
    assert done.returncode == 0, [each.get("msg") for each in said["resources"]]
    documents = [each for each in [*objects, *stages, CRD] if each["kind"] not in OPERATORS]
    assert said["summary"]["valid"] == (len(documents) if complete else 1)


@pytest.mark.parametrize("files", ALL_FILES, ids="+".join)
def test_a_preset_passes_helms_strict_lint(files: tuple[str, ...]) -> None:
    done = helm("lint", BASE, files, "--strict")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("files", ALL_FILES, ids="+".join)
def test_a_preset_renders_what_the_schemas_of_kubernetes_and_of_the_trainingrun_take(
    files: tuple[str, ...], schemas: tuple[Path, bool], tmp_path: Path
) -> None:
    conforms(render(files=files), schemas, tmp_path)


def test_so_does_every_value_at_once(schemas: tuple[Path, bool], tmp_path: Path) -> None:
    conforms(render(FULL, apis=MONITORING), schemas, tmp_path)
    conforms(render(FULL | NVIDIA), schemas, tmp_path)


def test_the_schemas_refuse_what_the_api_server_would(schemas: tuple[Path, bool], tmp_path: Path) -> None:
    objects = render()
    one(objects, "TrainingRun")["spec"]["presett"] = "d24"
    with pytest.raises(AssertionError, match="presett"):
        conforms(objects, schemas, tmp_path)
    if schemas[1]:
        objects = render()
        one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["arguments"] = []
        with pytest.raises(AssertionError, match="arguments"):
            conforms(objects, schemas, tmp_path)


@pytest.mark.parametrize(
    "values", [{}, FULL, {"provisioner": "queued-resource"}], ids=["plain", "full", "queued-resource"]
)
def test_every_pod_meets_the_restricted_pod_security_standard_and_has_limits(values: dict[str, Any]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and a read-only root."""
    for name, spec in pods(render(values)).items():
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert {next(iter(set(each) - {"name"})) for each in spec["volumes"]} <= {"emptyDir", "configMap"}, name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"], name


@pytest.mark.parametrize("values", [{}, FULL, FULL | NVIDIA], ids=["plain", "full", "nvidia"])
def test_no_pod_stays_on_a_node_that_is_about_to_go(values: dict[str, Any]) -> None:
    for name, spec in pods(render(values)).items():
        tolerated = [each.get("key") for each in spec.get("tolerations", [])]
        assert None not in tolerated, name  # without a key everything is tolerated
        assert "cloud.google.com/impending-node-termination" not in tolerated, name
    taint = {"key": "cloud.google.com/impending-node-termination", "operator": "Exists"}
    assert "/ordinaryNodes/tolerations/0/key" in refused({"ordinaryNodes": {"tolerations": [taint]}})


def test_only_pods_that_speak_to_the_api_server_have_a_token() -> None:
    objects = render()
    with_token = {name for name, spec in pods(objects).items() if spec["automountServiceAccountToken"]}
    assert with_token == {"mine-controller", "mine-end", "mine-check"}
    assert all(not each["automountServiceAccountToken"] for each in objects if each["kind"] == "ServiceAccount")


def test_the_trainer_may_do_nothing_in_the_api_and_the_controller_nothing_outside_its_namespace_but_see_nodes() -> None:
    objects = render()
    subjects = [s for each in objects if each["kind"].endswith("Binding") for s in each["subjects"]]
    assert {each["name"] for each in subjects} == {"mine-controller", "mine-end"}
    assert one(objects, "ClusterRole")["rules"] == [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list"]}
    ]
    for role in (each for each in objects if each["kind"] in ("Role", "ClusterRole")):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            assert not {"secrets", "roles", "pods/exec"} & set(rule["resources"])


@pytest.mark.parametrize("provisioner", ["existing", "gke", "queued-resource", "auto"])
def test_the_controllers_permissions_are_those_that_helm_test_asks_about(provisioner: str) -> None:
    check = pytest.importorskip("deploy.kubernetes.check")
    needed = (*check.NEEDED, *check.NEEDED_BY.get(provisioner, ()))
    asked = {(group, f"{kind}/{part}" if part else kind, verb) for group, kind, part, verbs in needed for verb in verbs}
    roles = [
        each
        for each in render({"provisioner": provisioner})
        if each["kind"] in ("Role", "ClusterRole") and each["metadata"]["name"] != "mine-end"
    ]
    rules = [rule for role in roles for rule in role["rules"]]
    granted = {
        (group, kind, verb) for r in rules for group in r["apiGroups"] for kind in r["resources"] for verb in r["verbs"]
    }
    assert granted == asked


def test_a_run_may_touch_no_other_runs_trainingrun() -> None:
    rules = [
        r for each in render() if each["kind"] == "Role" for r in each["rules"] if "nanocode.dev" in r["apiGroups"]
    ]
    assert all(rule["resourceNames"] == ["mine"] or rule["verbs"] == ["list"] for rule in rules)


def test_what_users_and_the_controller_write_is_not_rendered() -> None:
    run = one(render(FULL), "TrainingRun")
    assert not {"suspend", "cancel", "retry"} & set(run["spec"])
    assert "status" not in run


def test_settings_arrive_as_they_were_given_with_their_types() -> None:
    settings = {
        "seed": 123456789012,
        "corpus.tokens": 10740000000,
        "corpus.sources": ["embedded", {"location": "gs://b/x", "share": 0.1, "kind": "code"}],
        "pretrain": {"steps": 100, "checkpoint_minutes": 0.5, "remat": False},
        "synth.teacher.model": "4.1",
        "synth.critic": True,
        "base_eval.core_bundle": None,
        "sft.matrix_rate": 1e-05,
    }
    found = one(render({"settings": settings}, files=["demo"]), "TrainingRun")["spec"]["settings"]
    assert found == settings
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in settings.items()}


@pytest.mark.parametrize(("provisioner", "asked"), [("existing", False), ("gke", True), ("queued-resource", True)])
def test_slices_are_asked_for_as_the_pods_select_them(provisioner: str, asked: bool) -> None:
    files, given = ["d24", "v6e-16"], {"seed": 7, "cloud.owner": "ada"}
    found = one(render({"provisioner": provisioner, "spot": False, "settings": given}, files), "TrainingRun")
    slice = {"cloud.machine_type": "ct6e-standard-4t", "cloud.topology": "4x4", "cloud.spot": False}
    slice["cloud.accelerator_type"] = "v6e-16"  # what the Cloud TPU API goes by
    settings = found["spec"]["settings"]
    assert settings.items() >= (given | (slice if asked else {})).items()
    assert asked or not slice.keys() & settings.keys()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"budgetDolars": 5}, "'budgetDolars'"),
        ({"image": {"repo": "x"}}, "'repo'"),
        ({"stages": {"pretrain": {"chips": 8}}}, "'chips'"),
        ({"stages": {"rl": {}}}, "'rl'"),
        ({"settings": {"pretrain steps": 5}}, "'pretrain steps'"),
        ({"bucket": "my-bucket"}, "'/bucket'"),
        ({"runPath": "a/../b"}, "'/runPath'"),
        ({"runPath": "."}, "'/runPath'"),
        ({"bucket": ""}, "bucket is not set: give --set bucket=gs://NAME"),
        ({"image": {"controllerRepository": "x"}}, "image.repository is not set: give --set"),
        ({"preset": "d13"}, "'/preset'"),
        ({"accelerator": "gpu"}, "'/accelerator'"),
        ({"budgetDollars": 0}, "'/budgetDollars'"),
        ({"terminationGraceSeconds": "30"}, "'/terminationGraceSeconds'"),
        (
            {"accelerator": "none", "provisioner": "queued-resource"},
            "provisioner queued-resource asks for TPU slices, and accelerator is none: set provisioner to existing",
        ),
        (
            {"accelerator": "nvidia", "provisioner": "gke"},
            "provisioner gke asks for TPU slices, and accelerator is nvidia",
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(values: dict[str, Any], said: str) -> None:
    assert said in refused(values)


def test_the_schema_is_closed_everywhere_and_knows_every_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def walk(node: Any, path: str) -> None:
        if isinstance(node, list):
            node = dict(enumerate(node))
        if isinstance(node, dict):
            if node.get("type") == "object":
                # A map says what its values are; anything else takes the keys it names alone.
                others = node["additionalProperties"]
                assert others is False or isinstance(others, dict), path
            for key, each in node.items():
                walk(each, f"{path}/{key}")

    walk(schema, "")
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) == set(values)


def test_every_value_says_what_it_is() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    sections: list[tuple[int, str]] = []
    for before, line in zip(["", *lines], lines, strict=False):
        found = re.match(r"( *)([\w-]+):(.*)", line)
        if not found:
            continue
        depth = len(found[1])
        sections = [each for each in sections if each[0] < depth]
        inside = [name for _, name in sections]
        sections.append((depth, found[2]))
        # Stages are described above the first of them, resources are Kubernetes' own.
        explained = inside[1:] if inside[:1] == ["stages"] else "resources" in inside
        if not explained and (found[3].strip() or inside[:1] == ["stages"]):
            assert before.strip().startswith("# -- "), line


def test_the_definition_is_structural() -> None:
    """https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema"""

    def walk(node: dict[str, Any], path: str) -> None:
        assert "type" in node, path
        assert not ("properties" in node and "additionalProperties" in node), path
        for key, each in node.get("properties", {}).items():
            walk(each, f"{path}.{key}")
        for key in ("items", "additionalProperties"):
            if isinstance(node.get(key), dict):
                walk(node[key], f"{path}.{key}")
        assert (node["type"] == "array") == ("items" in node), path

    walk(CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "")


def test_preset_and_run_directory_are_immutable_and_nothing_else() -> None:
    immutable = [
        key
        for key, each in SPEC.items()
        if any(r["rule"] == "self == oldSelf" for r in each.get("x-kubernetes-validations", []))
    ]
    assert immutable == ["preset", "runDirectory"]


def test_kubectl_get_shows_what_a_user_wants_to_know_first() -> None:
    columns = {each["name"]: each["jsonPath"] for each in CRD["spec"]["versions"][0]["additionalPrinterColumns"]}
    wanted = ["Preset", "Stage", "Step", "Loss", "MFU", "Preemptions", "Cost", "Age"]
    assert [name for name in columns if name in wanted] == wanted
    properties = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    for name, path in columns.items():
        _, section, field = path.split(".", 2)
        assert section == "metadata" or field in properties[section]["properties"], name


def test_uninstalling_ends_the_run_first_and_leaves_no_hook_behind() -> None:
    hooks = [each for each in render() if each["metadata"].get("annotations", {}).get("helm.sh/hook") == "pre-delete"]
    weights = {each["kind"]: int(each["metadata"]["annotations"]["helm.sh/hook-weight"]) for each in hooks}
    assert set(weights) == {"ServiceAccount", "Role", "RoleBinding", "Job"}
    assert all(weights[kind] < weights["Job"] for kind in weights if kind != "Job")
    for each in hooks:
        policy = set(each["metadata"]["annotations"]["helm.sh/hook-delete-policy"].split(","))
        assert policy == {"before-hook-creation", "hook-succeeded", "hook-failed"}
    job = one(hooks, "Job")
    assert job["spec"]["template"]["spec"]["containers"][0]["args"][-2:] == ["--timeout", "540"]
    assert job["spec"]["activeDeadlineSeconds"] < 600  # what `make undeploy` gives helm


@pytest.mark.parametrize("provisioner", ["existing", "gke", "queued-resource", "auto"])
def test_node_pools_that_are_made_for_a_run_outlive_its_controller_by_a_bound(provisioner: str) -> None:
    objects = render({"provisioner": provisioner, "budgetDollars": 40})
    watches = [each for each in objects if each["kind"] == "CronJob"]
    assert bool(watches) == (provisioner in ("gke", "auto"))
    for each in watches:
        spec = pod(each)
        assert spec["serviceAccountName"] == "mine-controller"
        assert not spec["automountServiceAccountToken"], "it asks Google, not this cluster"
        command = ["python", "-m", "deploy.provisioners.dead_man", "--run-dir", "gs://my-bucket/mine"]
        assert spec["containers"][0]["args"] == command
        assert (each["spec"]["schedule"], each["spec"]["concurrencyPolicy"]) == ("*/10 * * * *", "Forbid")


@pytest.mark.parametrize("provisioner", ["existing", "gke", "queued-resource", "auto"])
def test_a_stage_on_tpu_vms_has_its_log_mirrored_by_an_ordinary_pod(provisioner: str) -> None:
    found = bridge(render({"provisioner": provisioner}))
    assert (found is not None) == (provisioner in ("queued-resource", "auto"))
    if found is not None:
        spec = pod(found)
        assert spec["containers"][0]["image"].startswith("registry/controller")
        assert "google.com/tpu" not in str(spec["containers"][0]["resources"])
        assert not spec["automountServiceAccountToken"] and spec["serviceAccountName"] == "mine-trainer"


def test_the_controller_is_alone_on_nodes_that_stay() -> None:
    deployment = one(render(), "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    terms = pods(render())["mine-controller"]["affinity"]["nodeAffinity"]
    (term,) = terms["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    kept_off = {each["key"] for each in term["matchExpressions"] if each["operator"] == "DoesNotExist"}
    assert kept_off == {"cloud.google.com/gke-spot", "cloud.google.com/gke-tpu-accelerator"}


@pytest.mark.parametrize("api", MONITORING)
def test_the_controller_is_scraped_where_the_cluster_knows_how(api: str) -> None:
    kind = api.rpartition("/")[2]
    assert kind not in {each["kind"] for each in render()}
    monitor = one(render(apis=[api]), kind)
    labels = one(render(), "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert kind not in {each["kind"] for each in render({"monitoring": False}, apis=[api])}


@pytest.mark.parametrize("release", ["on", "null", "y"])
def test_a_release_whose_name_yaml_would_take_for_something_else_keeps_its_name(release: str) -> None:
    objects = render(release=release)
    for each in [*objects, *(document for pair in templates(objects).values() for document in pair)]:
        assert all(isinstance(value, str) for value in each["metadata"]["labels"].values())
    assert one(objects, "TrainingRun")["metadata"]["name"] == release


def test_two_releases_share_no_name() -> None:
    first, second = ({(e["kind"], e["metadata"]["name"]) for e in render(release=name)} for name in ("a", "b"))
    assert not first & second


def test_google_service_accounts_are_named_where_workload_identity_looks() -> None:
    objects = render(FULL)
    for role in ("controller", "trainer"):
        annotations = one(objects, "ServiceAccount", f"mine-{role}")["metadata"]["annotations"]
        assert annotations["iam.gke.io/gcp-service-account"] == f"nanocode-{role}@my-project.iam.gserviceaccount.com"


def test_the_jobs_image_is_named_by_digest_where_one_is_given() -> None:
    digest = "sha256:" + "a" * 64
    objects = render({"image": {**BASE["image"], "digest": digest}})  # type: ignore[dict-item]
    assert one(objects, "TrainingRun")["spec"]["image"] == f"registry/jobs@{digest}"
