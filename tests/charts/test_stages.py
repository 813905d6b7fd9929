"""The templates that the controller makes Jobs from."""

import re

import pytest

from nanocode.run.exits import Exit
from nanocode.run.graph import STAGES
from tests.charts.rendering import environment, jobs, one, pod, refused, render, templates

ACCELERATED = [name for name, stage in STAGES.items() if stage.machine == "accelerator"]
SPLIT = [name for name, stage in STAGES.items() if stage.split]
TPU_4X4 = {"tpu": {"topology": "4x4", "machineType": "ct6e-standard-4t"}}


def test_every_stage_of_the_graph_has_a_job_and_a_service_of_its_own_and_no_other_has() -> None:
    found = templates(render())
    assert set(found) == set(STAGES)
    for name, (job, service) in found.items():
        assert (job["kind"], service["kind"]) == ("Job", "Service")
        assert job["metadata"]["labels"]["nanocode.dev/stage"] == name
        assert pod(job)["subdomain"] == service["metadata"]["name"]
        assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"] is True


def test_only_the_stages_that_the_graph_splits_have_several_workers_and_retry_one_alone() -> None:
    found = jobs(render(files=["d24"]))
    several = {name for name, job in found.items() if job["spec"]["completions"] > 1}
    assert several == set(SPLIT) == {name for name, job in found.items() if "backoffLimitPerIndex" in job["spec"]}
    for name, job in found.items():
        assert job["spec"]["parallelism"] == job["spec"]["completions"]
        assert (job["spec"].get("backoffLimit") == 0) == (name not in SPLIT)


def test_only_the_stages_that_the_graph_puts_on_accelerators_ask_for_them() -> None:
    for name, job in jobs(render()).items():
        (stage,) = pod(job)["containers"]
        chips = stage["resources"]["limits"].get("google.com/tpu")
        assert chips == ("8" if name in ACCELERATED else None)
        assert stage["resources"]["requests"].get("google.com/tpu") == chips


def test_a_stage_is_told_its_run_attempt_and_worker() -> None:
    for name, job in jobs(render({"runPath": "runs/mine"})).items():
        (stage,) = pod(job)["containers"]
        arguments = dict(zip(stage["args"][3::2], stage["args"][4::2], strict=True))
        assert stage["name"] == "stage"
        assert arguments == {
            "--run-dir": "gs://my-bucket/runs/mine",
            "--stage": name,
            "--attempt": "$(NANOCODE_ATTEMPT)",
            "--worker": "$(JOB_COMPLETION_INDEX)",
            "--of": str(job["spec"]["completions"]),
        }


@pytest.mark.parametrize("spot", [True, False])
def test_a_tpu_stage_goes_to_its_own_kind_of_node_on_spot_or_not(spot: bool) -> None:
    spec = pod(jobs(render({"spot": spot}))["pretrain"])
    assert spec["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "2x4",
        "node.kubernetes.io/instance-type": "ct6e-standard-8t",
        **({"cloud.google.com/gke-spot": "true"} if spot else {}),
    }
    spot_taint = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    assert {"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    assert (spot_taint in spec["tolerations"]) == spot
    assert ("affinity" in spec) != spot  # without spot, spot nodes are ruled out


def test_cpu_stages_keep_off_accelerators_and_tolerate_nothing() -> None:
    for name in set(STAGES) - set(ACCELERATED):
        spec = pod(jobs(render())[name])
        terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        kept_off = {"key": "cloud.google.com/gke-tpu-accelerator", "operator": "DoesNotExist"}
        assert all(kept_off in term["matchExpressions"] for term in terms)
        assert "tolerations" not in spec


def test_a_slice_of_several_hosts_is_one_pod_per_host_that_fails_as_a_whole() -> None:
    found = jobs(render(files=["d24", "v6e-16"]))
    for name in ("pretrain", "base-eval", "sft", "preference"):
        job = found[name]
        assert job["spec"]["completions"] == 4
        assert job["spec"]["backoffLimit"] == 0
        assert environment(pod(job))["JAX_NUM_PROCESSES"] == "4"
        index = "metadata.labels['batch.kubernetes.io/job-completion-index']"
        assert environment(pod(job))["JAX_PROCESS_ID"] == {"fieldRef": {"fieldPath": index}}
        assert pod(job)["containers"][0]["resources"]["limits"]["google.com/tpu"] == "4"
    assert jobs(render(files=["d24", "v6e-32"]))["pretrain"]["spec"]["completions"] == 8


def test_the_stages_that_use_one_host_of_a_slice_are_those_that_the_graph_says() -> None:
    hosts = {name: job["spec"]["completions"] for name, job in jobs(render(files=["d24", "v6e-16"])).items()}
    assert {name: hosts[name] for name in ACCELERATED} == {
        name: 1 if STAGES[name].one_host else 4 for name in ACCELERATED
    }


def test_a_stage_that_knows_one_host_only_gets_one_of_the_slice_and_waits_for_no_other() -> None:
    spec = jobs(render(TPU_4X4))["agent-eval"]["spec"]
    assert spec["completions"] == 1
    assert environment(spec["template"]["spec"])["TPU_PROCESS_BOUNDS"] == "1,1,1"
    assert environment(spec["template"]["spec"])["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "2,2,1"
    assert "TPU_PROCESS_BOUNDS" not in environment(pod(jobs(render())["agent-eval"]))


def test_the_hosts_of_a_slice_are_one_pools_and_no_other_slice_lands_beside_them() -> None:
    found = jobs(render(files=["d24", "v6e-16"]))
    for name, job in found.items():
        marked = job["spec"]["template"]["metadata"]["labels"].get("nanocode.dev/slice")
        affinity = pod(job).get("affinity", {})
        assert ("podAffinity" in affinity) == ("podAntiAffinity" in affinity) == (marked is not None)
        assert (marked is not None) == (name in ACCELERATED and job["spec"]["completions"] > 1)
    affinity = pod(found["pretrain"])["affinity"]
    (together,) = affinity["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (apart,) = affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert together["topologyKey"] == apart["topologyKey"] == "cloud.google.com/gke-nodepool"
    assert together["matchLabelKeys"] == apart["mismatchLabelKeys"] == ["batch.kubernetes.io/controller-uid"]
    assert all("podAffinity" not in pod(job).get("affinity", {}) for job in jobs(render()).values())


def test_two_machines_of_four_chips_make_the_same_topology_as_one_of_eight() -> None:
    job = jobs(render({"tpu": {"topology": "2x4", "machineType": "ct6e-standard-4t"}}))["pretrain"]
    assert job["spec"]["completions"] == 2


def test_machines_that_do_not_make_up_the_topology_are_refused() -> None:
    assert "tpu.topology 2x2 has 4 chips, which machines of 8" in refused({"tpu": {"topology": "2x2"}})


def test_a_gpu_run_asks_for_gpus_on_its_own_kind_of_node() -> None:
    selector = {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    nvidia = {"gpus": 8, "hosts": 2, "nodeSelector": selector}
    objects = render({"accelerator": "nvidia", "spot": False, "nvidia": nvidia})
    job = jobs(objects)["sft"]
    assert job["spec"]["completions"] == 2
    assert pod(job)["nodeSelector"] == selector
    assert pod(job)["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod(job)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert environment(pod(job))["JAX_PLATFORMS"] == "cuda,cpu"


def test_without_an_accelerator_every_stage_runs_on_ordinary_nodes() -> None:
    for job in jobs(render(files=["demo"])).values():
        assert environment(pod(job))["JAX_PLATFORMS"] == "cpu"
        assert "nodeSelector" not in pod(job)
        assert set(pod(job)["containers"][0]["resources"]["limits"]) == {"memory"}


def test_a_lost_node_is_seen_before_any_exit_code_and_final_codes_end_the_job() -> None:
    for name, job in jobs(render(files=["d24", "v6e-16"])).items():
        lost, codes = job["spec"]["podFailurePolicy"]["rules"]
        assert lost["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
        # A worker of a split stage is begun again alone; a slice goes down with any of its hosts.
        assert lost["action"] == ("Ignore" if name in SPLIT else "FailJob")
        assert codes["action"] == "FailJob"
        assert codes["onExitCodes"]["containerName"] == "stage"
        final = {Exit.USAGE, Exit.CONFIGURATION} | (set() if name in SPLIT else {Exit.PREEMPTED})
        assert set(codes["onExitCodes"]["values"]) == final
        assert pod(job)["restartPolicy"] == "Never"  # a podFailurePolicy needs it


def test_names_stay_within_63_characters_with_the_longest_release_stage_attempt_and_index() -> None:
    release = "a" * 24
    objects = render(files=["d24"], release=release)
    for name in jobs(objects):
        assert len(f"{release}-{name}-999-511-abcde") <= 63
    assert all(
        len(each["metadata"]["name"]) <= 63 - len("-0123456789-abcde")
        for each in objects
        if each["kind"] != "ClusterRole"
    )
    assert f'"{release}a" has 25 characters: choose one of at most 24' in refused({}, release + "a")


@pytest.mark.parametrize("release", ["1st", "a.b"])
def test_a_release_that_no_service_could_be_named_after_is_refused(release: str) -> None:
    assert f'"{release}" cannot begin the names of Services' in refused({}, release)


def test_secrets_reach_only_the_stages_that_use_them() -> None:
    found = jobs(render({"secrets": {"teacherKey": "teacher", "hfToken": "hub"}}))
    with_key = {name for name, job in found.items() if "TEACHER_API_KEY" in environment(pod(job))}
    with_token = {name for name, job in found.items() if "HF_TOKEN" in environment(pod(job))}
    assert with_key == {"synth"}
    assert with_token == {"tokenizer", "corpus", "synth"}
    key = {"secretKeyRef": {"name": "teacher", "key": "TEACHER_API_KEY"}}
    assert environment(pod(found["synth"]))["TEACHER_API_KEY"] == key


def test_extra_environment_reaches_jobs_and_controller_and_wins() -> None:
    objects = render({"extraEnv": {"STORAGE_EMULATOR_HOST": "http://x:1", "JAX_PLATFORMS": "cpu"}})
    for job in jobs(objects).values():
        assert environment(pod(job))["STORAGE_EMULATOR_HOST"] == "http://x:1"
        assert environment(pod(job))["JAX_PLATFORMS"] == "cpu"
    assert environment(pod(one(objects, "Deployment")))["STORAGE_EMULATOR_HOST"] == "http://x:1"


def test_compiled_programs_are_kept_beside_the_run_for_accelerators_alone() -> None:
    for name, job in jobs(render()).items():
        kept = environment(pod(job)).get("JAX_COMPILATION_CACHE_DIR")
        assert kept == ("gs://my-bucket/cache/jax" if name in ACCELERATED else None)
    off = environment(pod(jobs(render({"compilationCache": False}))["sft"]))
    assert "JAX_COMPILATION_CACHE_DIR" not in off


def test_kueue_lets_jobs_begin_where_a_queue_is_named() -> None:
    for job in jobs(render({"queueName": "team-a"})).values():
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
        assert job["spec"]["suspend"] is True
    for job in jobs(render()).values():
        assert "suspend" not in job["spec"]


def test_a_soul_is_where_the_settings_say_for_jobs_and_controller() -> None:
    text = "# Ours\n1. Say `ü` {{ .Values.bucket }}\n"
    objects = render({"soul": text})
    path = one(objects, "TrainingRun")["spec"]["settings"]["soul"]
    for spec in (pod(one(objects, "Deployment")), *(pod(job) for job in jobs(objects).values())):
        (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["name"] == "soul"]
        (volume,) = [each for each in spec["volumes"] if each["name"] == "soul"]
        held = one(objects, "ConfigMap", volume["configMap"]["name"])
        folder, _, name = path.rpartition("/")
        assert mount["mountPath"] == folder
        assert held["data"][name] == text
        assert held["immutable"] is True


def test_the_templates_are_named_by_their_content() -> None:
    def name(**values: object) -> str:
        objects = render(values)
        templates = one(objects, "TrainingRun")["spec"]["templates"]
        assert one(objects, "ConfigMap", templates)["immutable"] is True
        return str(templates)

    before = name()
    assert re.fullmatch(r"mine-templates-[0-9a-f]{8}", before)
    assert name(budgetDollars=5, controller={"resources": {"limits": {"memory": "2Gi"}}}, monitoring=False) == before
    assert name(stages={"report": {"scratch": "5Gi"}}) != before
    assert name(image={"tag": "other"} | {"repository": "r", "controllerRepository": "c"}) != before
    assert name(soul="1. Be brief.\n") != before
