"""Untrusted shell commands in a workspace folder: no network, no other files, no other processes, and limits on all.

Three grades, found at run time. NAMESPACES: bubblewrap; the system read-only, the rest of the machine not there.
LANDLOCK: for pods that cannot make namespaces; files by Landlock, the network and other processes by seccomp. NONE: a
command is refused unless the user said `unsafe`, and then has limits only.

Under LANDLOCK names, sizes and times of files outside can still be seen (stat), not their content.
"""

import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from nanocode.agent.server import NoAnswer, ask

# What execve takes for one argument on Linux: 32 pages, and the zero byte.
COMMAND_BYTES = 32 * 4096 - 1
# Beyond a command's own time, what the supervisor may take to end it and to answer.
GRACE_SECONDS = 30


class Refused(Exception):
    """The command was not run; the message says why, and what to do."""


class Grade(StrEnum):
    """How strongly commands are held."""

    NAMESPACES = "namespaces"
    LANDLOCK = "landlock"
    NONE = "none"


WORDS = {
    Grade.NAMESPACES: "bubblewrap: own namespaces, no network, the system read-only, nothing else of this machine",
    Grade.LANDLOCK: "Landlock and seccomp: no network, no files but the system's and the workspace's",
    Grade.NONE: "no sandbox: commands could reach everything that this user can",
}


@dataclass(frozen=True)
class Limits:
    """What one command may take. Memory holds for each process and for the sum of all."""

    wall_seconds: float = 10
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    processes: int = 64
    file_bytes: int = 8 << 20
    output_bytes: int = 16_000


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Finished:
    """How a command ended: both streams as they came, and 128 + n for a death by signal n."""

    output: str
    exit_code: int
    timed_out: bool
    truncated: bool


class Sandbox:
    """Runs commands in the folder `root`; safe to use from several threads and after a fork."""

    def __init__(
        self, root: Path, limits: Limits = DEFAULT_LIMITS, grade: Grade | None = None, unsafe: bool = False
    ) -> None:
        self.root = root.resolve()
        self.limits = limits
        self.grade = best_grade() if grade is None else grade
        self.unsafe = unsafe
        if self.grade not in (Grade.NONE, *available_grades()):
            raise Refused(f"this machine cannot hold commands by {self.grade}: it can by {best_grade()}")

    def run(self, command: str) -> Finished:
        """Run `/bin/sh -c command`; `Refused` when that cannot be done safely. Returns when every process is gone."""
        if self.grade is Grade.NONE and not self.unsafe:
            raise Refused("there is no sandbox on this machine: install bubblewrap, or allow it with --unsafe-bash")
        return _run(command, self.root, self.limits, self.grade)

    def describe(self) -> str:
        """The grade in words, for the user."""
        allowed = "; allowed by --unsafe-bash" if self.unsafe else "; Bash is refused"
        return WORDS[self.grade] + (allowed if self.grade is Grade.NONE else "")


@cache
def available_grades() -> tuple[Grade, ...]:
    """The grades that were tried on this machine and held, best first."""
    return tuple(grade for grade in (Grade.NAMESPACES, Grade.LANDLOCK) if _holds(grade))


def best_grade() -> Grade:
    """The strongest grade that works here, found by trying once per process."""
    return available_grades()[0] if available_grades() else Grade.NONE


def _holds(grade: Grade) -> bool:
    """Whether a command runs under this grade, and neither reads a file nor opens a socket that it should not."""
    if sys.platform != "linux" or (grade is Grade.NAMESPACES and shutil.which("bwrap") is None):
        return False
    with tempfile.TemporaryDirectory(prefix="nanocode-probe-") as folder:
        inside = Path(folder, "workspace")
        inside.mkdir()
        Path(folder, "secret").write_text("secret")
        python = "import socket\ntry: socket.socket(); print('leak')\nexcept OSError: print('closed')"
        command = f'cat ../secret 2>&- && echo leak; echo ok > file && cat file; python3 -c "{python}"'
        try:
            done = _run(command, inside, DEFAULT_LIMITS, grade)
        except Refused:
            return False
        return done.output.split() == ["ok", "closed"]


def _run(command: str, root: Path, limits: Limits, grade: Grade) -> Finished:
    encoded = command.encode("utf-8", "replace").decode()
    if "\0" in command or len(encoded.encode()) > COMMAND_BYTES:
        raise Refused(f"a command is text without zero bytes of at most {COMMAND_BYTES} bytes")
    request = {"command": encoded, "root": str(root), "grade": grade.value, **asdict(limits)}
    try:
        outcome, output = ask("run", request, limits.wall_seconds + GRACE_SECONDS)
    except NoAnswer as error:
        raise Refused(f"the sandbox's supervisor does not answer: {error}") from error
    if refused := outcome.pop("refused"):
        raise Refused(f"the sandbox could not be built ({refused})")
    return Finished(output.decode("utf-8", "replace"), **outcome)
