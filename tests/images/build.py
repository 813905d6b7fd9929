"""Builds the container images from their Dockerfiles with Debian's buildah, without an engine and without a registry.

    image = build("controller")        # seconds when nothing or only the code has changed
    run_in(image, ["python", "-m", "deploy.local.loop", "--help"])

The base image comes from Debian's packages (mmdebstrap), committed under the name that FROM uses: the same release and
Python's minor version as the official one, and some 80 MB more of them. Layers are kept in ~/.cache/nanocode/images, or
where XDG_CACHE_HOME says; `python -m tests.images.build --clean` gives the space back.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = {"controller": "Dockerfile.controller", "cpu": "Dockerfile.jobs"}
NEEDS = ("buildah", "mmdebstrap", "bwrap")
DEBIAN = "bookworm"
# What every official Python image has, and this test's own: venv is a package of its own in Debian.
PACKAGES = "python3,python3-venv,ca-certificates"
BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
BUILD_SECONDS = 3600  # two cores that have other work, and a slow registry
PREFIX = "nanocode-"
KEPT_SECONDS = 24 * 3600
LAYERS_KEPT_SECONDS = 3 * KEPT_SECONDS


@dataclass(frozen=True)
class Image:
    """An image as built, its configuration, and the folder where its files can be read."""

    reference: str
    digest: str
    root: Path
    """Mounted until the machine restarts, or nobody has asked for the image in a day. Not to be written to."""
    layers: tuple[str, ...]
    """The digest of each layer's content, the base's first."""
    bytes: int
    base_bytes: int
    """Of which the base."""
    user: str
    environment: dict[str, str]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    folder: str
    labels: dict[str, str]


def missing() -> str:
    """What this machine lacks for building images, as a reason to skip; empty when nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "images are built on Linux, as root"
    absent = [name for name in NEEDS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (apt-get install buildah mmdebstrap bubblewrap)" if absent else ""


def cache_folder() -> Path:
    """Where layers are kept between sessions."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanocode" / "images"


def build(target: str, context: Path = ROOT, name: str | None = None) -> Image:
    """The image of a target, `controller` or `cpu`, built from the files in `context`; layers that are there are reused.

    `name` other than the target's keeps the two apart. Raises `CalledProcessError` with the build's output.
    """
    dockerfile = context / "deploy" / "images" / DOCKERFILES[target]
    reference = f"localhost/nanocode/{name or target}:test"
    with _locked():
        base = re.search(r"^FROM (\S+) AS base$", dockerfile.read_text(), re.MULTILINE)
        assert base is not None
        base_name = f"docker.io/library/{base[1]}"
        if not _exists(base_name):
            _commit_base(base_name)
        with _registry_access() as access:
            command = ["build", "--layers", "--pull-never", *access, "--platform", "linux/amd64", "--target", target]
            _buildah(*command, "--file", str(dockerfile), "--tag", reference, str(context))
        built = _inspect(reference)
        root = _mounted(str(built["FromImageID"]))
        base_root = _mounted(str(_inspect(base_name)["FromImageID"]))
        _forget_unused()
        return _image(reference, built, root, _tree_bytes(base_root))


def _image(reference: str, built: dict[str, object], root: Path, base_bytes: int) -> Image:
    described = built["OCIv1"]
    assert isinstance(described, dict)
    config = described["config"]
    return Image(
        reference=reference,
        digest=str(built["FromImageDigest"]),
        root=root,
        layers=tuple(described["rootfs"]["diff_ids"]),
        bytes=_tree_bytes(root),
        base_bytes=base_bytes,
        user=config.get("User", ""),
        environment=dict(one.split("=", 1) for one in config.get("Env", [])),
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        folder=config.get("WorkingDir") or "/",
        labels=config.get("Labels") or {},
    )


def sandboxed(image: Image, command: Sequence[str], binds: Sequence[str] = ()) -> list[str]:
    """The command line, for root, that runs a command in the image as a restricted pod would.

    The image's user and environment, no capabilities and no way to any, no network, a read-only root and /tmp in
    memory. `binds` are further arguments of bubblewrap.
    """
    user, _, group = image.user.partition(":")
    arguments = ["bwrap", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    arguments += [f"--unshare-{kind}" for kind in ("pid", "net", "ipc", "uts", "cgroup-try")]
    # A user namespace would make files of root's look like the user's own: change the user for real.
    for capability in ("SETUID", "SETGID", "SETPCAP"):
        arguments += ["--cap-add", f"CAP_{capability}"]
    arguments += ["--ro-bind", str(image.root), "/", "--proc", "/proc", "--dev", "/dev"]
    arguments += ["--perms", "1777", "--tmpfs", "/tmp", *binds, "--remount-ro", "/"]
    for key, value in image.environment.items():
        arguments += ["--setenv", key, value]
    become = ["/usr/bin/setpriv", f"--reuid={user}", f"--regid={group or user}", "--clear-groups", "--no-new-privs"]
    become += ["--bounding-set=-all", "--inh-caps=-all"]
    return [*arguments, "--chdir", image.folder, "--", *become, *image.entrypoint, *command]


def run_in(image: Image, command: Sequence[str], seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command in the image to its end, both streams captured."""
    return subprocess.run(
        sandboxed(image, command),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )


# -- buildah ----------------------------------------------------------------------------------------------------------


@contextmanager
def _locked() -> Iterator[None]:
    """One build at a time on this machine: two would each install the same dependencies."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with open(cache_folder() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@cache
def _command() -> tuple[str, ...]:
    folder = cache_folder()
    at = ("buildah", "--root", str(folder / "storage"), "--runroot", str(folder / "run"))
    # A whole copy of the files for each layer, where the kernel has no overlays.
    for driver in ("overlay", "vfs"):
        tried = subprocess.run([*at, "--storage-driver", driver, "info"], capture_output=True, check=False)
        if tried.returncode == 0:
            return (*at, "--storage-driver", driver)
    raise RuntimeError(f"buildah cannot keep images in {folder}: {tried.stderr.decode(errors='replace').strip()}")


def _buildah(*arguments: str) -> str:
    done = subprocess.run(
        [*_command(), *arguments],
        env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=BUILD_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(
            f"buildah {arguments[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"[-8000:]
        )
    return done.stdout.strip()


def _exists(reference: str) -> bool:
    done = subprocess.run([*_command(), "inspect", "--type", "image", reference], capture_output=True, check=False)
    return done.returncode == 0


def _inspect(reference: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(_buildah("inspect", "--type", "image", reference))
    return found


def _containers() -> dict[str, str]:
    """Name -> image id of the containers that hold images mounted."""
    listed = json.loads(_buildah("containers", "--json") or "null") or []
    return {one["containername"]: one["imageid"] for one in listed if one["containername"].startswith(PREFIX)}


def _mounted(image: str) -> Path:
    """Where the image's files are: in a container named after it, which nothing is run in."""
    name = PREFIX + image[:12]
    if name not in _containers():
        _buildah("from", "--pull-never", "--name", name, image)
    used = cache_folder() / "used"
    used.mkdir(exist_ok=True)
    (used / name).touch()
    return Path(_buildah("mount", name))


def _forget_unused() -> None:
    """Remove images that nobody has asked for in a day (others' tests may still run in a younger one), and old layers."""
    for name, image in _containers().items():
        used = cache_folder() / "used" / name
        if not used.exists() or time.time() - used.stat().st_mtime > KEPT_SECONDS:
            _buildah("rm", name)
            subprocess.run([*_command(), "rmi", "--force", image], check=False, capture_output=True)
            used.unlink(missing_ok=True)
    # What stages before the last have left: 1.3 GB each time that a dependency changes.
    for one in json.loads(_buildah("images", "--json") or "null") or []:
        if not one["names"] and time.time() - one["created"] > LAYERS_KEPT_SECONDS:
            subprocess.run([*_command(), "rmi", one["id"]], check=False, capture_output=True)


def _commit_base(name: str) -> None:
    """Make the stand-in for the official Python image: Python where that has it."""
    with tempfile.TemporaryDirectory(prefix="nanocode-base-") as folder:
        archive = Path(folder, "base.tar")
        debstrap = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(archive)]
        subprocess.run(debstrap, check=True, timeout=BUILD_SECONDS, stdin=subprocess.DEVNULL)
        container = _buildah("from", "scratch")
        try:
            _buildah("add", "--quiet", container, str(archive), "/")
            root = Path(_buildah("mount", container))
            for link in ("python", "python3"):
                (root / "usr/local/bin" / link).symlink_to("/usr/bin/python3")
            _buildah("config", "--env", f"PATH={BASE_PATH}", "--env", "LANG=C.UTF-8", "--cmd", "python3", container)
            _buildah("commit", "--quiet", container, name)
        finally:
            _buildah("rm", container)


@contextmanager
def _registry_access() -> Iterator[list[str]]:
    """Mounts that let pip of the build reach the registry as pip of this machine does; of them layers keep an empty file."""
    bundle = next((os.environ[name] for name in ("PIP_CERT", "SSL_CERT_FILE") if os.environ.get(name)), None)
    with tempfile.NamedTemporaryFile("w", prefix="nanocode-pip-", suffix=".conf") as settings:
        settings.write("[global]\n")
        for name in ("index-url", "extra-index-url"):
            if value := os.environ.get("PIP_" + name.upper().replace("-", "_")):
                settings.write(f"{name} = {value}\n")
        mounts = [f"{settings.name}:/etc/pip.conf:ro"]
        if bundle is not None and Path(bundle).is_file():
            settings.write(f"cert = {BUNDLE}\n")
            mounts.append(f"{bundle}:{BUNDLE}:ro")
        settings.flush()
        yield [part for mount in mounts for part in ("--volume", mount)]


def _tree_bytes(root: Path) -> int:
    """The sum of the sizes of all files, each once."""
    sizes = {}
    for folder, _, names in os.walk(root):
        for name in names:
            found = os.lstat(os.path.join(folder, name))
            sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def clean() -> None:
    """Unmount and remove everything in the cache folder."""
    if cache_folder().exists():
        with _locked():
            _buildah("rm", "--all")
            _buildah("rmi", "--all", "--force")
        shutil.rmtree(cache_folder())


if __name__ == "__main__":
    if sys.argv[1:] == ["--clean"]:
        clean()
    else:
        for one in sys.argv[1:] or DOCKERFILES:
            made = build(one)
            print(
                f"{made.reference}  {made.bytes / 1e6:.0f} MB, {made.base_bytes / 1e6:.0f} of them the base  {made.digest}"
            )
