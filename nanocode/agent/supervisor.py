"""The process that starts sandboxed commands, watches them, and leaves none of them behind.

One fork server per process that uses sandboxes, started by `server.py` as `python -I -S`: a fork of it costs a
millisecond, a new Python ten. It takes one connection per command and forks a supervisor for it, or for Grep a process
that a bad pattern cannot keep. The supervisor forks the command, adopts every orphan below it, kills the tree at its
end, at a limit, or when the connection is hung up, and answers when the last process is gone.

    request    4 bytes of length, JSON
    answer     4 bytes of length, JSON, the output
"""

import json
import os
import platform
import re
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import time
import warnings
from contextlib import suppress
from typing import Any, NamedTuple

from nanocode.agent import kernel, seccomp

LINUX = platform.system() == "Linux"
# How often the tree is counted and its memory added up. A fork bomb makes a few hundred processes in that time.
CENSUS_SECONDS = 0.02
# Output beyond this ends the command: nobody reads it, and to carry it costs the machine.
FLOOD_BYTES = 16 << 20
OPEN_FILES = 256
# Threads that other processes of the same user may start while a command runs.
NPROC_SLACK = 256
SEARCH_BYTES = 1 << 30
PRIVATE_TMP = "/tmp"  # noqa: S108 - of the command's own
PRIVATE_TMP_BYTES = 64 << 20
# User ids that nobody has: one per command, so that RLIMIT_NPROC counts its processes and no others.
FIRST_USER, FIRST_USER_IN_CONTAINER, USERS_IN_CONTAINER = 0x70000000, 50_000, 15_000
KILLED = 128 + signal.SIGKILL

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32")
SETTINGS = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf", "/etc/mime.types")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


class Request(NamedTuple):
    """What the server is asked to run."""

    command: str
    root: str
    grade: str
    wall_seconds: float
    cpu_seconds: int
    memory_bytes: int
    processes: int
    file_bytes: int
    output_bytes: int


class Outcome(NamedTuple):
    """What became of it; `refused` says why it was never started."""

    exit_code: int = 0
    timed_out: bool = False
    truncated: bool = False
    refused: str = ""


class Server(NamedTuple):
    """What all supervisors share."""

    scratch: str
    """A folder of this server's own, removed with it."""
    python: str
    """The interpreter that `python3` is inside, as a folder laid out like a virtual environment."""
    prefix: str
    """Where that interpreter is installed."""
    droppable: bool
    """Root with what it takes to become another user."""


def serve(control: int, scratch: str, python: str, prefix: str) -> None:
    """Take connections from the socket `control` until its other end is closed, then remove `scratch`."""
    needed = (kernel.CAP_DAC_OVERRIDE, kernel.CAP_SETGID, kernel.CAP_SETUID, kernel.CAP_SETPCAP)
    droppable = LINUX and os.geteuid() == 0 and all(kernel.effective_capabilities() >> c & 1 for c in needed)
    server = Server(scratch, python, prefix, droppable)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are reaped by the kernel
    channel = socket.socket(fileno=control)
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        if not message:
            break
        for descriptor in descriptors:
            try:
                child = os.fork()
            except OSError:
                child = -1  # the caller sees the connection end without an answer
            if child == 0:
                channel.close()
                _answer(socket.socket(fileno=descriptor), server)
            os.close(descriptor)
    shutil.rmtree(scratch, ignore_errors=True)


def _answer(connection: socket.socket, server: Server) -> None:
    """Supervise one command, in a process of its own that ends here."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        asked = json.loads(_receive(connection))
        answer, output = (_search if asked.pop("kind") == "search" else _run)(asked, connection, server)
        header = json.dumps(answer).encode()
        with suppress(BrokenPipeError):  # the caller has given up
            connection.sendall(struct.pack("=I", len(header)) + header + output)
    finally:
        os._exit(0)


def _receive(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as stream:
        (length,) = struct.unpack("=I", stream.read(4))
        return stream.read(int(length))


def _search(asked: dict[str, Any], connection: socket.socket, server: Server) -> tuple[dict[str, Any], bytes]:
    """In which lines of the texts the pattern is found. No pattern can hold this process longer than its alarm."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, asked["seconds"])
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (SEARCH_BYTES, SEARCH_BYTES))
    hits: list[tuple[int, int]] = []
    size = 0
    try:
        warnings.simplefilter("ignore")
        compiled = re.compile(asked["pattern"])
        for text, lines in enumerate(asked["texts"]):
            for number, line in enumerate(lines):
                if size < asked["most"] and compiled.search(line):
                    hits.append((text, number))
                    size += len(line) + 1
    except (re.error, RecursionError, OverflowError, MemoryError, ValueError) as error:
        return {"hits": [], "error": str(error) or type(error).__name__}, b""
    return {"hits": hits, "error": ""}, b""


def _run(asked: dict[str, Any], connection: socket.socket, server: Server) -> tuple[dict[str, Any], bytes]:
    try:
        outcome, output = _supervise(Request(**asked), connection, server)
    except OSError as error:
        return Outcome(refused=str(error))._asdict(), b""
    return outcome._asdict(), output


def _supervise(request: Request, connection: socket.socket, server: Server) -> tuple[Outcome, bytes]:
    deadline = time.monotonic() + request.wall_seconds
    if LINUX:
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    tmp = f"{server.scratch}/{os.getpid()}"
    user = _user() if server.droppable and request.grade != "none" else None
    os.mkdir(tmp, 0o700)
    try:
        if user is not None:
            os.chown(tmp, user, user)
        output_end, output_write = os.pipe()
        trouble_end, trouble_write = os.pipe()
        child = os.fork()
        if child == 0:
            _become_command(request, server, tmp, user, output_write, trouble_write)
        os.close(output_write)
        os.close(trouble_write)
        outcome, output = _watch(child, request, deadline, output_end, connection)
        trouble = _trouble(request, os.read(trouble_end, 4096))
        if trouble:
            return Outcome(refused=trouble + (f": {output.decode(errors='replace').strip()}" if output else "")), b""
        if user is not None:
            _give_back(request.root, user)
        return outcome, output
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _trouble(request: Request, said: bytes) -> str:
    """Why the sandbox could not be built, from what came through the pipe that exec closes."""
    if request.grade == "namespaces":  # bwrap writes the process id once everything is set up
        return "" if b"child-pid" in said else "bubblewrap failed"
    return said.decode(errors="replace")


def _user() -> int:
    """A user id for the command of this supervisor, among those that this container maps."""
    with open("/proc/self/uid_map") as mapped:
        highest = max(int(line.split()[0]) + int(line.split()[2]) for line in mapped)
    if highest > FIRST_USER + (1 << 22):  # process ids end there
        return FIRST_USER + os.getpid()
    return FIRST_USER_IN_CONTAINER + os.getpid() % USERS_IN_CONTAINER


def _give_back(root: str, user: int) -> None:
    """Files that the command made belong to whoever owns the workspace."""
    owner = os.stat(root)
    for _, folders, names, descriptor in os.fwalk(root):
        for name in (*folders, *names):
            with suppress(FileNotFoundError):
                if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_uid == user:
                    os.chown(name, owner.st_uid, owner.st_gid, dir_fd=descriptor, follow_symlinks=False)


# -- the command ------------------------------------------------------------------------------------------------------


def _become_command(request: Request, server: Server, tmp: str, user: int | None, output: int, trouble: int) -> None:
    """Turn this process into the sandboxed command. Never returns: trouble is told through the pipe."""
    try:
        os.setsid()
        # Python ignores the first two, the server the others, and what is ignored stays so across exec.
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        nothing = os.open("/dev/null", os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(trouble, 3)
        os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0] if not LINUX else 1 << 16)
        os.set_inheritable(3, request.grade == "namespaces")
        os.chdir(request.root)
        os.umask(0o022)
        if LINUX:
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        environment = {
            "PATH": f"{server.python}/bin:/usr/local/bin:/usr/bin:/bin",
            "HOME": request.root,
            "PWD": request.root,
            "TMPDIR": tmp,
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            # Else git refuses to work in a folder that belongs to another user than the command's.
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
        }  # fmt: skip
        _limit(request)
        if LINUX and user is None and request.grade != "namespaces":
            # Counted with all else that this user runs, now and soon; the census knows better, but comes later.
            most = _threads_of_this_user() + request.processes + NPROC_SLACK
            hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
        if request.grade == "namespaces":
            _exec_bubblewrap(request, server, user, environment | {"TMPDIR": PRIVATE_TMP})
        if request.grade == "landlock":
            _confine(request, server, tmp, user)
        os.execve("/bin/sh", ["sh", "-c", request.command], environment)  # noqa: S606
    except BaseException as error:
        os.write(3, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(126)


def _limit(request: Request) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, request.memory_bytes),
        (resource.RLIMIT_FSIZE, request.file_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(ValueError, OSError):  # macOS refuses some, and there is no sandbox there anyway
            resource.setrlimit(kind, (most, most))
    # SIGXCPU at the soft limit can be caught, SIGKILL at the hard one cannot.
    resource.setrlimit(resource.RLIMIT_CPU, (request.cpu_seconds, request.cpu_seconds + 1))


def _threads_of_this_user() -> int:
    count = 0
    for pid in os.listdir("/proc"):
        with suppress(OSError, ValueError):
            if os.stat(f"/proc/{int(pid)}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{pid}/task"))
    return count


def _confine(request: Request, server: Server, tmp: str, user: int | None) -> None:
    """Landlock and seccomp on this process."""
    if user is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (request.processes, request.processes))
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.restrict_files((*SYSTEM, *SETTINGS, server.prefix, server.python), DEVICES, (request.root, tmp))
    if user is not None:
        # Landlock holds whatever the capabilities; this one lets it into root's own workspaces and interpreter.
        kernel.become(user, (kernel.CAP_DAC_OVERRIDE,))
    kernel.filter_calls(_filter(request.grade, user))


def _filter(grade: str, user: int | None) -> bytes:
    version = kernel.landlock_version()
    by_landlock = grade == "landlock"
    scoped = not by_landlock or user is not None or version >= kernel.LANDLOCK_SCOPE_SINCE
    return seccomp.program(
        seccomp.refusals(
            files_by_landlock=by_landlock,
            own_user=user is not None,
            signals_scoped=scoped,
            truncate_scoped=version >= kernel.LANDLOCK_TRUNCATE_SINCE,
        )
    )


def _exec_bubblewrap(request: Request, server: Server, user: int | None, environment: dict[str, str]) -> None:
    """Replace this process by bwrap, which replaces its child by the command."""
    filter_end, filter_write = os.pipe()
    os.write(filter_write, _filter("namespaces", user))  # 4 KB: fits the pipe
    os.close(filter_write)
    os.set_inheritable(filter_end, True)
    # RLIMIT_NPROC is counted per user: for root in its new user id, otherwise in the new user namespace.
    most = f"--nproc={request.processes}:{request.processes}"
    limited = ["/usr/bin/prlimit", most]
    unshared = ["--unshare-all"]
    if user is not None:
        # Without a user namespace, where no other user could be had; capabilities end with the change of user.
        unshared = [f"--unshare-{kind}" for kind in ("pid", "net", "ipc", "uts", "cgroup-try")]
        unshared += ["--cap-drop", "ALL"]
        for capability in ("SETUID", "SETGID", "SETPCAP", "DAC_OVERRIDE", "FOWNER"):
            unshared += ["--cap-add", f"CAP_{capability}"]
        kept = "-all,+dac_override,+fowner"
        limited += [
            "/usr/bin/setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", f"--inh-caps={kept}",
            f"--ambient-caps={kept}", f"--bounding-set={kept}",
        ]  # fmt: skip
    arguments = ["bwrap", *unshared, "--die-with-parent", "--new-session", "--json-status-fd", "3"]
    arguments += ["--seccomp", str(filter_end)]
    for path in SYSTEM:
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        else:
            arguments += ["--ro-bind-try", path, path]
    for path in SETTINGS:
        arguments += ["--ro-bind-try", path, path]
    arguments += ["--size", str(PRIVATE_TMP_BYTES), "--perms", "1777", "--tmpfs", PRIVATE_TMP]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    if not server.prefix.startswith("/usr/") and server.prefix != "/usr":
        arguments += ["--ro-bind", server.prefix, server.prefix]
    arguments += ["--ro-bind", server.python, server.python, "--bind", request.root, request.root]
    arguments += ["--remount-ro", "/", "--chdir", request.root]
    path = shutil.which("bwrap") or "/usr/bin/bwrap"
    os.execve(path, [*arguments, "--", *limited, "/bin/sh", "-c", request.command], environment)  # noqa: S606


# -- watching ---------------------------------------------------------------------------------------------------------


def _watch(
    child: int, request: Request, deadline: float, output_end: int, connection: socket.socket
) -> tuple[Outcome, bytes]:
    """Wait for the command to end or to be ended, and for all that it started to be gone."""
    kept = bytearray()
    seen = 0
    timed_out = killed = False
    status: int | None = None
    os.set_blocking(output_end, False)
    poll = select.poll()
    poll.register(output_end, select.POLLIN)
    poll.register(connection, select.POLLHUP)
    ending = -1
    if hasattr(os, "pidfd_open"):
        with suppress(OSError):
            ending = os.pidfd_open(child)
            poll.register(ending, select.POLLIN)
    next_census = time.monotonic() + CENSUS_SECONDS
    while status is None and not killed:
        now = time.monotonic()
        if now >= deadline:
            timed_out = killed = True
            break
        if now >= next_census:
            killed = _exceeds(request)
            next_census = time.monotonic() + CENSUS_SECONDS
        pause = min(next_census, deadline) - now if ending >= 0 else 0.002
        for descriptor, event in poll.poll(max(pause * 1000, 0.1)):
            if descriptor == output_end:
                data = _read(output_end)
                if data is None:
                    poll.unregister(output_end)
                else:
                    seen += len(data)
                    kept += data[: request.output_bytes - len(kept)]
                    killed = killed or seen > FLOOD_BYTES
            elif descriptor == connection.fileno() and event & (select.POLLHUP | select.POLLERR):
                killed = True  # nobody waits for the answer any more
        done, ended = os.waitpid(child, os.WNOHANG)
        if done:
            status = ended
    _kill_all(child)
    while data := _read(output_end):
        seen += len(data)
        kept += data[: request.output_bytes - len(kept)]
    code = KILLED if killed or status is None else os.waitstatus_to_exitcode(status)
    return Outcome(code if code >= 0 else 128 - code, timed_out, seen > len(kept)), bytes(kept)


def _read(descriptor: int) -> bytes | None:
    """What is there: empty when nothing is yet, None when nothing can come any more."""
    try:
        return os.read(descriptor, 65536) or None
    except BlockingIOError:
        return b""


def _exceeds(request: Request) -> bool:
    """Whether there are too many processes, or all of them together hold too much memory."""
    family = _descendants()
    # bwrap's own two count as well.
    return len(family) > request.processes + 2 or _resident_bytes(family) > request.memory_bytes


def _resident_bytes(family: list[int]) -> int:
    pages = 0
    for pid in family:
        with suppress(OSError), open(f"/proc/{pid}/statm") as statm:
            _, resident, shared, *_ = statm.read().split()
            pages += int(resident) - int(shared)
    return pages * resource.getpagesize()


def _descendants() -> list[int]:
    """All processes below this one, parents first; from /proc, whose `children` not every kernel has."""
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        parent = waiting.pop()
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for thread in threads:
            try:
                with open(f"/proc/{parent}/task/{thread}/children") as children:
                    below = [int(pid) for pid in children.read().split()]
            except OSError:
                continue
            found += below
            waiting += below
    return found


def _kill_all(child: int) -> None:
    """Kill the command and all that came of it, and wait until none is left."""
    while True:
        # A whole group dies at once: a process with the signal pending cannot fork. Who left it is found one by one.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        for pid in _descendants() if LINUX else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while True:
                done, _ = os.waitpid(-1, os.WNOHANG)
                if not done:
                    break
        except ChildProcessError:
            return
        time.sleep(0.0005)


def main(arguments: list[str]) -> Any:
    """`python -I -S -c ...`: descriptor, scratch folder, interpreter folder, its prefix."""
    control, scratch, python, prefix = arguments
    if os.fork():
        os._exit(0)
    serve(int(control), scratch, python, prefix)


if __name__ == "__main__":
    main(sys.argv[1:])
