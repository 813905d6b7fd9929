"""The controller on this machine: looks, acts, and waits until an attempt ends or it is time to look again.

    python -m deploy.local.loop --run-dir RUN      what `nanocode run` does once the configuration is settled

Told to leave (SIGTERM, Ctrl-C, a terminal that closes) it behaves as if the user had suspended the run, writes no such
thing, and leaves when the last attempt on this machine has ended, and slices are given back. A second Ctrl-C has
attempts leave unsaved, a third one does not wait for slices, nor for a run directory that gives no answer. While
another controller of the run is at work on this machine, one that is told to leave leaves everything to it: what it
stopped would be begun again there.

With slices (`provisioner: queued-resource`) the stages that need an accelerator run there, the others here. While this
machine sleeps, slices go on for `cloud.unattended_minutes`; what has happened meanwhile is found out afterwards.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from deploy.controller.actions import Close, Tell
from deploy.controller.backend import Backend, Provisioner, Unreachable
from deploy.controller.decision import Decision, State
from deploy.controller.journal import Written
from deploy.controller.notify import Webhook
from deploy.controller.observed import Slice, Stage
from deploy.controller.reconcile import Reconciler
from deploy.controller.record import RunJournal
from deploy.local.backend import ZONE, LocalBackend, ThisMachine
from deploy.local.peers import Peers
from deploy.local.told import Told
from nanocode.run.attempts import End, Ending, ExitRecord, Stop, recorded
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import ConfigurationError, Exit
from nanocode.run.settling import read_settings
from nanocode.run.streams import outlive_listeners
from nanocode.storage.objects import StorageError, open_store

if TYPE_CHECKING:
    from deploy.provisioners.queued import QueuedResources

Key = tuple[str, int]
TIMES_TO_LEAVE_AT_ONCE = 2
"""Told to leave more often than that, the command does so, whatever is still to be given back."""
PATIENCE = 20
"""Looks in a row at a run directory that gives no answer: then the command ends, and attempts go on. Told to leave
meanwhile, it has them save and ends with them."""
SECONDS_FOR_LAST_WORDS = 5.0
"""How long it is tried to tell what there is to tell, with nothing else left to do."""


class Machines(Backend, Protocol):
    """A backend that somebody sits before: what lives is waited for, and can be hurried."""

    @property
    def alive(self) -> Mapping[Key, int]:
        """The attempts that live here or on slices of ours, by the last look; of those on slices the process is 0."""

    def wait(self, seconds: float, handle: int) -> None: ...

    def hurry(self) -> None: ...

    def has_shown(self, stage: str, attempt: int) -> bool: ...


class LocalJournal(RunJournal):
    """The run's journal, with the wish to leave added to what the user wants, and a line for every setback."""

    def __init__(self, run: RunDirectory, backend: Machines) -> None:
        super().__init__(run)
        self._backend = backend
        self._met: set[tuple[str, int]] = set()
        self.leaving = False
        self.said_why = False
        """Whether a stage that was told to leave has said what it saved."""
        self.last: Written | None = None
        self._asked: list[Slice] = []

    def read(self) -> Written:
        self.last = super().read()
        self._met |= set(self._backend.alive)
        if not self.leaving:
            return self.last
        return replace(self.last, intent=self.last.intent.model_copy(update={"want": "suspend"}))

    def request(self, name: str, zone: str, dollars_per_hour: float | None, at: float) -> str:
        zone = super().request(name, zone, dollars_per_hour, at)
        self._asked.append(Slice(name, zone))  # no later look may get an answer
        return zone

    def stop(self, stage: str, attempt: int, stop: Stop) -> None:
        if self.leaving:
            if (stage, attempt) not in self._backend.alive:
                return  # somebody else's, on another host
            stop = stop.model_copy(update={"reason": "told to leave"})
        super().stop(stage, attempt, stop)

    def end(self, stage: str, attempt: int, end: End) -> None:
        super().end(stage, attempt, end)
        if self.leaving:
            ended = recorded(self._run, stage, attempt, ExitRecord)
            self.said_why |= ended is not None and ended.code == Exit.PREEMPTED
        if (stage, attempt) in self._met and end.ending in (Ending.PREEMPTED, Ending.FAILED):
            what = "failed" if end.ending is Ending.FAILED else "was cut off"
            say(f"attempt {attempt} of {stage} {what}: {end.reason}")

    def show(self, decision: Decision, at: float) -> None:
        if self.leaving and decision.state is State.SUSPENDED:
            states = {
                name: replace(one, state=State.WAITING, reason="") if one.state is State.SUSPENDED else one
                for name, one in decision.stages.items()
            }
            decision = replace(decision, state=State.WAITING, reason="told to leave", stages=states)
        super().show(decision, at)

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Those that were ever asked for."""
        return tuple(one for one in self.last.slices if not one.permanent) if self.last is not None else ()

    @property
    def held(self) -> list[Slice]:
        """Those that may still cost something."""
        known = {one.name for one in self.slices}
        return [one for one in self.slices if one.gone is None] + [one for one in self._asked if one.name not in known]

    @property
    def still_held(self) -> str:
        names = ", ".join(f"{one.name} in {one.zone}" for one in self.held)
        return f"{names} may still be there and cost"

    @property
    def listing(self) -> str:
        """The command that shows them."""
        return f"`nanocode slices {self._run.store.url}`"

    def webhook(self) -> str | None:
        return self.last.policy.webhook if self.last is not None else None

    def price(self) -> float:
        """Of an hour of this machine."""
        return self.last.policy.dollars_per_slice_hour.get(ZONE, 0.0) if self.last is not None else 0.0

    def stage(self, name: str) -> Stage:
        assert self.last is not None
        return next(stage for stage in self.last.stages if stage.name == name)


def control(run: RunDirectory, environment: Mapping[str, str] | None = None) -> Exit:
    """Be the run's controller until there is nothing left to do; how the command ends. Says in one line why.

    `ConfigurationError` where the slices that the settings ask for cannot be had at all.
    """
    here = LocalBackend(run, environment)
    settings = read_settings(run)
    backend: Machines = here
    slices: QueuedResources | None = None
    if settings.provisioner != "local":
        from deploy.provisioners.laptop import machines  # late: cloud clients take a second to import

        backend, slices = machines(
            run, here, settings, lambda: journal.settings or settings, lambda: journal.slices, say
        )
    journal = LocalJournal(run, backend)
    if slices is not None:
        slices.check(settings.controller.zones)
    with Told() as told, Webhook(journal.webhook) as webhook, Peers(run.store.url) as peers:
        if peers.there:
            say("another controller of this run is at work on this machine: Ctrl-C here leaves what runs to it")

        def tell(news: Tell) -> None:
            if news.key.startswith(("budget", "stalled")):
                say(news.text)
            webhook.send(f"nanocode {run.store.url}: {news.text}")

        provisioner: Provisioner = slices if slices is not None else ThisMachine(journal.price)
        reconciler = Reconciler(journal, backend, provisioner, tell, monotonic=time.monotonic)
        decision = _until_rest(reconciler, journal, backend, here, told, peers)
        _tell_the_rest(reconciler, backend, told)
    if decision is None:
        say(f"another controller of this run goes on with it: `nanocode suspend {run.store.url}` stops that, too")
        return Exit.PREEMPTED
    return _verdict(run, journal, backend, decision)


def _until_rest(
    reconciler: Reconciler, journal: LocalJournal, backend: Machines, here: LocalBackend, told: Told, peers: Peers
) -> Decision | None:
    """The decision after which there is nothing left to do; None when that is left to another controller."""
    silent = 0
    while True:
        peers.stay()
        try:
            decision, silent = reconciler.once(), 0
        except Unreachable as error:
            decision, silent = None, silent + 1
            if silent == 1 or not journal.held:
                say(str(error) + (_left_behind(journal) if journal.leaving else ""))
            # With slices it goes on: a laptop that wakes up may be without a network for longer.
            if (silent >= PATIENCE and not journal.held) or journal.last is None:
                raise StorageError(str(error)) from error
            here.observe(())  # which asks the run directory nothing: what has ended is not waited for any more
            if journal.leaving:  # nothing can be written down about it: it counts as preempted
                for stage, attempt in here.alive:
                    here.stop(stage, attempt)
                hurried = told.times > TIMES_TO_LEAVE_AT_ONCE
                if hurried or not (here.alive or journal.held):
                    raise StorageError(str(error) + _left_behind(journal, hurried)) from error
        assert journal.last is not None
        if decision is None or not any(isinstance(action, Close) for action in decision.actions):
            if decision is not None and (
                decision.resting or (journal.leaving and not backend.alive and not journal.held)
            ):
                return decision
            if decision is not None and told.times > TIMES_TO_LEAVE_AT_ONCE:
                return decision
            backend.wait(journal.last.policy.seconds_between_looks, told.handle)
        if told.news():
            if journal.leaving:
                backend.hurry()
            elif peers.leave():
                return None
            journal.leaving = True
            silent = 0 if journal.held else silent  # without an answer, the next look says what becomes of slices


def _left_behind(journal: LocalJournal, going: bool = False) -> str:
    """What there is to know of slices when no answer comes from where it is noted that they are given back."""
    if not journal.held or journal.settings is None:
        return ""
    minutes = journal.settings.cloud.unattended_minutes
    then = (
        f"{journal.listing} lists it" if going else "it is given back when there is an answer (a third Ctrl-C leaves)"
    )
    return f"; {journal.still_held}: {then}, and deletes itself {minutes:g} minutes after the last controller"


def _tell_the_rest(reconciler: Reconciler, backend: Machines, told: Told) -> None:
    until = time.monotonic() + SECONDS_FOR_LAST_WORDS
    while reconciler.untold and not told.news() and time.monotonic() < until:
        backend.wait(0.5, told.handle)
        reconciler.tell_again()


def _verdict(run: RunDirectory, journal: LocalJournal, backend: Machines, decision: Decision) -> Exit:
    """How the command ends, and one line that says why, unless a stage has just said it."""
    if decision.state is State.DONE:
        return Exit.DONE
    again = f"`nanocode run --run-dir {run.store.url}`"
    if decision.state is State.FAILED:
        return _failure(run, journal, backend, decision)
    if decision.state is State.OVER_BUDGET:
        say(f"{decision.reason} with {again}")
        return Exit.FAILED
    if journal.held:
        say(f"{journal.still_held}: {again} takes it up again, and {journal.listing} lists it")
    elif not journal.leaving:
        say(f"{decision.reason}; {again} takes it up again")
    elif not journal.said_why:
        say("told to leave; the same command goes on from here")
    return Exit.PREEMPTED


def _failure(run: RunDirectory, journal: LocalJournal, backend: Machines, decision: Decision) -> Exit:
    name = next(name for name, one in decision.stages.items() if one.state is State.FAILED)
    attempts = journal.stage(name).attempts
    reason = f"stage {name}: {decision.stages[name].reason}"
    if not attempts or attempts[-1].end is None:
        say(reason)
        return Exit.CONFIGURATION
    last = attempts[-1].number
    if attempts[-1].end.ending is not Ending.CONFIGURATION:
        log = f"{run.store.url}/{run.attempt_folder(name, last)}/log"
        say(f"stage {name} failed: {decision.stages[name].reason}; its log: {log}")
        return Exit.FAILED
    ended = recorded(run, name, last, ExitRecord)
    if not backend.has_shown(name, last):
        say(reason)
    return Exit.USAGE if ended is not None and ended.code == Exit.USAGE else Exit.CONFIGURATION


def say(line: str) -> None:
    print(f"nanocode: {' '.join(line.split())}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser("python -m deploy.local.loop", description="Be the controller of a run.")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--environment", action="append", default=[], metavar="NAME=VALUE", help="more of it, for jobs")
    options = parser.parse_args()
    outlive_listeners()
    environment = dict(pair.split("=", 1) for pair in options.environment)
    try:
        return control(RunDirectory(open_store(options.run_dir)), environment)
    except ConfigurationError as error:
        say(str(error))
        return Exit.CONFIGURATION
    except (StorageError, Unreachable) as error:
        say(str(error))
        return Exit.FAILED


if __name__ == "__main__":
    sys.exit(main())
