"""Builds the container images, and pushes them: what `make image` and `make push` run. Needs no environment.

    python3 -m deploy.images build --targets "tpu controller" [--builder podman] [--repository R] [--tag T] [--dry-run]
    python3 -m deploy.images push  --repository R ...

Without `--builder`, the first of docker, podman, buildah and cloudbuild that works on this machine.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.images.builders import (
    PROBES,
    TARGETS,
    Request,
    build_commands,
    describe_command,
    described,
    digest_file,
    log_in_command,
    push_commands,
    repository_of,
)

ROOT = Path(__file__).resolve().parents[2]
LOCAL = "nanocode"
"""The repository of images that are not meant to leave this machine."""
PROBE_SECONDS = 20


class Refused(Exception):
    """What was asked for cannot be done; the message says what to do."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m deploy.images", description=__doc__)
    parser.add_argument("action", choices=("build", "push"), help="push builds too")
    parser.add_argument("--builder", default="", help=f"one of {', '.join(PROBES)}")
    parser.add_argument("--repository", default="", help="such as REGION-docker.pkg.dev/PROJECT/nanocode")
    parser.add_argument(
        "--env", default="deploy.env", metavar="FILE", help="names the repository where --repository does not"
    )
    parser.add_argument("--tag", default="", help="default: git describe")
    parser.add_argument("--targets", default="tpu controller", help=f"some of {', '.join(TARGETS)}")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    asked = parser.parse_args(arguments)
    try:
        _run(asked)
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        log_in = log_in_command(error.cmd)
        move = f"; where nobody is logged in: {log_in}" if log_in else ""
        print(f"{error.cmd[0]} ended with {error.returncode}: {shlex.join(error.cmd)}{move}", file=sys.stderr)
        return 1
    return 0


def _run(asked: argparse.Namespace) -> None:
    builder = asked.builder or _working_builder()
    if builder not in PROBES:
        raise Refused(f"BUILDER={builder} builds no images here: say BUILDER=docker, podman, buildah or cloudbuild")
    targets = tuple(dict.fromkeys(asked.targets.replace(",", " ").split()))
    if unknown := [target for target in targets if target not in TARGETS]:
        raise Refused(f"there is no image {unknown[0]}: TARGETS are some of {', '.join(TARGETS)}")
    pushes = asked.action == "push" or builder == "cloudbuild"
    env = Path(asked.env)
    repository = asked.repository or (repository_of(env.read_text("utf-8")) if pushes and env.is_file() else "")
    if pushes and "/" not in repository:
        raise Refused(
            "say where to push: fill in deploy.env, or IMAGE_REPOSITORY=REGION-docker.pkg.dev/PROJECT/nanocode"
        )
    request = Request(repository.rstrip("/") or LOCAL, asked.tag or _described_by_git(), targets)
    commands = build_commands(builder, request)
    if asked.action == "push":
        (ROOT / "build").mkdir(exist_ok=True)
        commands += push_commands(builder, request)
    for command in commands:
        print(shlex.join(command), file=sys.stderr, flush=True)
        if not asked.dry_run:
            _call(command)
    if not asked.dry_run:
        _tell(builder, request, pushed=asked.action == "push")


def _call(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True, cwd=ROOT)
    except FileNotFoundError:
        raise Refused(f"{command[0]} is not installed: install it, or choose another BUILDER") from None


def _tell(builder: str, request: Request, pushed: bool) -> None:
    for target in request.targets:
        command = describe_command(builder, request.reference(target))
        printed = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
        one = described(builder, request.reference(target), printed)
        written = ROOT / digest_file(target)
        digest = written.read_text().strip() if pushed and builder in ("podman", "buildah") else one.digest
        print(f"{request.reference(target)}  {one.size}  {digest}")


def _working_builder() -> str:
    """The first builder whose probe says something: a client without its engine does not."""
    for builder, probe in PROBES.items():
        if shutil.which(probe[0]) is None:
            continue
        try:
            done = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0 and done.stdout.strip() not in ("", "(unset)"):
            return builder
    raise Refused(
        "nothing here builds images: start Docker, install podman or buildah, or set up gcloud (BUILDER=cloudbuild)"
    )


def _described_by_git() -> str:
    command = ["git", "describe", "--tags", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused("git describes no version here: say IMAGE_TAG=...")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
