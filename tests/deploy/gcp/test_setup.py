"""`make gcp-setup`, against programs that stand in for gcloud."""

import pytest

from tests.deploy.gcp.conftest import Cloud

pytestmark = pytest.mark.slow

QUEUED = {"PROVISIONER": "queued-resource"}
DELETES = ("delete", "remove", "remove-iam-policy-binding", "reset", "destroy", "rm")


def creations(asked: list[list[str]]) -> list[list[str]]:
    return [argv for argv in asked if "create" in argv]


def test_a_dry_run_prints_every_command_and_runs_none(cloud: Cloud) -> None:
    dry = cloud.run("--dry-run", "setup")
    assert dry.returncode == 0
    assert cloud.asked() == []
    cloud.answer("describe", code=1)
    assert cloud.run("setup").returncode == 0
    for argv in cloud.asked():
        assert " ".join(argv) in dry.stdout.replace("'", "")


def test_what_is_there_is_not_made_again(cloud: Cloud) -> None:
    done = cloud.run("setup")
    assert done.returncode == 0
    assert creations(cloud.asked()) == []
    assert "there already" in done.stdout


def test_nothing_is_ever_deleted(cloud: Cloud) -> None:
    cloud.answer("describe", code=1)
    cloud.run("setup")
    assert creations(cloud.asked())
    assert not [argv for argv in cloud.asked() if set(argv) & set(DELETES)]


def test_the_bucket_is_in_the_region_and_keeps_no_deleted_checkpoints(cloud: Cloud) -> None:
    cloud.answer("describe", code=1)
    cloud.run("setup")
    (bucket,) = [argv for argv in creations(cloud.asked()) if "buckets" in argv]
    assert {"gs://my-bucket", "--location=us-east5", "--soft-delete-duration=0s"} <= set(bucket)


def test_a_second_region_has_a_bucket_that_slices_use_and_the_controller_weighs(cloud: Cloud) -> None:
    cloud.env |= {"ZONES": "europe-west4-a,us-east5-b", "BUCKETS": "europe-west4=gs://my-europe"}
    refused = cloud.run("setup")
    assert refused.returncode == 78 and "PROVISIONER=existing has all in one region" in refused.stderr
    cloud.env["PROVISIONER"] = "queued-resource"
    cloud.answer("describe", code=1)
    assert cloud.run("setup").returncode == 0
    asked = cloud.asked()
    assert [argv[4:6] for argv in creations(asked) if "buckets" in argv] == [
        ["gs://my-bucket", "--location=us-east5"],
        ["gs://my-europe", "--location=europe-west4"],
    ]
    grants = [argv for argv in asked if argv[3:5] == ["add-iam-policy-binding", "gs://my-europe"]]
    who = "--member=serviceAccount:nanocode-{}@my-project.iam.gserviceaccount.com"
    assert {(argv[5], argv[6]) for argv in grants} == {
        (who.format("slices"), "--role=roles/storage.objectUser"),
        (who.format("controller"), "--role=roles/storage.objectViewer"),
    }
    (cluster,) = [argv for argv in creations(asked) if "clusters" in argv]
    assert "--location=us-east5-b" in cluster, "the cluster stays at home"
    cloud.env["BUCKETS"] += ",us-east5=gs://my-other"
    refused = cloud.run("setup")
    assert refused.returncode == 78 and "names one for REGION=us-east5, where BUCKET is already" in refused.stderr
    del cloud.env["BUCKETS"]
    refused = cloud.run("setup")
    assert refused.returncode == 78 and "together; BUCKETS=europe-west4=gs://... gives it a bucket" in refused.stderr
    cloud.env["PROVISIONER"] = "existing"
    refused = cloud.run("setup")
    assert "together; with PROVISIONER=queued-resource BUCKETS=europe-west4=gs://... gives it" in refused.stderr


def test_vms_without_an_external_address_can_reach_bucket_and_registry_in_every_region(cloud: Cloud) -> None:
    cloud.env |= {"ZONES": "europe-west4-a,us-east5-b,us-east5-a", "BUCKETS": "europe-west4=gs://my-europe"}
    cloud.env["PROVISIONER"] = "queued-resource"
    cloud.run("setup")
    opened = [argv for argv in cloud.asked() if "--enable-private-ip-google-access" in argv]
    assert all(argv[4:6] == ["update", "default"] for argv in opened)
    assert [argv[7] for argv in opened] == ["--region=europe-west4", "--region=us-east5"]


def test_without_a_cluster_there_is_nothing_that_bills_by_the_hour(cloud: Cloud) -> None:
    cloud.env["CLUSTER"] = "none"
    refused = cloud.run("setup")
    assert refused.returncode == 78 and "CLUSTER=none leaves nothing that PROVISIONER=existing" in refused.stderr
    cloud.env["PROVISIONER"] = "queued-resource"
    cloud.answer("describe", code=1)
    assert cloud.run("setup").returncode == 0
    asked = cloud.asked()
    assert not [argv for argv in asked if "container" in argv]
    accounts = [argv[4] for argv in creations(asked) if "service-accounts" in argv]
    assert accounts == ["nanocode-slices"], "whoever runs `nanocode run` is the controller"
    cloud.forget()
    refused = cloud.run("deploy", "d24")
    assert refused.returncode == 78 and "says CLUSTER=none, and make deploy needs one" in refused.stderr
    assert cloud.asked() == []


def test_make_push_finds_itself_logged_in_at_the_registry(cloud: Cloud) -> None:
    cloud.run("setup")
    assert ["gcloud", "auth", "configure-docker", "us-east5-docker.pkg.dev", "--quiet"] in cloud.asked()


def test_a_controller_that_chooses_between_the_apis_sees_their_quotas_and_may_use_both(cloud: Cloud) -> None:
    cloud.env["PROVISIONER"] = "auto"
    cloud.run("setup")
    controller = "--member=serviceAccount:nanocode-controller@my-project.iam.gserviceaccount.com"
    granted = {argv[-1].rpartition("/")[2] for argv in cloud.asked() if controller in argv}
    assert granted >= {"servicemanagement.quotaViewer", "nanocodeSlices", "nanocodeNodePools"}


def test_the_cluster_knows_workload_identity_and_streams_images(cloud: Cloud) -> None:
    cloud.answer("describe", code=1)
    cloud.run("setup")
    (cluster,) = [argv for argv in creations(cloud.asked()) if "clusters" in argv]
    assert {"--workload-pool=my-project.svc.id.goog", "--enable-image-streaming"} <= set(cluster)
    # GKE_METADATA is what keeps a pod from being the node's account.
    made = [argv for argv in creations(cloud.asked()) if "container" in argv]
    assert all("--workload-metadata=GKE_METADATA" in argv for argv in made)


def test_the_trainer_may_use_objects_of_the_bucket_and_no_more(cloud: Cloud) -> None:
    cloud.run("setup")
    trainer = "--member=serviceAccount:nanocode-trainer@my-project.iam.gserviceaccount.com"
    grants = [argv for argv in cloud.asked() if trainer in argv]
    assert [argv[-1] for argv in grants] == ["--role=roles/storage.objectUser"]
    assert "buckets" in grants[0]  # the bucket's policy, not the project's


def test_a_controller_that_makes_node_pools_may_do_that_and_no_more(cloud: Cloud) -> None:
    cloud.answer("describe", code=1)
    cloud.env["PROVISIONER"] = "gke"
    cloud.run("setup")
    asked = cloud.asked()
    (role,) = [argv for argv in creations(asked) if "roles" in argv]
    (permissions,) = [word for word in role if word.startswith("--permissions=")]
    assert permissions.removeprefix("--permissions=").split(",") == [
        "container.clusters.get",
        "container.clusters.update",
        "container.operations.get",
        "container.operations.list",
    ]
    controller = "--member=serviceAccount:nanocode-controller@my-project.iam.gserviceaccount.com"
    grants = [argv for argv in asked if controller in argv]
    assert [argv for argv in grants if "--role=projects/my-project/roles/nanocodeNodePools" in argv]
    (acts,) = [argv for argv in grants if "--role=roles/iam.serviceAccountUser" in argv]
    assert "nanocode-nodes@my-project.iam.gserviceaccount.com" in acts, "on that account, not on the project"
    assert not [argv for argv in creations(asked) if "node-pools" in argv and "ct6e" in " ".join(argv)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {},
            {
                "--machine-type=ct6e-standard-8t",
                "--spot",
                "--total-max-nodes=1",
                "--node-locations=us-east5-b,us-east5-a",
            },
        ),
        (
            {"TOPOLOGY": "4x4", "MACHINE_TYPE": "ct6e-standard-4t"},
            {"--tpu-topology=4x4", "--max-nodes=4", "--node-locations=us-east5-b"},
        ),
        (
            {"ACCELERATOR": "nvidia", "MACHINE_TYPE": "a3-highgpu-1g"},
            {"--machine-type=a3-highgpu-1g", "--accelerator=type=nvidia-h100-80gb,count=1,gpu-driver-version=latest"},
        ),
    ],
)
def test_the_pool_of_slices_is_what_the_file_asks_for(cloud: Cloud, settings: dict[str, str], words: set[str]) -> None:
    cloud.env |= settings
    cloud.answer("describe", code=1)
    assert cloud.run("setup").returncode == 0
    (pool,) = [argv for argv in creations(cloud.asked()) if "slices" in argv]
    assert words <= set(pool)
    assert "--num-nodes=0" in pool  # nothing is billed before a stage needs it


def test_a_step_that_fails_is_named_with_gclouds_own_reason_and_ends_it(cloud: Cloud) -> None:
    cloud.answer("clusters", "describe", code=1)
    reason = "ERROR: (gcloud.container.clusters.create) ResponseError: code=403, message=Billing is off."
    cloud.answer("clusters", "create", err=f"Note: a warning.\n{reason}\nTo see more:\n  look there", code=1)
    done = cloud.run("setup")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Billing is off" in done.stderr
    assert not [argv for argv in cloud.asked() if "node-pools" in argv]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"PROJECT": ""}, "says nothing for PROJECT: deploy.env.example"),
        ({"BUCKET": "my-bucket"}, "BUCKET=my-bucket cannot be"),
        ({"BUCKET_NAME": "gs://my-bucket"}, "BUCKET_NAME is no key: did you mean BUCKET?"),
        ({"ZONES": "us-east1-d"}, "ZONES=us-east1-d is not in REGION=us-east5"),
        ({"ACCELERATOR": "gpu"}, "ACCELERATOR=gpu cannot be"),
        ({"ACCELERATOR": "nvidia"}, "MACHINE_TYPE=ct6e-standard-8t has no GPUs"),
        (
            {"ACCELERATOR": "nvidia", "MACHINE_TYPE": "a3-highgpu-1g", "PROVISIONER": "gke"},
            "PROVISIONER=gke asks for TPU slices, and ACCELERATOR=nvidia: set PROVISIONER=existing",
        ),
        ({"TOPOLOGY": "2x2"}, "TOPOLOGY=2x2 has 4 chips, which machines of 8"),
        ({"PROJECT": "123456789012"}, "PROJECT=123456789012 cannot be: it has to be a project's ID"),
        ({"REGION": "us-east5-a"}, "REGION=us-east5-a cannot be: it has to be one region, as us-east5"),
        ({"ZONES": "us-east5a"}, "ZONES=us-east5a cannot be: it has to be zones with commas"),
        ({"ZONES": "us-east5-b us-east5-a"}, "ZONES=us-east5-b us-east5-a cannot be: it has to be zones with commas"),
        ({"BUCKETS": "europe-west4"}, "BUCKETS=europe-west4= cannot be: it has to be REGION=gs://NAME"),
        ({"BUCKETS": "europe-west4=mine"}, "BUCKETS=europe-west4=mine cannot be: it has to be REGION=gs://NAME"),
        ({"BUCKETS": "gs://mine"}, "BUCKETS=gs://mine cannot be: it has to be REGION=gs://NAME"),
        (QUEUED | {"BUCKETS": "us-east5=gs://mine"}, "BUCKETS names one for REGION=us-east5, where BUCKET is already"),
        (QUEUED | {"BUCKETS": "europe-west4=gs://my-bucket"}, "BUCKETS names gs://my-bucket, which is BUCKET"),
        (
            QUEUED | {"BUCKETS": "europe-west4=gs://mine", "BUDGET_DOLLARS": "9", "DOLLARS_PER_SLICE_HOUR": "4"},
            "nobody has said what it costs to copy a GB to the regions of BUCKETS",
        ),
        ({"IMAGE_TAG": "abc\nPROVISIONER queued-resource"}, "line 6: PROVISIONER queued-resource is no KEY=value"),
        ({"IMAGE_TAG": "abc\nPROVISIONER"}, "line 6: PROVISIONER is no KEY=value"),
    ],
)
def test_a_file_that_cannot_be_is_refused_in_one_line_before_anything_is_run(
    cloud: Cloud, change: dict[str, str], said: str
) -> None:
    cloud.env |= change
    done = cloud.run("setup")
    assert done.returncode == 78
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert cloud.asked() == []


def test_a_missing_file_and_a_missing_program_are_one_sentence_each(cloud: Cloud) -> None:
    done = cloud.run("setup")
    assert done.returncode == 0
    (cloud.programs / "gcloud").unlink()
    done = cloud.run("setup")
    assert (done.returncode, len(done.stderr.splitlines())) == (78, 1)
    assert "gcloud is not on the PATH: install" in done.stderr


def test_a_slice_may_delete_itself_and_the_controller_may_ask_for_it_and_neither_may_more(cloud: Cloud) -> None:
    cloud.answer("describe", code=1)
    cloud.env["PROVISIONER"] = "queued-resource"
    cloud.run("setup")
    asked = cloud.asked()
    roles = {argv[4]: argv[5] for argv in creations(asked) if "roles" in argv}
    assert roles["nanocodeSliceItself"] == (
        "--permissions=tpu.nodes.delete,tpu.queuedResources.delete,tpu.queuedResources.get"
    )
    assert "tpu.queuedResources.create" in roles["nanocodeSlices"] and "*" not in roles["nanocodeSlices"]
    slices = "nanocode-slices@my-project.iam.gserviceaccount.com"
    granted = sorted(argv[-1] for argv in asked if f"--member=serviceAccount:{slices}" in argv)
    assert granted == [
        "--role=projects/my-project/roles/nanocodeSliceItself",
        "--role=roles/artifactregistry.reader",
        "--role=roles/storage.objectUser",
    ]
    (acts,) = [argv for argv in asked if "--role=roles/iam.serviceAccountUser" in argv]
    assert slices in acts, "on that account, not on the project"
