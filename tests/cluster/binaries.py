"""The real programs of a control plane, built once from the pinned Go modules in `tools/` and cached.

A cold build takes about 8 minutes on 2 cores, 0.7 GB of modules and 2.7 GB of Go's own build cache; the programs take 0.4 GB.
They lie in `$XDG_CACHE_HOME/nanocode/cluster/<hash of the pins>`, so that another pin is another folder.

`python -m tests.cluster.binaries` builds them and prints the folder.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TOOLS = Path(__file__).parent / "tools"

PROGRAMS = {
    # Small ones first: a mistake in the set-up shows within seconds.
    "kubeconform": ("helm", "github.com/yannh/kubeconform/cmd/kubeconform"),
    "etcd": ("kubernetes", "go.etcd.io/etcd/server/v3"),
    "kubectl": ("kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
    "kube-scheduler": ("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
    "kube-controller-manager": ("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    "kube-apiserver": ("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    "helm": ("helm", "helm.sh/helm/v4/cmd/helm"),
}
"""Program -> (the module under `tools/` that pins it, its main package)."""


class NoGoToolchain(RuntimeError):
    """Go is missing or too old; the message says which version is needed."""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def binaries(progress: Callable[[str], None] = say) -> Path:
    """The folder of the built programs; builds those that are missing, one caller at a time.

    Raises NoGoToolchain when something must be built and there is no Go that can.
    """
    folder = cache_folder()
    if not _missing(folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = _missing(folder)
        if missing:
            _require_go()
        for number, name in enumerate(missing, start=1):
            progress(f"building {name}, {number} of {len(missing)} (all take about 8 minutes cold on 2 cores) ...")
            began = time.monotonic()
            _build(name, folder)
            progress(f"built {name} in {time.monotonic() - began:.0f} s")
    return folder


def cache_folder() -> Path:
    """Where the programs of exactly these pins lie."""
    pins = hashlib.sha256()
    for path in sorted(TOOLS.glob("*/go.*")):
        pins.update(path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "nanocode" / "cluster" / pins.hexdigest()[:16]


def pinned(module: str, of: str = "kubernetes") -> str:
    """The version of a Go module that `tools/<of>/go.mod` requires, as in v1.36.3."""
    found = re.search(rf"^\s*{re.escape(module)} (v\S+)", (TOOLS / of / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{module} is not pinned in tools/{of}/go.mod")
    return found[1]


def _missing(folder: Path) -> list[str]:
    return [name for name in PROGRAMS if not (folder / name).exists()]


def _require_go() -> None:
    needed = re.search(r"^go (\S+)", (TOOLS / "kubernetes" / "go.mod").read_text(), re.MULTILINE)[1]  # type: ignore[index]
    advice = f"the control plane is built from source: install Go {needed} or newer (https://go.dev/dl)"
    if shutil.which("go") is None:
        raise NoGoToolchain(f"there is no Go here, and {advice}")
    # Inside the module's folder go itself compares its version with go.mod's, and fetches a newer one where it may.
    asked = subprocess.run(
        ["go", "env", "GOVERSION"], check=False, cwd=TOOLS / "kubernetes", capture_output=True, text=True
    )
    if asked.returncode:
        raise NoGoToolchain(f"{asked.stderr.strip().splitlines()[-1]}; {advice}")


def _build(name: str, folder: Path) -> None:
    module, package = PROGRAMS[name]
    unfinished = folder / f".{name}"
    flags = " ".join(["-s", "-w", *(f"-X {variable}={value}" for variable, value in _stamps().items())])
    command = [
        "nice",
        "go",
        "build",
        "-trimpath",
        "-buildvcs=false",
        "-p=2",
        "-ldflags",
        flags,
        "-o",
        str(unfinished),
        package,
    ]
    done = subprocess.run(
        command,
        check=False,
        cwd=TOOLS / module,
        env={**os.environ, "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"go could not build {name}:\n{done.stderr[-4000:]}")
    unfinished.rename(folder / name)


def _stamps() -> dict[str, str]:
    """Version variables that a release build sets; clients and Helm refuse to work with a server that has none."""
    version = pinned("k8s.io/kubernetes")
    major, minor = version.removeprefix("v").split(".")[:2]
    base = "k8s.io/component-base/version"
    return {
        f"{base}.gitVersion": version,
        f"{base}.gitMajor": major,
        f"{base}.gitMinor": minor,
        "helm.sh/helm/v4/internal/version.version": pinned("helm.sh/helm/v4", of="helm"),
    }


if __name__ == "__main__":
    try:
        print(binaries())
    except NoGoToolchain as problem:
        sys.exit(str(problem))
