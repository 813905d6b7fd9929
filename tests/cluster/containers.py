"""One container: an image's root, a layer above it, and a process in namespaces of its own, by bubblewrap.

What it has as on a real node: its user and groups, its read-only root, its volumes, its environment, process 1, no
privileges to gain, no capabilities, its host name, no user namespaces under the RuntimeDefault seccomp profile. What it
does not have: a network of its own (every pod shares this machine's loopback, on an address of its own), limits of memory
and processor, and the rest of the seccomp profile.
"""

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.cluster.images import Image
from tests.cluster.processes import fork, kill

# Each container gets a mount namespace; its root, an overlay, disappears with the last process in it.
_SETUP = 'mount -t overlay overlay -o "$1" "$2" && shift 2 && exec "$@"'


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine at a path of the container."""

    source: Path
    path: str
    read_only: bool = True


@dataclass(frozen=True)
class Plan:
    """Everything that decides what runs."""

    image: Image
    command: list[str]
    environment: Mapping[str, str]
    user: int
    group: int
    hostname: str
    groups: tuple[int, ...] = ()
    mounts: tuple[Mount, ...] = ()
    folder: str = "/"
    """The working directory."""
    read_only_root: bool = True
    user_namespaces: bool = True
    """False under the RuntimeDefault seccomp profile (kubernetes.io/docs/tutorials/security/seccomp)."""


class NotStarted(Exception):
    """The runtime could not start the process: a command that is not there, a folder that is not there."""


@dataclass
class Container:
    """A process that was started; `pid` is that of the container's process 1 as this machine sees it."""

    pid: int
    log: Path
    runtime: subprocess.Popen[bytes]
    started: float = field(default_factory=time.time)
    finished: float | None = None

    def exit_code(self) -> int | None:
        """None while it runs; 128 + the signal that ended it."""
        code = self.runtime.poll()
        if code is not None and self.finished is None:
            self.finished = time.time()
        return code if code is None or code >= 0 else 128 - code

    def usage(self) -> tuple[int, float]:
        """Resident bytes and processor seconds of what runs in it now."""
        try:
            top = psutil.Process(self.pid)
            family = [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0, 0.0
        memory, seconds = 0, 0.0
        for one in family:
            try:
                memory += one.memory_info().rss
                times = one.cpu_times()
            except psutil.NoSuchProcess:
                continue
            seconds += times.user + times.system
        return memory, seconds

    def signal(self, number: int) -> None:
        """As a container runtime does, to process 1: without a handler of its own it ignores all but SIGKILL (pid_namespaces(7))."""
        if self.runtime.poll() is None:
            kill(self.pid, number)


def run(plan: Plan, layer: Path, log: Path) -> Container:
    """Starts a container whose own layer is in the folder `layer`; raises NotStarted with the runtime's message."""
    for name in ("upper", "work", "root"):
        (layer / name).mkdir(parents=True, exist_ok=True)
    mounts = [_placed(mount, plan.image.root, layer / "upper") for mount in plan.mounts]
    for path in ("/proc", "/dev", *plan.image.from_host):
        _mount_point(plan.image.root, layer / "upper", path, is_folder=True)
    information, told = os.pipe()
    command = [*_outside(plan, layer), *_sandbox(plan, layer / "root", mounts, told), "--", *plan.command]
    with log.open("ab") as output:
        log.chmod(0o666)  # a container may open /dev/stdout anew
        runtime = fork(command, stdout=output, stderr=output, env=dict(plan.environment), pass_fds=(told,), cwd="/")
    os.close(told)
    with open(information, "rb") as read:
        pid = _pid(read.fileno())
    if pid is None or not _executed(runtime, pid, log):
        runtime.kill()
        runtime.wait()
        raise NotStarted(_last_line(log))
    return Container(pid, log, runtime)


def remove(layer: Path) -> None:
    """Forgets what a container wrote."""
    for closed in (layer / "work").glob("*"):
        closed.chmod(0o700)  # overlay leaves a folder that nobody but root may enter
    shutil.rmtree(layer, ignore_errors=True)


def inside(root: Path, path: str) -> str:
    """`path` with the links of an image's own file system followed, none of which can lead out of it."""
    done, waiting, links = "/", [part for part in path.split("/") if part], 0
    while waiting:
        part = waiting.pop(0)
        if part in (".", ".."):
            done = os.path.dirname(done) if part == ".." else done
            continue
        here = root / done.lstrip("/") / part
        if here.is_symlink() and (links := links + 1) <= 40:
            target = os.readlink(here)
            done = "/" if target.startswith("/") else done
            waiting = [piece for piece in target.split("/") if piece] + waiting
        else:
            done = os.path.join(done, part)
    return done


def _placed(mount: Mount, root: Path, upper: Path) -> Mount:
    path = _mount_point(root, upper, mount.path, mount.source.is_dir())
    return Mount(mount.source, path, mount.read_only)


def _mount_point(root: Path, upper: Path, path: str, is_folder: bool) -> str:
    """Makes what is missing for a mount in the container's layer, as container runtimes do; gives the path without links."""
    path = inside(root, path)
    below, above = root / path.lstrip("/"), upper / path.lstrip("/")
    if below.exists() or above.exists():
        return path
    folders = [above, *above.parents] if is_folder else list(above.parents)
    for folder in reversed(folders[: folders.index(upper)]):
        if folder.exists():
            continue
        folder.mkdir()
        original = root / folder.relative_to(upper)
        if original.is_dir():  # a merged folder shows the upper one's mode and owner
            shutil.copystat(original, folder)
            if os.geteuid() == 0:
                os.chown(folder, original.stat().st_uid, original.stat().st_gid)
    if not is_folder:
        above.touch()
    return path


def _outside(plan: Plan, layer: Path) -> list[str]:
    """The part that runs before bubblewrap: the overlay, then the user. Without root all users are us."""
    root = os.geteuid() == 0
    options = f"lowerdir={plan.image.root},upperdir={layer / 'upper'},workdir={layer / 'work'}"
    namespaces = ["unshare", "--mount", "--propagation", "private"]
    namespaces += [] if root else ["--user", "--map-root-user"]
    command = [shutil.which(namespaces[0]) or "unshare", *namespaces[1:], "--", "/bin/sh", "-c", _SETUP, "sh"]
    command += [options if root else f"{options},userxattr", str(layer / "root")]
    if root and plan.user:
        groups = ["--groups", ",".join(map(str, plan.groups))] if plan.groups else ["--clear-groups"]
        command += [
            shutil.which("setpriv") or "setpriv",
            f"--reuid={plan.user}",
            f"--regid={plan.group}",
            *groups,
            "--",
        ]
    return command


def _sandbox(plan: Plan, root: Path, mounts: list[Mount], information: int) -> list[str]:
    command = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session", "--as-pid-1"]
    command += ["--info-fd", str(information), "--hostname", plan.hostname, "--cap-drop", "ALL"]
    command += ["--unshare-user", "--uid", str(plan.user), "--gid", str(plan.group)]
    command += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    command += [] if plan.user_namespaces else ["--disable-userns"]
    command += ["--ro-bind" if plan.read_only_root else "--bind", str(root), "/"]
    for path in plan.image.from_host:
        command += ["--ro-bind", path, path]
    command += ["--proc", "/proc", "--dev", "/dev"]
    for mount in sorted(mounts, key=lambda one: one.path.count("/")):  # outer ones first
        command += ["--ro-bind" if mount.read_only else "--bind", str(mount.source), mount.path]
    return [*command, "--chdir", plan.folder]


def _pid(information: int) -> int | None:
    """What bubblewrap says about the process it made; None if it ended without a word."""
    text, deadline = b"", time.monotonic() + 30
    while b"}" not in text:
        ready, _, _ = select.select([information], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(information, 4096) if ready else b""
        if not piece:
            return None
        text += piece
    return int(json.loads(text)["child-pid"])


def _executed(runtime: subprocess.Popen[bytes], pid: int, log: Path) -> bool:
    """Waits until the container's program has replaced bubblewrap's own, or everything has ended."""
    bubblewrap = os.path.realpath(shutil.which("bwrap") or "bwrap")
    deadline = time.monotonic() + 30
    while runtime.poll() is None and time.monotonic() < deadline:
        try:
            if os.readlink(f"/proc/{pid}/exe") != bubblewrap:
                return True
        except OSError:
            pass  # it has just ended
        time.sleep(0.005)
    return not (runtime.poll() == 1 and _last_line(log).startswith("bwrap: "))


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "the runtime ended without a word"
