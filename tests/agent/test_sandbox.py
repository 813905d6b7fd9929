"""What a hostile command can do in each grade that this machine has: nothing outside its workspace, and not for long."""

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nanocode.agent import kernel
from nanocode.agent.sandbox import Finished, Grade, Limits, Refused, Sandbox, available_grades, best_grade

HELD = (Grade.NAMESPACES, Grade.LANDLOCK)
SECRET = "the-secret-of-the-host"
QUICK = Limits(wall_seconds=5, cpu_seconds=2, memory_bytes=256 << 20, processes=32)
UNHURRIED = 1.5
"""Seconds beyond its limit that a command may take to be gone, on a machine that others use."""


def needs(grade: Grade) -> Grade:
    """The grade; skips where the machine lacks what it stands on. Where it is there, the grade has to work."""
    if grade not in available_grades():
        assert not stands(grade), f"{grade} does not hold on a machine that has what it needs"
        pytest.skip(f"this machine cannot hold commands by {grade}")
    return grade


def stands(grade: Grade) -> bool:
    if grade is Grade.LANDLOCK:
        return sys.platform == "linux" and kernel.landlock_version() > 0
    bare = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    return shutil.which("bwrap") is not None and subprocess.run(bare, check=False).returncode == 0


@pytest.fixture(params=HELD, ids=str)
def grade(request: pytest.FixtureRequest) -> Grade:
    return needs(request.param)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace with one file, beside a secret and a file that must not change."""
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "inside.txt").write_text("inside\n")
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "outside.txt").write_text("untouched")
    os.utime(tmp_path / "outside.txt", (1e9, 1e9))  # long ago, so that a touch shows
    return tmp_path / "workspace"


@pytest.fixture
def loopback() -> Iterator[int]:
    """The port of a server on this machine that says hello."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        closing = threading.Event()

        def answer() -> None:
            while not closing.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.sendall(b"hello from the host")

        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        closing.set()
        thread.join()


def run(root: Path, grade: Grade, command: str, limits: Limits = QUICK) -> Finished:
    return Sandbox(root, limits, grade, unsafe=grade is Grade.NONE).run(command)


def python(code: str) -> str:
    """A shell command that runs the code."""
    return f"python3 - <<'END'\n{code}\nEND"


def processes_with(word: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if any(word in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


# -- what works ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "command", "output"),
    [
        ("the workspace is where commands run", "cat inside.txt", "inside\n"),
        ("files can be made, changed, moved and removed",
         "mkdir -p a/b; echo 1 > a/b/c; mv a/b/c d; echo 2 >> d; cat d; rm -r a d; ls", "1\n2\ninside.txt\n"),
        ("python3 runs", "python3 -c 'print(1)'", "1\n"),
        ("python is the same interpreter", "python -c 'import sys; print(sys.version_info[:2])'", f"{sys.version_info[:2]}\n"),
        ("python has its extension modules", "python3 -c 'import ctypes, json, hashlib, sqlite3; print(1)'", "1\n"),
        ("python can start processes", python("import subprocess\nprint(subprocess.run(['echo', 'hi'], capture_output=True))"),
         "CompletedProcess(args=['echo', 'hi'], returncode=0, stdout=b'hi\\n', stderr=b'')\n"),
        ("threads run", python("import threading\nt = threading.Thread(target=print, args=(1,)); t.start(); t.join()"), "1\n"),
        ("asyncio runs", python("import asyncio\nprint(asyncio.run(asyncio.sleep(0, 7)))"), "7\n"),
        ("unittest runs", "printf 'import unittest\\nclass T(unittest.TestCase):\\n def test_a(self): self.assertEqual(1,1)\\n' > test_a.py; python3 -m unittest 2>&1 | tail -1", "OK\n"),
        ("a temporary file can be made", 'f=$(mktemp) && echo ok > "$f" && cat "$f"', "ok\n"),
        ("python's temporary files too", python("import tempfile\nwith tempfile.NamedTemporaryFile() as f: print(f.write(b'abc'))"), "3\n"),
        ("a pipeline runs", "printf 'b\\na\\n' | sort | tr '\\n' ' '", "a b "),
        ("a pipe that closes early ends its writer quietly", "yes | head -n 1", "y\n"),
        ("a script that the command makes executable runs", "printf '#!/bin/sh\\necho hi\\n' > s.sh; chmod +x s.sh; ./s.sh", "hi\n"),
        ("touch, cp and sed -i work", "touch new; cp inside.txt copy; sed -i s/in/out/ copy; cat copy; touch new", "outside\n"),
        ("its own child can be killed", "(sleep 60 & kill $!; wait $!; echo $?) 2>&-", "143\n"),
        ("standard input is empty", "cat; echo done", "done\n"),
        ("both streams are in the output", "echo out; echo err >&2", "out\nerr\n"),
        ("what is no UTF-8 is shown as such", "printf '\\377x'", "\ufffdx"),
        ("hashes do not depend on the day", "python3 -c 'import os; print(os.environ[\"PYTHONHASHSEED\"])'", "0\n"),
        ("home is the workspace", '[ "$HOME" = "$PWD" ] && echo same', "same\n"),
        ("no byte code is left behind", "echo 'x = 1' > m.py; python3 -c 'import m'; ls", "inside.txt\nm.py\n"),
    ],
    ids=lambda value: value if " " in str(value) and len(str(value)) < 60 else "",
)  # fmt: skip
def test_ordinary_work_succeeds(root: Path, grade: Grade, what: str, command: str, output: str) -> None:
    finished = run(root, grade, command)
    assert (finished.output, finished.exit_code) == (output, 0), what


@pytest.mark.parametrize(
    ("command", "exit_code"),
    [("true", 0), ("false", 1), ("exit 42", 42), ("kill -TERM $$", 143), ("no-such-program", 127), ("(", 2)],
)
def test_the_exit_code_is_the_shells(root: Path, grade: Grade, command: str, exit_code: int) -> None:
    assert run(root, grade, command).exit_code == exit_code


def test_files_that_a_command_makes_belong_to_the_owner_of_the_workspace(root: Path, grade: Grade) -> None:
    assert run(root, grade, "mkdir made; echo 1 > made/file").exit_code == 0
    assert (root / "made" / "file").stat().st_uid == root.stat().st_uid == (root / "made").stat().st_uid


# -- hostile: what lies outside -----------------------------------------------------------------------------------------

READS = {
    "a file beside the workspace": "cat ../secret.txt",
    "a file by its absolute path": "cat {outside}/secret.txt",
    "a file through a symbolic link": "ln -s {outside}/secret.txt link; cat link",
    "a file through a link in a folder": "ln -s {outside} link; cat link/secret.txt",
    "a file through a hard link": "ln {outside}/secret.txt hard && cat hard",
    "a file through /proc/self/root": "cat /proc/self/root{outside}/secret.txt",
    "a file through the root of process 1": "cat /proc/1/root{outside}/secret.txt",
    "a file moved into the workspace": "mv {outside}/secret.txt here && cat here",
    "a folder's list": "ls {outside} | grep -q secret.txt && echo {secret}",
    "a file in python": "python3 -c 'print(open(\"{outside}/secret.txt\").read())'",
    "a file after changing the root": "chroot {outside} /bin/cat secret.txt; cat /secret.txt",
    "a file with a mount over the workspace": "mkdir m; mount --bind {outside} m && cat m/secret.txt",
    "a file from a new user namespace": "unshare -Ur cat {outside}/secret.txt",
    "the environment of the caller": "cat /proc/*/environ /proc/{caller}/environ | tr '\\0' '\\n' | grep -a {secret}",
    "the environment that is inherited": "env; cat /proc/self/environ",
    "the command line of the caller": "cat /proc/{caller}/cmdline && echo {secret}",
    "the memory of the caller": "cat /proc/{caller}/mem > mem && echo {secret}",
    "descriptors of the caller": "for i in 3 4 5 6 7 8 9; do eval \"cat <&$i\"; done; ls -l /proc/self/fd | grep {outside} && echo {secret}",
    "/etc/shadow": "cat /etc/shadow && echo {secret}",
    "the home of root": "ls /root/.ssh /root/.bashrc && echo {secret}",
    "the machine's secrets": "cat /var/run/secrets/kubernetes.io/serviceaccount/token /etc/machine-id && echo {secret}",
    "the kernel's memory": "cat /proc/kcore | head -c 10 | grep -q ELF && echo {secret}",
    "a disk": "head -c 10 /dev/vda /dev/sda /dev/nvme0n1 && echo {secret}",
}  # fmt: skip


@pytest.mark.parametrize("what", READS)
def test_a_command_cannot_read(root: Path, grade: Grade, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST_TOKEN", SECRET)
    command = READS[what].format(outside=root.parent, secret=SECRET, caller=os.getpid())
    assert SECRET not in run(root, grade, command).output
    assert (root.parent / "secret.txt").read_text() == SECRET


@pytest.mark.parametrize(
    "what",
    ["a file beside the workspace", "a file by its absolute path", "a file through a symbolic link", "a file through a hard link",
     "a folder's list"],
)  # fmt: skip
def test_without_a_sandbox_the_same_command_reads(root: Path, what: str) -> None:
    command = READS[what].format(outside=root.parent, secret=SECRET, caller=os.getpid())
    assert SECRET in run(root, Grade.NONE, command).output


WRITES = {
    "writing to it": "echo changed > ../outside.txt",
    "appending through a link": "ln -s ../outside.txt l; echo changed >> l",
    "truncating it": python("import os; os.truncate('../outside.txt', 0)"),
    "removing it": "rm -f ../outside.txt",
    "renaming it": "mv ../outside.txt ../moved.txt",
    "moving another over it": "mv -f inside.txt ../outside.txt",
    "changing its mode": "chmod 000 ../outside.txt",
    "changing its mode by a system call": python("import os; os.chmod('../outside.txt', 0)"),
    "changing its times": "touch -d 2001-01-01 ../outside.txt",
    "touching it": python("import os; os.utime('../outside.txt')"),
    "giving it an attribute": python("import os; os.setxattr('../outside.txt', 'user.a', b'1')"),
    "changing its owner": "chown 12345 ../outside.txt",
    "making a file beside it": "echo x > ../new.txt",
    "making a folder beside it": "mkdir ../new",
    "making a link beside it": "ln -s x ../new",
    "making a hard link of it": "ln ../outside.txt hard; echo changed > hard",
    "a mount over its folder": "mount -t tmpfs none ..",
    "dd": "dd if=/dev/zero of=../outside.txt bs=9 count=1",
    "a script in python": python("open('../outside.txt', 'w').write('changed')"),
    "a daemon": "(setsid sh -c 'sleep 0.3; echo changed > ../outside.txt' &)",
}


@pytest.mark.parametrize("what", WRITES)
def test_a_command_cannot_change_a_file_outside_by(root: Path, grade: Grade, what: str) -> None:
    def state() -> list[tuple[object, ...]]:
        paths = sorted(root.parent.iterdir())
        return [
            (p.name, s.st_mode, s.st_uid, s.st_mtime_ns, s.st_nlink) for p in paths for s in [p.lstat()] if p != root
        ]

    before = state()
    run(root, grade, WRITES[what])
    assert state() == before
    assert (root.parent / "outside.txt").read_text() == "untouched"
    assert not [name for name in os.listdir(root.parent) if name not in ("workspace", "secret.txt", "outside.txt")]


@pytest.mark.parametrize(
    "what", ["writing to it", "truncating it", "touching it", "changing its mode", "making a folder beside it"]
)
def test_without_a_sandbox_the_same_command_changes(root: Path, what: str) -> None:
    before = (root.parent.stat(), (root.parent / "outside.txt").stat())
    run(root, Grade.NONE, WRITES[what])
    assert (root.parent.stat(), (root.parent / "outside.txt").stat()) != before


@pytest.mark.parametrize(
    "place",
    [
        "/usr/bin",
        "/usr/lib",
        "/etc",
        "/",
        "/var/tmp",
        "/dev/shm",
        "/home",
        "/root",
        sys.base_prefix,
        "/proc/sys/kernel",
    ],
)
def test_a_command_cannot_write_to(root: Path, grade: Grade, place: str) -> None:
    name = f"nanocode-test-{os.getpid()}"
    run(root, grade, f"echo x > {place}/{name}; mkdir {place}/{name}-folder")
    assert not Path(place, name).exists()
    assert not Path(place, f"{name}-folder").exists()


def test_the_files_in_tmp_are_the_commands_own(root: Path, grade: Grade) -> None:
    mark = Path("/tmp", f"nanocode-test-{os.getpid()}-{grade}")
    mark.write_text(SECRET)
    try:
        output = run(root, grade, f"cat {mark}; echo changed > {mark}; echo x > {mark}-new").output
        assert SECRET not in output
        assert mark.read_text() == SECRET
        assert not Path(f"{mark}-new").exists()
        run(root, grade, 'echo left > "$TMPDIR/left"')
        assert run(root, grade, 'ls "$TMPDIR"').output == (
            "" if grade is Grade.LANDLOCK else run(root, grade, "ls /tmp").output
        )
        assert "left" not in run(root, grade, 'ls "$TMPDIR"').output
    finally:
        mark.unlink()


# -- hostile: other processes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    ["kill -9 {pid}", "kill -9 -1", "kill -9 0", "kill -9 -{pid}", "kill -STOP {pid}", "python3 -c 'import os; os.kill(os.getppid(), 9); os.kill({pid}, 9)'",
     "python3 -c 'import os, signal; signal.pidfd_send_signal(os.pidfd_open({pid}), 9)'",
     "python3 -c 'import resource; resource.prlimit({pid}, resource.RLIMIT_NOFILE, (0, 0))'",
     "python3 -c 'import os; os.sched_setaffinity({pid}, [0]); os.setpriority(0, {pid}, 19)'",
     "p=$PPID; while [ $p -gt 1 ]; do kill -9 $p || break; p=$((p - 1)); done"],
)  # fmt: skip
def test_a_process_outside_survives(root: Path, grade: Grade, how: str) -> None:
    victim = subprocess.Popen(["sleep", "60"])
    try:
        before = psutil.Process(victim.pid)
        limits, cores, nice = before.rlimit(psutil.RLIMIT_NOFILE), before.cpu_affinity(), before.nice()
        run(root, grade, how.format(pid=victim.pid), replace(QUICK, wall_seconds=2))
        assert victim.poll() is None
        assert (before.rlimit(psutil.RLIMIT_NOFILE), before.cpu_affinity(), before.nice()) == (limits, cores, nice)
        assert before.status() != psutil.STATUS_STOPPED
        assert run(root, grade, "echo alive").output == "alive\n"
    finally:
        victim.kill()
        victim.wait()


def test_without_a_sandbox_a_process_outside_is_killed(root: Path) -> None:
    victim = subprocess.Popen(["sleep", "60"])
    run(root, Grade.NONE, f"kill -9 {victim.pid}")
    assert victim.wait(5) == -signal.SIGKILL


SYSTEM_CALLS = {
    # x86_64, aarch64, arguments
    "ptrace": (101, 117, (16, "parent", 0, 0)),
    "process_vm_readv": (310, 270, ("parent", 0, 0, 0, 0, 0)),
    "socket of the internet": (41, 198, (2, 1, 0)),
    "socket of the machine": (41, 198, (1, 1, 0)),
    "socket of the hypervisor": (41, 198, (40, 1, 0)),
    "socket of netlink": (41, 198, (16, 3, 0)),
    "raw socket": (41, 198, (17, 3, 0)),
    "pair of datagram sockets": (53, 199, (1, 2, 0, 0)),
    "unshare": (272, 97, (0x10000000,)),
    "clone into a user namespace": (56, 220, (0x10000000 | 17, 0, 0, 0, 0)),
    "bpf": (321, 280, (0, 0, 0)),
    "io_uring_setup": (425, 425, (1, 0)),
    "keyctl": (250, 219, (0, -3, 0, 0, 0)),
    "perf_event_open": (298, 241, (0, 0, -1, -1, 0)),
    "userfaultfd": (323, 282, (0,)),
    "open_by_handle_at": (304, 265, (-100, 0, 0)),
    "shared memory by number": (29, 194, (0, 4096, 0o1600)),
    "pidfd_open": (434, 434, ("parent", 0)),
    "mount": (165, 40, (0, 0, 0, 0, 0)),
    "set-user-id bit": (268, 53, (-100, "file", 0o4755)),
    "a signal for an open file": (72, 25, (0, 8, "parent")),
}  # fmt: skip


@pytest.mark.parametrize("call", SYSTEM_CALLS)
def test_the_system_call_is_refused(root: Path, grade: Grade, call: str) -> None:
    x86_64, aarch64, arguments = SYSTEM_CALLS[call]
    number = x86_64 if os.uname().machine == "x86_64" else aarch64
    values = {"parent": "os.getppid()", "file": "b'inside.txt'"}
    listed = ", ".join(values.get(str(a), f"ctypes.c_long({a})") for a in arguments)
    code = f"import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.syscall({number}, {listed}), ctypes.get_errno())"
    assert run(root, grade, python(code)).output == "-1 1\n"


def test_32_bit_system_calls_are_not_a_way_round(root: Path, grade: Grade) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the x32 numbers are of x86_64")
    code = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.syscall({0x40000000 + 41}, 2, 1, 0), ctypes.get_errno())"
    assert run(root, grade, python(code)).output == "-1 38\n"


# -- hostile: the network -----------------------------------------------------------------------------------------------

CONNECT = "import socket\nwith socket.create_connection(({host!r}, {port}), timeout=2) as s: print(s.recv(100))"


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "8.8.8.8", "::1", "metadata.google.internal"])
def test_nothing_connects_to(root: Path, grade: Grade, host: str, loopback: int) -> None:
    started = time.monotonic()
    finished = run(root, grade, python(CONNECT.format(host=host, port=loopback)))
    assert finished.exit_code == 1
    assert "hello" not in finished.output
    assert time.monotonic() - started < 2, "refused at once, not after a timeout"


def test_without_a_sandbox_the_loopback_server_answers(root: Path, loopback: int) -> None:
    assert "hello" in run(root, Grade.NONE, python(CONNECT.format(host="127.0.0.1", port=loopback))).output


def test_a_socket_file_in_the_workspace_leads_nowhere(
    root: Path, grade: Grade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)  # a socket's path may have 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        server.listen()
        code = "import socket\ns = socket.socket(socket.AF_UNIX); s.connect('s'); print('connected')"
        assert "connected" not in run(root, grade, python(code)).output
        assert "connected" in run(root, Grade.NONE, python(code)).output


# -- hostile: what a command takes --------------------------------------------------------------------------------------


def test_an_endless_sleep_is_ended(root: Path, grade: Grade) -> None:
    started = time.monotonic()
    finished = run(root, grade, "echo begun; sleep 1000", replace(QUICK, wall_seconds=0.5))
    assert finished == Finished("begun\n", 137, timed_out=True, truncated=False)
    assert time.monotonic() - started < 0.5 + UNHURRIED


def test_a_command_that_ignores_signals_is_ended(root: Path, grade: Grade) -> None:
    command = "trap '' TERM INT HUP XCPU; while :; do :; done"
    assert run(root, grade, command, replace(QUICK, wall_seconds=0.5)).timed_out


def test_a_busy_loop_uses_up_its_cpu_seconds(root: Path, grade: Grade) -> None:
    finished = run(root, grade, "while :; do :; done", replace(QUICK, cpu_seconds=1, wall_seconds=20))
    assert not finished.timed_out
    assert finished.exit_code in (128 + signal.SIGXCPU, 128 + signal.SIGKILL)


@pytest.mark.parametrize(
    "daemon",
    ["sleep {n} &", "(setsid sleep {n} &)", "nohup sleep {n} >/dev/null 2>&1 &",
     "python3 -c 'import os\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0: os.execvp(\"sleep\", [\"sleep\", \"{n}\"])'"],
    ids=["in the background", "of its own session", "that ignores the hang-up", "forked twice"],
)  # fmt: skip
def test_no_daemon_outlives_the_call(root: Path, grade: Grade, daemon: str) -> None:
    number = f"98{os.getpid()}.{time.monotonic_ns()}"
    started = time.monotonic()
    assert run(root, grade, daemon.format(n=number)).exit_code == 0
    assert time.monotonic() - started < UNHURRIED
    assert not processes_with(number)


def test_a_daemon_is_gone_after_a_timeout_too(root: Path, grade: Grade) -> None:
    number = f"97{os.getpid()}.{time.monotonic_ns()}"
    run(root, grade, f"(setsid sleep {number} &) ; sleep {number}", replace(QUICK, wall_seconds=0.3))
    assert not processes_with(number)


@pytest.mark.parametrize(
    "bomb",
    ["f() { f | f & }; f; sleep 100", "while :; do (setsid sleep 50 &) ; done", "python3 -c 'import os\nwhile True: os.fork()'",
     "python3 -c 'import os\nwhile True:\n if os.fork() == 0: os.setsid()'"],
    ids=["in the shell", "of sessions", "in python", "in python, of sessions"],
)  # fmt: skip
def test_a_fork_bomb_ends_and_the_machine_stays_usable(root: Path, grade: Grade, bomb: str) -> None:
    name = f"bomb-{os.getpid()}-{time.monotonic_ns()}"
    most = 0
    done = threading.Event()

    def count() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, len(psutil.pids()))
            time.sleep(0.05)

    before = len(psutil.pids())
    watcher = threading.Thread(target=count)
    watcher.start()
    started = time.monotonic()
    run(root, grade, f": {name}; {bomb}", replace(QUICK, wall_seconds=1))
    took = time.monotonic() - started
    done.set()
    watcher.join()
    assert took < 1 + 3 * UNHURRIED
    assert most - before < 5 * QUICK.processes
    assert not processes_with(name)
    assert run(root, grade, "echo alive").output == "alive\n"


def test_processes_beyond_the_limit_do_not_start(root: Path, grade: Grade) -> None:
    finished = run(root, grade, "for i in $(seq 40); do sleep 0.5 & done; wait; echo all", replace(QUICK, processes=16))
    assert finished.output != "all\n"
    assert run(root, grade, "for i in 1 2 3 4 5 6 7 8; do sleep 0.1 & done; wait; echo all").output == "all\n"


def test_endless_output_is_cut_while_it_is_read(root: Path, grade: Grade) -> None:
    before = psutil.Process().memory_info().rss
    started = time.monotonic()
    finished = run(root, grade, "yes", replace(QUICK, output_bytes=1000))
    assert finished.output == "y\n" * 500
    assert finished.truncated and not finished.timed_out
    assert time.monotonic() - started < 5
    assert psutil.Process().memory_info().rss - before < 8 << 20


def test_output_beyond_the_limit_is_dropped_and_the_command_goes_on(root: Path, grade: Grade) -> None:
    finished = run(
        root, grade, "head -c 300000 /dev/zero | tr '\\0' x; echo done > end; exit 3", replace(QUICK, output_bytes=10)
    )
    assert finished == Finished("x" * 10, 3, timed_out=False, truncated=True)
    assert (root / "end").read_text() == "done\n"


@pytest.mark.parametrize(
    "hog",
    ["x = bytearray(1 << 30)", "x = []\nwhile True: x.append(bytearray(1 << 20))",
     "import os\nfor _ in range(6): os.fork()\nx = bytearray(b'x' * (60 << 20))\nimport time; time.sleep(9)"],
    ids=["at once", "bit by bit", "by many processes"],
)  # fmt: skip
def test_a_memory_hog_ends(root: Path, grade: Grade, hog: str) -> None:
    started = time.monotonic()
    finished = run(root, grade, python(hog), QUICK)
    assert finished.exit_code in (1, 137) and not finished.timed_out
    assert time.monotonic() - started < 4


def test_a_huge_file_is_not_written(root: Path, grade: Grade) -> None:
    finished = run(root, grade, "dd if=/dev/zero of=huge bs=1M count=100", replace(QUICK, file_bytes=1 << 20))
    assert finished.exit_code != 0
    assert (root / "huge").stat().st_size <= 1 << 20


def test_open_files_are_limited(root: Path, grade: Grade) -> None:
    finished = run(root, grade, python("x = [open('inside.txt') for _ in range(1000)]"))
    assert "Too many open files" in finished.output


def test_nobody_waits_for_a_command_that_hangs_on_a_fifo(root: Path, grade: Grade) -> None:
    assert run(root, grade, "mkfifo f; cat f", replace(QUICK, wall_seconds=0.3)).timed_out


def test_a_command_cannot_make_a_device(root: Path, grade: Grade) -> None:
    run(root, grade, "mknod disk b 8 0; mknod memory c 1 1")
    assert not list(root.glob("[dm]*"))


@pytest.mark.parametrize("command", ["a\0b", "x" * 200_000], ids=["with a zero byte", "too long"])
def test_a_command_that_no_shell_takes_is_refused(root: Path, grade: Grade, command: str) -> None:
    with pytest.raises(Refused, match="bytes"):
        run(root, grade, command)


def test_half_a_character_is_no_way_to_crash(root: Path, grade: Grade) -> None:
    assert run(root, grade, "echo '\ud800'").output == "?\n"


# -- as a user that is not root, whose own processes and files lie outside too --------------------------------------------

AS_A_USER = """
import os, subprocess, sys, time
from pathlib import Path
from nanocode.agent.sandbox import Grade, Limits, Sandbox, available_grades
grade, base = Grade(sys.argv[1]), Path(sys.argv[2])
root = base / "workspace"
root.mkdir()
(base / "own.txt").write_text("own")
if grade not in available_grades():
    sys.exit(77)
victim = subprocess.Popen(["sleep", "60"])
sandbox = Sandbox(root, Limits(wall_seconds=2, processes=32), grade)
before = (base / "own.txt").stat()
assert sandbox.run("python3 -c 'print(1)'; echo x > f; cat f").output == "1\\nx\\n"
for command in (
    f"kill -9 {victim.pid} {os.getpid()} $PPID; kill -9 -1",
    f"python3 -c 'import resource; resource.prlimit({victim.pid}, resource.RLIMIT_NOFILE, (0, 0))'",
    "cat ../own.txt; chmod 000 ../own.txt; touch -d 2001-01-01 ../own.txt; echo changed > ../own.txt; rm ../own.txt",
    f"cat /proc/{os.getpid()}/environ",
):
    said = sandbox.run(command).output
    assert "own\\n" not in said and "HOST_TOKEN" not in said, said
    assert victim.poll() is None
    after = (base / "own.txt").stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_size) == (before.st_mode, before.st_mtime_ns, before.st_size)
started = time.monotonic()
sandbox.run("f() { f | f & }; f; sleep 100")
assert time.monotonic() - started < 12, "the fork bomb"
assert sandbox.run("echo alive").output == "alive\\n"
victim.kill()
victim.wait()
"""


def test_the_same_holds_for_a_user_that_is_not_root(grade: Grade) -> None:
    system = "/usr/bin/python3"  # the interpreter of the tests may lie in root's home
    if os.geteuid() != 0 or not Path(system).exists() or not Path("/usr/bin/setpriv").exists():
        pytest.skip("needs root, setpriv and the system's Python")
    if subprocess.run([system, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False).returncode:
        pytest.skip("the system's Python is older than 3.11")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(Path(__file__).parents[2] / "nanocode" / "agent", Path(folder, "nanocode", "agent"))
        Path(folder, "home").mkdir()
        os.chmod(folder, 0o755)
        os.chown(Path(folder, "home"), 54321, 54321)
        done = subprocess.run(
            ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--", system, "-c", AS_A_USER, grade.value, f"{folder}/home"],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": folder, "HOST_TOKEN": SECRET}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode == 77:
        pytest.skip(f"a user that is not root cannot be held by {grade} here")
    assert (done.returncode, done.stderr) == (0, "")


# -- the sandbox itself -------------------------------------------------------------------------------------------------


def test_without_a_sandbox_a_command_is_refused_unless_it_is_allowed(root: Path) -> None:
    with pytest.raises(Refused, match="--unsafe-bash"):
        Sandbox(root, grade=Grade.NONE).run("true")
    assert Sandbox(root, grade=Grade.NONE, unsafe=True).run("echo ok").output == "ok\n"


def test_each_grade_says_what_it_is(root: Path) -> None:
    assert "refused" in Sandbox(root, grade=Grade.NONE).describe()
    assert "allowed by" in Sandbox(root, grade=Grade.NONE, unsafe=True).describe()
    assert "no network" in Sandbox(root, grade=needs(best_grade())).describe()


def test_threads_and_forked_processes_share_nothing_that_could_mix_up(root: Path, grade: Grade) -> None:
    def one(n: int) -> bool:
        return run(root, grade, f"echo {n}; exit {n % 100}") == Finished(f"{n}\n", n % 100, False, False)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(one, range(60)))
    child = multiprocessing.get_context("spawn").Process(target=_run_in_another, args=(root, grade))
    child.start()
    child.join(30)
    assert child.exitcode == 0


def _run_in_another(root: Path, grade: Grade) -> None:
    assert run(root, grade, "echo other").output == "other\n"
    child = os.fork()
    if child == 0:
        os._exit(0 if run(root, grade, "echo forked").output == "forked\n" else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_commands_and_scratch_folders_end_with_the_process_that_asked(root: Path, grade: Grade) -> None:
    number = f"96{os.getpid()}.{time.monotonic_ns()}"
    code = (
        "import sys; from pathlib import Path; from nanocode.agent import sandbox as s; "
        f"s.Sandbox(Path({str(root)!r}), grade=s.Grade({grade.value!r})).run('echo $PATH > path; sleep {number}')"
    )
    asker = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    wait_for(lambda: (root / "path").exists() and (root / "path").read_text() != "")
    scratch = Path((root / "path").read_text().split(":")[0]).parents[1]
    assert scratch.exists()
    asker.kill()
    asker.wait()
    wait_for(lambda: not processes_with(number) and not scratch.exists())


def wait_for(claim: object) -> None:
    assert callable(claim)
    deadline = time.monotonic() + 10
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_call_is_fast_enough_for_ten_thousand(root: Path, grade: Grade) -> None:
    sandbox = Sandbox(root, grade=grade)
    sandbox.run("true")
    times = []
    for _ in range(10):
        started = time.perf_counter()
        assert sandbox.run("python3 -c 'print(1)'").output == "1\n"
        times.append(time.perf_counter() - started)
    # The best of ten, with room for a machine that others use: 14 and 21 ms when it is quiet.
    assert min(times) < 0.1
