"""What jax is told on a TPU VM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.provisioners.vm.environment import Host, compile_cache, environment
from nanocode.run.directory import RunDirectory
from nanocode.storage.objects import open_store
from tests.charts.rendering import environment as of_pod
from tests.charts.rendering import jobs, pod, render

BY_NAME = "t1v-n-ab-w-0,t1v-n-ab-w-1,t1v-n-ab-w-2,t1v-n-ab-w-3"
BY_ADDRESS = "unknown:unknown:10.0.0.5,unknown:unknown:10.0.0.4,unknown:unknown:10.0.0.3,unknown:unknown:10.0.0.2"


@pytest.mark.parametrize(("endpoints", "first"), [(BY_NAME, "t1v-n-ab-w-0"), (BY_ADDRESS, "10.0.0.5")])
def test_the_hosts_of_an_attempt_meet_at_the_first_of_them(endpoints: str, first: str) -> None:
    assert environment(Host(2, 4, 4, endpoints, "v6e-16"), None) == {
        "JAX_PLATFORMS": "tpu,cpu",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "2",
        "JAX_COORDINATOR_ADDRESS": f"{first}:8482",
    }


def test_a_slice_of_one_host_has_nobody_to_wait_for() -> None:
    assert environment(Host(0, 1, 1, "t1v-n-ab-w-0", "v6e-8"), None) == {"JAX_PLATFORMS": "tpu,cpu"}


@pytest.mark.parametrize(
    ("accelerator_type", "vms", "bounds"),
    [("v6e-16", 4, "2,2,1"), ("v5litepod-16", 4, "2,2,1"), ("v4-16", 2, "2,2,1"), ("v6e-2", 2, "1,1,1"), ("", 4, None)],
)
def test_an_attempt_on_one_host_of_several_has_the_chips_of_that_one(
    accelerator_type: str, vms: int, bounds: str | None
) -> None:
    found = environment(Host(0, 1, vms, BY_NAME, accelerator_type), None)
    assert (found["TPU_PROCESS_BOUNDS"], found.get("TPU_CHIPS_PER_PROCESS_BOUNDS")) == ("1,1,1", bounds)
    assert not [name for name in found if name.startswith(("JAX_NUM", "JAX_COORD"))]


@pytest.mark.parametrize(("stage", "of"), [("pretrain", 4), ("agent-eval", 1)])
def test_it_is_what_the_chart_tells_a_pod_of_the_same_slice(stage: str, of: int) -> None:
    told = of_pod(pod(jobs(render(files=["d24", "v6e-16"]))[stage]))
    found = environment(Host(0, of, 4, BY_NAME, "v6e-16"), "gs://my-bucket/cache/jax")
    told_by_kubernetes = {"JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"}
    assert {name: told[name] for name in set(found) - told_by_kubernetes} == {
        name: value for name, value in found.items() if name not in told_by_kubernetes
    }


def test_compiled_programs_are_kept_in_the_bucket_that_is_near(gcs_url: str) -> None:
    bucket = gcs_url.removeprefix("gs://").partition("/")[0]
    run = RunDirectory(open_store(f"{gcs_url}/d24"))
    assert compile_cache(run.store.url, "slice-1") == f"gs://{bucket}/cache/jax"
    run.store.write("slices/slice-1/REQUEST.json", b'{"zone": "us-east5-b"}')
    assert compile_cache(run.store.url, "slice-1") == f"gs://{bucket}/cache/jax"
    run.store.write("slices/slice-2/REQUEST.json", b'{"near": "gs://europe/my-bucket/d24"}')
    assert compile_cache(run.store.url, "slice-2") == "gs://europe/cache/jax"


def test_a_run_on_this_machine_has_no_bucket_for_compiled_programs(tmp_path: Path) -> None:
    assert compile_cache(str(tmp_path), "slice-1") is None


@pytest.mark.parametrize("by_the_image", [None, "/tmp/compiled"])
def test_the_command_finds_it_in_its_environment_unless_the_image_says_otherwise(
    gcs_url: str, by_the_image: str | None
) -> None:
    asked = "import os; print(os.environ['JAX_COMPILATION_CACHE_DIR'], os.environ['JAX_PROCESS_ID'])"
    told = {"run-dir": f"{gcs_url}/d24", "slice": "slice-1", "worker": "1", "of": "2", "vms": "2"}
    told |= {"endpoints": BY_NAME, "accelerator-type": "v6e-8"}
    image = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    image |= {"JAX_COMPILATION_CACHE_DIR": by_the_image} if by_the_image is not None else {}
    begun = [
        sys.executable,
        "-m",
        "deploy.provisioners.vm.entry",
        *(f"--{name}={value}" for name, value in told.items()),
    ]
    done = subprocess.run(
        [*begun, "--", sys.executable, "-c", asked], env=image, capture_output=True, text=True, check=False
    )
    bucket = gcs_url.removeprefix("gs://").partition("/")[0]
    assert done.stdout.split() == [by_the_image or f"gs://{bucket}/cache/jax", "1"], done.stderr


def test_a_slice_whose_script_is_older_than_the_image_runs_its_command_all_the_same() -> None:
    entry = [sys.executable, "-m", "deploy.provisioners.vm.entry", "--secrets={}"]
    asked = [sys.executable, "-c", "import os; print(os.environ.get('JAX_NUM_PROCESSES'))"]
    done = subprocess.run([*entry, "--", *asked], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr
