"""`make deploy-*` and what a user wants of a run, against programs that stand in for gcloud, kubectl and helm."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.deploy.gcp.conftest import CONTEXT, DIGEST, Cloud

pytestmark = pytest.mark.slow


def helm_values(cloud: Cloud) -> dict[str, object]:
    values: dict[str, object] = yaml.safe_load(cloud.stdin("upgrade"))
    return values


def changes(asked: list[list[str]]) -> list[list[str]]:
    """The commands that change something."""
    words = {"apply", "upgrade", "patch", "uninstall", "create", "add-iam-policy-binding"}
    return [argv for argv in asked if words & set(argv)]


def test_a_deployment_applies_the_definition_then_the_namespace_then_the_release(cloud: Cloud) -> None:
    cloud.healthy()
    done = cloud.run("deploy", "d24")
    assert done.returncode == 0, done.stderr
    definition, namespace, *identities, release = changes(cloud.asked())
    assert definition[-1] == "charts/nanocode/crds/trainingrun.yaml"
    assert namespace[-2:] == ["--filename", "-"]
    assert [argv[0] for argv in identities] == ["gcloud", "gcloud"]
    assert release[:4] == ["helm", "upgrade", "--install", "d24"]
    assert "pod-security.kubernetes.io/enforce" in cloud.stdin("apply", "-")


def test_every_command_names_the_cluster_it_means(cloud: Cloud) -> None:
    cloud.healthy()
    cloud.run("deploy", "d24")
    for argv in cloud.asked():
        if argv[0] in ("kubectl", "helm") and not {"get-contexts", "version"} & set(argv):
            assert {f"--context={CONTEXT}", f"--kube-context={CONTEXT}"} & set(argv)


def test_the_release_gets_the_image_by_the_digest_that_the_registry_says(cloud: Cloud) -> None:
    cloud.healthy()
    cloud.run("deploy", "d24")
    image = helm_values(cloud)["image"]
    assert isinstance(image, dict)
    assert image["digest"] == DIGEST
    assert (image["repository"], image["tag"]) == ("us-east5-docker.pkg.dev/my-project/nanocode/jobs-tpu", "abc")


def test_what_the_file_says_reaches_the_chart(cloud: Cloud, tmp_path: Path) -> None:
    cloud.healthy()
    soul = tmp_path / "SOUL.md"
    soul.write_text("1. Be brief: `ü`.\n")
    cloud.env |= {"BUDGET_DOLLARS": "40", "DOLLARS_PER_SLICE_HOUR": "4.32", "SOUL": str(soul)}
    cloud.answer("get", "secret", "teacher", out="TEACHER_API_KEY ")
    cloud.env["TEACHER_SECRET"] = "teacher"
    assert cloud.run("deploy", "d12").returncode == 0
    values = helm_values(cloud)
    assert values["bucket"] == "gs://my-bucket"
    assert values["budgetDollars"] == 40
    assert values["dollarsPerSliceHour"] == {"pool": 4.32}
    assert values["soul"] == "1. Be brief: `ü`.\n"
    assert values["secrets"] == {"teacherKey": "teacher", "hfToken": ""}


def test_a_budget_without_a_price_is_refused(cloud: Cloud, tmp_path: Path) -> None:
    cloud.healthy()
    cloud.env["BUDGET_DOLLARS"] = "40"
    done = cloud.run("deploy", "d12")
    assert done.returncode != 0
    assert "BUDGET_DOLLARS=40 cannot be kept while nobody has said what a slice costs" in done.stderr
    assert not cloud.asked()
    prices = tmp_path / "prices.yaml"
    prices.write_text("dollarsPerSliceHour: {pool: 4.32}\n")
    cloud.env["VALUES"] = str(prices)
    assert cloud.run("deploy", "d12").returncode == 0


def test_the_demo_takes_no_slice_and_costs_none_unless_it_is_told(cloud: Cloud) -> None:
    cloud.healthy()
    cloud.env["DOLLARS_PER_SLICE_HOUR"] = "4.32"
    cloud.run("deploy", "demo")
    assert (helm_values(cloud)["accelerator"], helm_values(cloud)["dollarsPerSliceHour"]) == ("none", {"pool": 0.0})
    assert not [argv for argv in cloud.asked() if "node-pools" in argv]


@pytest.mark.parametrize("provisioner", ["gke", "queued-resource", "auto"])
def test_only_what_trains_on_tpus_asks_a_provisioner_for_them(cloud: Cloud, provisioner: str) -> None:
    cloud.healthy()
    cloud.env["PROVISIONER"] = provisioner
    assert cloud.run("deploy", "demo").returncode == 0
    demo = helm_values(cloud)
    assert (demo["accelerator"], demo["provisioner"]) == ("none", "existing")
    assert "settings" not in demo, "nobody asks the Cloud TPU API"
    cloud.forget()
    cloud.env["ACCELERATOR"] = "tpu"
    assert cloud.run("deploy", "demo").returncode == 0
    assert helm_values(cloud)["provisioner"] == provisioner


def test_a_dry_run_prints_what_would_be_applied_and_asks_helm_alone(cloud: Cloud) -> None:
    cloud.answer("template", out="kind: TrainingRun\n")
    done = cloud.run("--dry-run", "deploy", "d24")
    assert done.returncode == 0
    assert [argv[:2] for argv in cloud.asked()] == [["helm", "template"]]
    assert "--include-crds" in cloud.asked()[0]
    assert "kubectl" in done.stdout
    assert "kind: TrainingRun" in done.stdout


def old_helm(cloud: Cloud) -> None:
    cloud.answer("helm", "version", out="v3.17.9")


def no_context(cloud: Cloud) -> None:
    cloud.answer("get-contexts", out="minikube")


def no_answer(cloud: Cloud) -> None:
    cloud.answer("--raw=/readyz", code=1)


def no_bucket(cloud: Cloud) -> None:
    cloud.answer("buckets", "describe", err="ERROR: gs://my-bucket not found: 404.", code=1)


def bucket_elsewhere(cloud: Cloud) -> None:
    cloud.answer("buckets", "describe", out={"location": "EUROPE-WEST4"})


def second_bucket_elsewhere(cloud: Cloud) -> None:
    cloud.env |= {"PROVISIONER": "queued-resource", "BUCKETS": "europe-west4=gs://my-europe"}
    cloud.answer("buckets", "describe", "gs://my-europe", out={"location": "EUROPE-WEST1"})


def no_image(cloud: Cloud) -> None:
    cloud.answer("images", "describe", code=1)


def no_pool(cloud: Cloud) -> None:
    cloud.answer("node-pools", "list", out=[])


def pool_of_other_machines(cloud: Cloud) -> None:
    config = {"machineType": "ct6e-standard-4t", "spot": True}
    cloud.answer("node-pools", "list", out=[{"name": "other", "config": config, "autoscaling": {"enabled": True}}])


def no_secret(cloud: Cloud) -> None:
    cloud.env["HF_SECRET"] = "hub"
    cloud.answer("get", "secret", code=1)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (old_helm, "v3.17.9 is too old: install Helm 3.18 or newer"),
        (no_context, "get-credentials nanocode --location=us-east5-b"),
        (no_answer, "gives no answer"),
        (no_bucket, "not found: 404.): make gcp-setup"),
        (bucket_elsewhere, "is in europe-west4, the slices in us-east5"),
        (second_bucket_elsewhere, "gs://my-europe is in europe-west1, the slices in europe-west4"),
        (no_image, "jobs-tpu:abc is not there: make push IMAGE_REPOSITORY="),
        (no_pool, "no spot node of ct6e-standard-8t"),
        (pool_of_other_machines, "no spot node of ct6e-standard-8t"),
        (no_secret, "create secret generic hub --from-literal=HF_TOKEN=..."),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_changed(
    cloud: Cloud, trouble: Callable[[Cloud], None], said: str
) -> None:
    cloud.healthy()
    trouble(cloud)
    done = cloud.run("deploy", "d24")
    assert done.returncode == 78
    wrong = [line for line in done.stdout.splitlines() if line.startswith("WRONG")]
    assert any(said in line for line in wrong), done.stdout
    assert changes(cloud.asked()) == []


@pytest.mark.parametrize(
    ("provisioner", "said"),
    [
        ("existing", "8 chips of Compute Engine's preemptible TPU v6e quota in us-east5"),
        ("queued-resource", "8 spot chips of the Cloud TPU API's quota in its zone"),
        ("auto", "auto looks which API has quota for 8 chips"),
    ],
)
def test_the_quota_that_is_named_is_the_one_that_slices_draw(cloud: Cloud, provisioner: str, said: str) -> None:
    cloud.healthy()
    cloud.env["PROVISIONER"] = provisioner
    done = cloud.run("deploy", "d24")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ok    quota:")]
    assert said in line


@pytest.mark.parametrize(
    ("wish", "patch"),
    [
        ("suspend", '{"spec": {"suspend": true}}'),
        ("resume", '{"spec": {"suspend": false}}'),
        ("cancel", '{"spec": {"cancel": true}}'),
    ],
)
def test_a_wish_is_patched_into_the_only_run_there_is(cloud: Cloud, wish: str, patch: str) -> None:
    cloud.answer("trainingruns", out={"items": [{"metadata": {"name": "mine"}}]})
    assert cloud.run(wish).returncode == 0
    (argv,) = changes(cloud.asked())
    assert {"patch", "trainingrun", "mine", f"--patch={patch}"} <= set(argv)


@pytest.mark.parametrize(("names", "said"), [([], "there is none"), (["a", "b"], "there are a, b")])
def test_which_run_is_meant_has_to_be_said_where_it_is_not_clear(cloud: Cloud, names: list[str], said: str) -> None:
    cloud.answer("trainingruns", out={"items": [{"metadata": {"name": name}} for name in names]})
    done = cloud.run("suspend")
    assert done.returncode == 2
    assert f"{said}: say NAME=" in done.stderr
    assert changes(cloud.asked()) == []


def test_undeploy_gives_the_hook_its_time_and_says_where_the_data_stays(cloud: Cloud) -> None:
    cloud.answer("get", "trainingrun", out={"spec": {"runDirectory": "gs://my-bucket/mine"}})
    done = cloud.run("undeploy", "--name", "mine")
    (argv,) = changes(cloud.asked())
    assert {"uninstall", "mine", "--timeout=10m"} <= set(argv)
    assert "gs://my-bucket/mine" in done.stdout
    assert not [argv for argv in cloud.asked() if argv[0] == "gcloud"]


def test_a_release_whose_run_is_gone_can_still_be_removed(cloud: Cloud) -> None:
    cloud.answer("get", "trainingrun", err="Error from server (NotFound)", code=1)
    assert cloud.run("undeploy", "--name", "mine").returncode == 0
    assert [argv for argv in cloud.asked() if "uninstall" in argv]


def test_stale_stages_run_again_only_when_that_was_said(cloud: Cloud) -> None:
    cloud.healthy()
    cloud.run("deploy", "demo")
    assert helm_values(cloud)["acceptStale"] is False
    cloud.forget()
    cloud.run("deploy", "demo", "--yes")
    assert helm_values(cloud)["acceptStale"] is True


def test_a_name_that_pods_could_not_bear_is_refused(cloud: Cloud) -> None:
    for name in ("a" * 25, "My-run", "a.b"):
        assert cloud.run("deploy", "d12", "--name", name).returncode == 2
    assert cloud.asked() == []


@pytest.mark.parametrize("program", ["gcloud", "kubectl", "helm"])
def test_a_program_that_is_missing_is_named_before_anything_is_printed_or_run(cloud: Cloud, program: str) -> None:
    cloud.healthy()
    (cloud.programs / program).unlink()
    done = cloud.run("deploy", "d24")
    assert (done.returncode, done.stdout, cloud.asked()) == (78, "", [])
    assert done.stderr.startswith(f"nanocode: {program} is not on the PATH: install")


@pytest.mark.parametrize(
    ("complaint", "move"),
    [
        ('error: context "gke_x" does not exist', "make gcp-setup"),
        ("error: You must be logged in to the server (Unauthorized)", "gcloud auth login"),
        ("Unable to connect to the server: dial tcp 10.0.0.1:443: i/o timeout", "make gcp-setup"),
        ('error: the server doesn\'t have a resource type "trainingruns"', "make deploy-d24"),
    ],
)
@pytest.mark.parametrize("command", ["status", "suspend"])
def test_a_cluster_that_gives_no_answer_is_told_with_the_next_move(
    cloud: Cloud, command: str, complaint: str, move: str
) -> None:
    cloud.answer("trainingruns", err=complaint, code=1)
    done = cloud.run(command)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert complaint in line and f"`{move}`" in line.partition("; next: ")[2]


def test_status_shows_what_kubectl_says(cloud: Cloud) -> None:
    cloud.answer("trainingruns", out="NAME   PRESET", err="a warning")
    done = cloud.run("status")
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, "NAME   PRESET", "a warning")
