"""What is asked of docker, podman, buildah and Cloud Build, with stand-ins for them that write down their arguments."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import yaml

from deploy.gcp.deployment import read
from deploy.images.builders import PROBES, TARGETS, Request, build_commands, push_commands
from deploy.images.requirements import requirements

ROOT = Path(__file__).resolve().parents[3]
INSPECTED = '[{"Id": "sha256:local", "Digest": "sha256:local", "RepoDigests": ["h/p/n/controller@sha256:remote"], "Size": 2000000}]'


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder that will be all of PATH but git and the shell, with stand-ins that log to `log` beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("git", "sh", "bash", "env", "cat"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    (tmp_path / "log").touch()
    return folder


def stand_in(tools: Path, name: str, body: str = "") -> None:
    script = tools / name
    script.write_text(f'#!/bin/sh\necho "{name} $*" >> {tools.parent}/log\n{body}\n')
    script.chmod(0o755)


def images(tools: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.images", *arguments, "--env", str(tools.parent / "deploy.env")]
    environment = {"PATH": str(tools), "HOME": str(tools.parent)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def calls(tools: Path) -> list[str]:
    return (tools.parent / "log").read_text().splitlines()


@pytest.mark.parametrize("builder", ["docker", "podman", "buildah"])
def test_images_are_for_amd64_whatever_builds_them(builder: str) -> None:
    commands = build_commands(builder, Request("r/n", "v1", tuple(TARGETS)))
    assert len(commands) == len(TARGETS)
    for target, command in zip(TARGETS, commands, strict=True):
        assert command[command.index("--platform") + 1] == "linux/amd64"
        assert command[command.index("--target") + 1] == target
        assert (ROOT / command[command.index("--file") + 1]).is_file()


def test_a_client_whose_engine_is_not_there_is_passed_over(tools: Path) -> None:
    stand_in(tools, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    stand_in(tools, "podman", f"[ $1 = info ] && echo amd64; [ $1 = image ] && echo '{INSPECTED}'; exit 0")
    done = images(tools, "build", "--targets", "controller", "--tag", "v1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "nanocode/controller:v1  2 MB  sha256:local\n"
    assert [call.split()[:2] for call in calls(tools)] == [
        ["docker", "version"], ["podman", "info"], ["podman", "build"], ["podman", "image"],
    ]  # fmt: skip


def test_a_push_tells_the_digest_that_the_registry_knows(tools: Path) -> None:
    stand_in(tools, "docker", f"[ $1 = image ] && echo '{INSPECTED}'; exit 0")
    done = images(
        tools, "push", "--builder", "docker", "--repository", "h/p/n", "--targets", "controller", "--tag", "v1"
    )
    assert done.stdout == "h/p/n/controller:v1  2 MB  sha256:remote\n"
    assert "docker push h/p/n/controller:v1" in calls(tools)


def test_a_push_that_is_refused_says_how_to_log_in_at_googles_registry(tools: Path) -> None:
    stand_in(tools, "docker", "[ $1 != push ]")
    for repository, told in (
        ("us-docker.pkg.dev/p/n", "`gcloud auth configure-docker us-docker.pkg.dev`"),
        ("h/p/n", ""),
    ):
        done = images(
            tools, "push", "--builder", "docker", "--repository", repository, "--targets", "controller", "--tag", "v1"
        )
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and f"docker push {repository}/controller:v1" in last
        assert last.endswith(told) and bool(told) == ("logged in" in last)


def test_cloud_build_works_in_the_project_of_the_registry() -> None:
    (command,) = build_commands("cloudbuild", Request("us-docker.pkg.dev/my-project/n", "v1", ("tpu",)))
    assert "--project=my-project" in command
    (command,) = build_commands("cloudbuild", Request("h/p/n", "v1", ("tpu",)))
    assert not [word for word in command if word.startswith("--project")]


def test_where_nothing_builds_images_it_says_what_to_install(tools: Path) -> None:
    done = images(tools, "build", "--tag", "v1")
    assert done.returncode == 2
    assert done.stderr.startswith("nothing here builds images: start Docker, install podman")
    assert len(done.stderr.splitlines()) == 1


def test_a_dry_run_prints_what_is_run_otherwise_and_runs_nothing(tools: Path) -> None:
    for name in ("docker", "podman", "buildah", "gcloud"):
        stand_in(tools, name)
    for builder in PROBES:
        done = images(tools, "push", "--builder", builder, "--repository", "h/p/n", "--tag", "v1", "--dry-run")
        request = Request("h/p/n", "v1", ("tpu", "controller"))
        wanted = build_commands(builder, request) + push_commands(builder, request)
        assert [line.replace("'", "") for line in done.stderr.splitlines()] == [" ".join(one) for one in wanted]
    assert calls(tools) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["push", "--builder", "docker"], "IMAGE_REPOSITORY="),
        (["build", "--builder", "cloudbuild"], "IMAGE_REPOSITORY="),
        (["build", "--builder", "kaniko"], "BUILDER=docker, podman, buildah or cloudbuild"),
        (["build", "--builder", "docker", "--targets", "gpu"], "no image gpu"),
        (["build", "--builder", "podman"], "podman is not installed"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(tools: Path, arguments: list[str], says: str) -> None:
    done = images(tools, *arguments, "--tag", "v1")
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_push_goes_where_the_deployment_looks_for_images(tools: Path) -> None:
    text = 'PROJECT="my-project" # mine\nREGION=us-east5 # granted\nZONES=us-east5-b\nBUCKET=gs://bucket\n# REPOSITORY=other\n'
    for more, name in (("", "nanocode"), ("REPOSITORY=mine\n", "mine")):
        (tools.parent / "deploy.env").write_text(text + more)
        done = images(tools, "push", "--builder", "docker", "--tag", "v1", "--dry-run")
        assert f"push us-east5-docker.pkg.dev/my-project/{name}/controller:v1" in done.stderr
        assert read(tools.parent / "deploy.env").registry == f"us-east5-docker.pkg.dev/my-project/{name}"
        done = images(tools, "push", "--builder", "docker", "--tag", "v1", "--dry-run", "--repository", "r/n")
        assert "push r/n/controller:v1" in done.stderr


def test_cloud_build_makes_the_same_images_under_the_same_names(tools: Path) -> None:
    stand_in(tools, "docker")
    document = yaml.safe_load((ROOT / "deploy/images/cloudbuild.yaml").read_text())
    (step,) = document["steps"]
    environment = {"PATH": str(tools), "_REPOSITORY": "h/p/n", "_TAG": "v1", "_TARGETS": " ".join(TARGETS)}
    subprocess.run(["bash", "-c", step["script"]], env=environment, check=True)
    built = [call.split() for call in calls(tools) if " build " in call]
    request = Request("h/p/n", "v1", tuple(TARGETS))
    for command, ours in zip(built, build_commands("docker", request), strict=True):
        for option in ("--platform", "--file", "--target", "--tag", "--label"):
            assert command[command.index(option) + 1] == ours[ours.index(option) + 1]
        assert "--push" in command


def test_every_image_stands_on_the_same_pinned_base() -> None:
    bases = {
        re.findall(r"^FROM (\S*:\S+)", path.read_text(), re.MULTILINE)[0]
        for path in (ROOT / "deploy/images").glob("Dockerfile.*")
    }
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases.pop())


def test_the_controllers_requirements_cover_whatever_it_imports() -> None:
    listed = {
        re.split(r"[^\w.-]", line)[0].lower() for line in requirements(ROOT / "pyproject.toml", ["controller"], True)
    }
    owners = packages_distributions()
    folders = [ROOT / "deploy", *(ROOT / "nanocode" / room for room in ("config", "storage", "run"))]
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for name in imported(path):
            if name in sys.stdlib_module_names or name in ("nanocode", "deploy"):
                continue
            who = {owner.lower().replace("_", "-") for owner in owners.get(name, [name])}
            assert who & (listed | needed_by(listed)), f"{path.relative_to(ROOT)} imports {name}, in no requirement"


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


def needed_by(names: set[str]) -> set[str]:
    """What these distributions require themselves, where they are installed."""
    found = set()
    for name in names:
        try:
            lines = requires(name) or []
        except ModuleNotFoundError:
            continue
        found |= {re.split(r"[^\w.-]", line)[0].lower() for line in lines if "extra ==" not in line}
    return found
