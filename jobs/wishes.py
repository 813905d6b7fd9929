"""`nanocode suspend`, `resume`, `cancel` and `retry`: what the user wants is written down, for the controller."""

from collections.abc import Callable

from nanocode.run.directory import RunDirectory
from nanocode.run.exits import UsageError
from nanocode.run.graph import downstream, order, select
from nanocode.run.intent import begun_again, change_intent, forgive, latest_intent
from nanocode.run.settling import read_settings
from nanocode.run.status import read
from nanocode.storage.objects import open_store


def suspend(location: str) -> str:
    """Have the run save and stop; each of these returns what to tell the user."""
    run = _existing(location)
    if latest_intent(run).want == "cancel":
        raise UsageError(f"{run.store.url} was cancelled: there is nothing to suspend")
    if _is_done(run):
        return f"{run.store.url} is done: there is nothing to suspend"
    change_intent(run, want="suspend")
    return f"{run.store.url} saves and stops; `nanocode resume {run.store.url}` takes that back"


def resume(location: str) -> str:
    """Take back a suspension, and forgive the failures so far."""
    run = _existing(location)
    if latest_intent(run).want == "cancel":
        raise UsageError(f"{run.store.url} was cancelled: `nanocode run --run-dir {run.store.url}` goes on with it")
    if _is_done(run):
        return f"{run.store.url} is done: there is nothing to go on with"
    change_intent(run, want="run", forgiven=forgive(run, order()))
    return f"{run.store.url} may go on: {_where_it_goes_on(run)}"


def cancel(location: str) -> str:
    """Stop the run; what it has made is kept."""
    run = _existing(location)
    if _is_done(run):
        return f"{run.store.url} is done: there is nothing to cancel"
    change_intent(run, want="cancel")
    return f"{run.store.url} is cancelled; what it has made stays there"


def retry(location: str, stage: str) -> str:
    """Have a stage done again from its beginning, and all that stands on it."""
    run = _existing(location)
    (first,) = select([stage])
    before = latest_intent(run)
    again = (first.name, *downstream(first.name))
    wanted = tuple(name for name in order() if name in {*before.stages, *again}) if before.stages else ()
    change_intent(
        run,
        want="run",
        stages=wanted,
        again=begun_again(before, (first.name,)),
        forgiven=forgive(run, order()),
    )
    return f"{', '.join(again)}: done again, what they made is kept; {_where_it_goes_on(run)}"


def _existing(location: str) -> RunDirectory:
    run = RunDirectory(open_store(location))
    read_settings(run)
    return run


def _is_done(run: RunDirectory) -> bool:
    return bool(read(run.store.url)["state"] == "done")


def _where_it_goes_on(run: RunDirectory) -> str:
    return f"a controller that runs takes it up, else `nanocode run --run-dir {run.store.url}`"


WISHES: dict[str, Callable[[str], str]] = {"suspend": suspend, "resume": resume, "cancel": cancel}
