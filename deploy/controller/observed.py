"""One run as the controller sees it at one moment: plain values, from the run directory, the backend, the provisioner.

Nothing here is remembered between two looks. What mattered was written down first, as `nanocode.run.attempts` says.
Times are Unix seconds by whatever clock wrote them; `Observed.now` is the clock of whoever looks.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from nanocode.run.attempts import End, Stop
from nanocode.run.intent import Intent


class Process(StrEnum):
    """What the backend knows of an attempt's process.

    ABSENT: nothing of this name is there: not started yet, or long gone.
    PENDING: it waits for a machine.
    RUNNING: it runs, or a process that may be it.
    EXITED: it ended, and the backend knows how.
    LOST: it was there, and it or its host has vanished without a word.
    """

    ABSENT = "absent"
    PENDING = "pending"
    RUNNING = "running"
    EXITED = "exited"
    LOST = "lost"


@dataclass(frozen=True)
class Seen:
    """What a backend says about one attempt."""

    process: Process
    exit_code: int | None = None
    """Of an EXITED one; minus the signal that ended it."""
    disrupted: bool = False
    """The platform says that it took the machine away: whatever the exit code, that is a preemption."""
    since: float | None = None
    """Since when it is PENDING or RUNNING, or when it EXITED, where the backend knows."""
    reason: str = ""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a stage."""

    number: int
    digest: str
    claimed: float
    seen: Seen = Seen(Process.ABSENT)
    slice: str | None = None
    stop: Stop | None = None
    end: End | None = None
    first_step: float | None = None
    """When it published its first record of work done; None before."""
    last_sign: float | None = None
    """When it last published anything."""
    copying: float | None = None
    """When it last copied from another region what it begins with; what else a start takes comes after that."""

    @property
    def live(self) -> bool:
        """Not known to have ended."""
        return self.end is None


@dataclass(frozen=True)
class Stage:
    """One stage of the graph, and all that was tried."""

    name: str
    machine: Literal["cpu", "accelerator"]
    reads: tuple[str, ...]
    digest: str
    """What a marker and an attempt must have to count."""
    reads_what_is_there: bool = False
    """It comes after those of `reads` that are asked for, and takes what the others have left."""
    marked: str | None = None
    """The digest of its marker."""
    progress: int = 0
    """Steps, or pieces of output, that are safe under this digest."""
    attempts: tuple[Attempt, ...] = ()
    """By number."""
    held: str = ""
    """Why nothing of it begins, in a sentence: nobody has accepted this digest. What lives goes on, under its own."""

    @property
    def done(self) -> bool:
        return self.marked == self.digest

    @property
    def lives(self) -> bool:
        """Whether any attempt at it lives, whatever its digest."""
        return any(one.live for one in self.attempts)


class Trouble(StrEnum):
    """Why a slice could not be had, or ended."""

    STOCKOUT = "stockout"
    QUOTA = "quota"
    PERMISSION = "permission"
    PREEMPTED = "preempted"
    OTHER = "other"


@dataclass(frozen=True)
class Slice:
    """Machines that one accelerator stage runs on: what was recorded about them, and what the provisioner says.

    `requested`, `ready`, `released` and `gone` are facts from the run directory, each recorded once.
    """

    name: str
    zone: str
    dollars_per_hour: float | None = 0.0
    """None: nobody has said what it costs."""
    requested: float | None = None
    """None: the provisioner shows it and nothing is written of it, because it is permanent or what we read is late."""
    ready: float | None = None
    released: float | None = None
    """When we decided to give it back."""
    gone: float | None = None
    """When it stopped to exist, and so to cost."""
    trouble: Trouble | None = None
    since: float | None = None
    """When it came, and so began to cost, where the provisioner knows."""
    until: float | None = None
    """When it went, and so stopped to cost, where the provisioner knows; it may show a slice only to say so."""
    present: bool = True
    """Whether the provisioner shows it now; a request that was lost is not there."""
    usable: bool = False
    """Whether the provisioner says that a stage can start on it now."""
    machines: bool | None = None
    """Whether its machines are there, and cost, though they may not be ready; None: they are once it is usable. A pool
    that an autoscaler fills is usable before they are there."""
    reason: str = ""
    """What its trouble is, in one sentence with the next move."""
    maker: str = ""
    """The provisioner that was asked for it, where a run may change from one to another."""
    permanent: bool = False
    """Somebody else's: never requested, never released (this machine; a pool that is there anyway)."""


@dataclass(frozen=True)
class Observed:
    """Everything that `decide` looks at."""

    now: float
    intent: Intent
    stages: tuple[Stage, ...]
    """In the order of the graph."""
    slices: tuple[Slice, ...] = ()
    """All that were ever requested, by name, and the permanent ones."""
    stepped: float | None = None
    """When the clock of whoever looks was last seen to jump, as it does when a laptop wakes up."""
    strays: tuple[tuple[str, int], ...] = ()
    """Stage and number of attempts that have ended, or that nobody claimed, and whose process is there all the same."""
    unknown: frozenset[str] = field(default_factory=frozenset)
    """Of `backend`, `provisioner`: who gave no answer this time. What they would have said is then not decided on."""
    looked: float | None = None
    """When somebody looked before this, as far as that is known."""
    dollars_per_hour_at_work: float = 0.0
    """What cluster and CPU nodes cost while an attempt lives or a slice is held."""
    dollars_stored: float = 0.0
    """What keeping the run has cost so far, as an estimate."""
    dollars_copied: float = 0.0
    """What has gone from region to region, as far as its price is known."""
