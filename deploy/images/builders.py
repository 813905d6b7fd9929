"""What each tool that builds images is asked: commands, as lists. Nothing is run here; the standard library will do.

docker and podman run an engine or none at all; buildah is Debian's and Fedora's builder alone; cloudbuild is Google's
service, which pushes what it builds, and needs no builder on this machine.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PLATFORM = "linux/amd64"  # what TPU and GPU machines are, whatever this one is
ARTIFACT_REGISTRY = "-docker.pkg.dev"  # after the region
LABEL = "org.opencontainers.image.revision"
TARGETS = {
    "tpu": ("jobs-tpu", "deploy/images/Dockerfile.jobs"),
    "cuda": ("jobs-cuda", "deploy/images/Dockerfile.jobs"),
    "cpu": ("jobs-cpu", "deploy/images/Dockerfile.jobs"),
    "controller": ("controller", "deploy/images/Dockerfile.controller"),
}
"""Target -> the image's name in the repository, and the file that it is built from."""

PROBES: Mapping[str, Sequence[str]] = {
    "docker": ("docker", "version", "--format", "{{.Server.Version}}"),
    "podman": ("podman", "info", "--format", "{{.Host.Arch}}"),
    "buildah": ("buildah", "info"),
    "cloudbuild": ("gcloud", "config", "get-value", "project"),
}
"""Builder -> a command that ends with 0, and says something, where the builder works; in the order of preference."""


@dataclass(frozen=True)
class Request:
    """Which images, and what they shall be called."""

    repository: str
    tag: str
    targets: tuple[str, ...]

    def reference(self, target: str) -> str:
        return f"{self.repository}/{TARGETS[target][0]}:{self.tag}"


@dataclass(frozen=True)
class Described:
    """An image as its builder knows it. A registry's digest exists only once it is pushed."""

    digest: str
    size: str


def repository_of(env: str) -> str:
    """The registry's repository that a deploy.env names; empty where project or region is missing."""
    said = dict(line.split("=", 1) for line in env.splitlines() if "=" in line and not line.lstrip().startswith("#"))
    value = {key.strip(): text.partition(" #")[0].strip().strip("'\"") for key, text in said.items()}
    if not value.get("PROJECT") or not value.get("REGION"):
        return ""
    return f"{value['REGION']}{ARTIFACT_REGISTRY}/{value['PROJECT']}/{value.get('REPOSITORY') or 'nanocode'}"


def build_commands(builder: str, request: Request) -> list[list[str]]:
    """Builds every target of the request; with cloudbuild pushes it as well."""
    if builder == "cloudbuild":
        given = {"_REPOSITORY": request.repository, "_TAG": request.tag, "_TARGETS": " ".join(request.targets)}
        substitutions = ",".join(f"{key}={value}" for key, value in given.items())
        submit = ["gcloud", "builds", "submit", "--config", "deploy/images/cloudbuild.yaml"]
        host, _, rest = request.repository.partition("/")
        if host.endswith(ARTIFACT_REGISTRY):  # gcloud's own project may be another one
            submit.append(f"--project={rest.partition('/')[0]}")
        return [[*submit, "--substitutions", substitutions, "."]]
    return [_build(builder, request, target) for target in request.targets]


def _build(builder: str, request: Request, target: str) -> list[str]:
    layers = [] if builder == "docker" else ["--layers"]
    return [
        *(builder, "build", *layers, "--platform", PLATFORM, "--file", TARGETS[target][1], "--target", target),
        *("--label", f"{LABEL}={request.tag}", "--tag", request.reference(target), "."),
    ]


def push_commands(builder: str, request: Request) -> list[list[str]]:
    """Pushes what was built: nothing is left to do after cloudbuild."""
    if builder == "cloudbuild":
        return []
    told = {target: [] if builder == "docker" else ["--digestfile", digest_file(target)] for target in request.targets}
    return [[builder, "push", *told[target], request.reference(target)] for target in request.targets]


def log_in_command(command: Sequence[str]) -> str:
    """What has docker, podman and buildah push to Google as gcloud's user; empty where that is not what failed."""
    host = command[-1].partition("/")[0]
    pushes = "push" in command[:2] and host.endswith(ARTIFACT_REGISTRY)
    return f"`gcloud auth login`, then `gcloud auth configure-docker {host}`" if pushes else ""


def digest_file(target: str) -> str:
    """Where podman and buildah write the digest under which the registry knows an image: compressed, it is another."""
    return f"build/{TARGETS[target][0]}.digest"


def describe_command(builder: str, reference: str) -> list[str]:
    """Prints JSON for `described`."""
    if builder == "cloudbuild":
        image, _, tag = reference.rpartition(":")
        listing = ["gcloud", "artifacts", "docker", "images", "list", image, "--include-tags"]
        return [*listing, f"--filter=tags:{tag}", "--format=json"]
    if builder == "buildah":
        return ["buildah", "images", "--json", reference]
    return [builder, "image", "inspect", reference]


def described(builder: str, reference: str, printed: str) -> Described:
    """What `describe_command` printed, read; `ValueError` for what is no description of an image."""
    try:
        found: Any = json.loads(printed)
        one = found[0] if isinstance(found, list) else found
        if builder == "cloudbuild":
            return Described(one["version"], megabytes(int(one["metadata"]["imageSizeBytes"])) + " compressed")
        if builder == "buildah":
            return Described(one["digest"], one["size"])
        size = megabytes(int(one["Size"]))
        if builder == "podman":
            return Described(one["Digest"], size)
        names = (known.split("@") for known in one.get("RepoDigests") or [])
        pushed = [digest for name, digest in names if name == reference.rpartition(":")[0]]
        return Described(pushed[0] if pushed else one["Id"], size)
    except (LookupError, TypeError) as error:
        raise ValueError(f"{builder} describes the image in a way that is not known here: {error!r}") from error


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
