"""The loop: observe -> decide -> act -> one status write. It may be killed between any two lines, and run anywhere."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import structlog

from deploy.controller.actions import Action, Begin, Close, Kill, Leave, Note, Release, Request, Tell
from deploy.controller.backend import Backend, Provisioner, Unreachable
from deploy.controller.decide import decide
from deploy.controller.decision import Decision
from deploy.controller.journal import Journal, Written
from deploy.controller.observed import Attempt, Observed, Process, Seen, Slice, Stage, Trouble
from deploy.controller.policies import age
from nanocode.run.attempts import End, Stop

log = structlog.get_logger()

ALIVE = (Process.PENDING, Process.RUNNING)
ENDED = (Process.EXITED, Process.LOST)
JUMP_SECONDS = 30.0
"""More than a slow round, less than any deadline."""
STRANGER_SECONDS = 60.0
"""How late what we read may be: a process with a name that we have read nothing of may be another controller's, just
claimed and begun. If we still have not after so long, nobody has claimed it."""


class Reconciler:
    """One controller of one run."""

    def __init__(
        self,
        journal: Journal,
        backend: Backend,
        provisioner: Provisioner,
        tell: Callable[[Tell], None],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] | None = None,
    ) -> None:
        """`monotonic`: a clock that stands still while the machine sleeps; with it, jumps of the other are noticed."""
        self._journal, self._backend, self._provisioner = journal, backend, provisioner
        self._tell, self._clock, self._monotonic = tell, clock, monotonic
        self._drift: float | None = None
        self._stepped: float | None = None
        self._looked: float | None = None
        self._strangers: dict[tuple[str, int], float] = {}
        """Processes that we have read nothing of, and since when."""
        self.untold: list[Tell] = []
        """What the last round had to tell, and could not note that it is told."""

    def once(self) -> Decision:
        """One round; `Unreachable` when the journal itself gives no answer: then nothing is known, and nothing done."""
        written = self._journal.read()
        seen = self._processes(written)
        if seen is not None and any(key in seen and seen[key].process in ENDED for key in _live(written)):
            written = self._journal.read()  # it may have published its marker since we read
        now = self._now()
        decision = decide(self._observed(written, seen, now), written.policy, written.budget)
        self.untold = []
        for action in decision.actions:
            if not isinstance(action, Tell) or action.key not in written.told:
                self._try(action, now)
        self._journal.show(decision, now)
        return decision

    def tell_again(self) -> None:
        """What there is to tell once nothing else is left to do, and no next round tries again."""
        untold, self.untold = self.untold, []
        for news in untold:
            self._try(news, self._now())

    def _try(self, action: Action, now: float) -> None:
        try:
            self._act(action, now)
        except Unreachable as error:
            log.warning("no answer, next round tries again", action=str(action), error=str(error))
            if isinstance(action, Tell):
                self.untold.append(action)

    def _now(self) -> float:
        now = self._clock()
        if self._monotonic is not None:
            drift = now - self._monotonic()
            if self._drift is not None and abs(drift - self._drift) > JUMP_SECONDS:
                self._stepped = now
            self._drift = drift
        return now

    def _processes(self, written: Written) -> Mapping[tuple[str, int], Seen] | None:
        """What became of the attempts; None without an answer."""
        try:
            return self._backend.observe(_live(written))
        except Unreachable as error:
            log.warning("backend gives no answer", error=str(error))
            return None

    def _observed(self, written: Written, seen: Mapping[tuple[str, int], Seen] | None, now: float) -> Observed:
        """What is written, with what backend and provisioner say at this moment."""
        unknown = set()
        stages, slices, strays = written.stages, written.slices, []
        looked = written.shown if self._looked is None else self._looked
        if seen is None:
            unknown.add("backend")
        else:
            strays = self._strays(stages, seen, now)
            stages = tuple(_with_processes(stage, seen) for stage in stages)
        try:
            slices = _with_presence(slices, self._provisioner.observe())
            self._looked = now
        except Unreachable as error:
            log.warning("provisioner gives no answer", error=str(error))
            unknown.add("provisioner")
        return Observed(
            now,
            written.intent,
            stages,
            slices,
            self._stepped,
            tuple(strays),
            frozenset(unknown),
            looked,
            written.dollars_per_hour_at_work,
            written.dollars_stored,
            written.dollars_copied,
        )

    def _strays(
        self, stages: tuple[Stage, ...], seen: Mapping[tuple[str, int], Seen], now: float
    ) -> list[tuple[str, int]]:
        """What lives though its attempt has ended, or though nobody has claimed it; a step of the clock makes none."""
        live = {(stage.name, one.number): one.live for stage in stages for one in stage.attempts}
        there = [key for key, one in seen.items() if one.process in ALIVE and not live.get(key, False)]
        since = self._strangers if self._stepped != now else {}
        self._strangers = {key: since.get(key, now) for key in there if key not in live}
        return [key for key in there if key in live or age(now, self._strangers[key]) > STRANGER_SECONDS]

    def _act(self, action: Action, now: float) -> None:
        match action:
            case Begin(stage, attempt, digest, slice):
                if self._journal.claim(stage, attempt, digest, slice):
                    self._backend.start(stage, attempt, slice)
            case Leave(stage, attempt, reason, hung):
                self._journal.stop(stage, attempt, Stop(reason=reason, at=now, hung=hung))
                self._backend.stop(stage, attempt)
            case Kill(stage, attempt):
                self._backend.kill(stage, attempt)
            case Close(stage, attempt, ending, reason, progress):
                self._journal.end(stage, attempt, End(ending=ending, reason=reason, at=now, progress=progress))
                self._backend.forget(stage, attempt)
            case Request(name, zone, dollars_per_hour):
                self._provisioner.request(name, self._journal.request(name, zone, dollars_per_hour, now))
            case Release(name, _):
                self._journal.note(name, "released", now)
                self._provisioner.release(name)
            case Note(name, fact, reason, at):
                self._journal.note(name, fact, now if at is None else at, reason)
            case Tell(key, _):
                if self._journal.told(key):
                    self._tell(action)


def _live(written: Written) -> list[tuple[str, int]]:
    return [(stage.name, one.number) for stage in written.stages for one in stage.attempts if one.live]


def _with_processes(stage: Stage, seen: Mapping[tuple[str, int], Seen]) -> Stage:
    def one(attempt: Attempt) -> Attempt:
        return replace(attempt, seen=seen.get((stage.name, attempt.number), Seen(Process.ABSENT)))

    return replace(stage, attempts=tuple(one(each) if each.live else each for each in stage.attempts))


def _with_presence(written: tuple[Slice, ...], there: Mapping[str, Slice]) -> tuple[Slice, ...]:
    """The recorded facts stand; whether a slice is there, and of use, is what the provisioner says."""
    known = {one.name for one in written}
    found = []
    for one in written:
        shown = there.get(one.name)
        if shown is None:
            found.append(replace(one, present=False, usable=False))
            continue
        trouble, reason = (one.trouble, one.reason) if one.trouble is not None else (shown.trouble, shown.reason)
        if trouble is None and one.ready is not None and one.released is None and shown.machines is False:
            trouble, reason = Trouble.PREEMPTED, "its machines were taken away"
        changes: dict[str, Any] = {"machines": shown.machines, "trouble": trouble, "reason": reason}
        told: dict[str, Any] = {"since": shown.since, "until": shown.until, "present": shown.present}
        found.append(replace(one, usable=shown.usable and trouble is None, **told, **changes))
    return (*found, *(one for name, one in sorted(there.items()) if name not in known and one.present))
