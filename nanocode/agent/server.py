"""The way to the fork server of `supervisor.py`, one per process: started at first use, ends with this process."""

import atexit
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

_server: tuple[int, socket.socket] | None = None
"""The process that started it, and our end of its socket: a forked child starts its own."""
_starting = threading.Lock()
os.register_at_fork(after_in_child=_starting._at_fork_reinit)  # type: ignore[attr-defined]

_SERVE = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from nanocode.agent.supervisor import main; main(sys.argv[1:])"
)


class NoAnswer(Exception):
    """The server's process for this request ended, or took too long."""


def ask(kind: str, request: dict[str, Any], seconds: float) -> tuple[dict[str, Any], bytes]:
    """What a process of its own answers to the request; safe in threads and after a fork."""
    data = json.dumps({"kind": kind, **request}).encode()
    with _connect() as connection:
        connection.settimeout(seconds)
        try:
            connection.sendall(struct.pack("=I", len(data)) + data)
            with connection.makefile("rb") as stream:
                answer = stream.read()
        except OSError as error:
            raise NoAnswer(str(error)) from error
    if len(answer) < 4:
        raise NoAnswer("it ended early: is the machine out of memory?")
    (length,) = struct.unpack_from("=I", answer)
    return json.loads(answer[4 : 4 + length]), answer[4 + length :]


def _connect() -> socket.socket:
    """A connection to a supervisor of its own, for one command."""
    for _ in range(2):
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(_control(), [b"+"], [theirs.fileno()])
                return ours
            except OSError:  # the server was killed: start another
                ours.close()
                _forget()
    raise NoAnswer("it cannot be started")


def _control() -> socket.socket:
    global _server
    with _starting:
        if _server is None or _server[0] != os.getpid():
            _server = os.getpid(), _start()
            atexit.register(_server[1].close)
        return _server[1]


def _forget() -> None:
    global _server
    with _starting:
        _server = None


def _start() -> socket.socket:
    """Start the server; it ends, and removes its folder, when the socket is closed by whatever ends this process."""
    scratch = Path(tempfile.mkdtemp(prefix="nanocode-sandbox-")).resolve()
    interpreter = Path(getattr(sys, "_base_executable", "") or sys.executable).resolve()
    python = scratch / "python"
    # Laid out as a virtual environment: no packages of ours inside, and half the start-up time without them.
    (python / "bin").mkdir(parents=True)
    for name in ("python", "python3"):
        (python / "bin" / name).symlink_to(interpreter)
    (python / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\ninclude-system-site-packages = false\n")
    scratch.chmod(0o711)
    python.chmod(0o755)
    ours, theirs = socket.socketpair()  # one byte a message: a stream is as good as packets
    package = Path(__file__).resolve().parents[2]
    with theirs:
        subprocess.run(  # ends at once: the server is its child, so that it is nobody's zombie
            [
                *(sys.executable, "-I", "-S", "-c", _SERVE, str(package)),
                *(str(theirs.fileno()), str(scratch), str(python), str(Path(sys.base_prefix).resolve())),
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
            check=True,
        )
    return ours
