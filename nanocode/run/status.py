"""What the run directory says about each stage: `nanocode status`, and the status of a TrainingRun.

States are the controller's where it wrote them a moment ago, or where it rests until somebody begins something; else
what the user wants, where that is to stop, and what the directory shows.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

from nanocode.config.settings import Settings
from nanocode.run.attempts import Ending
from nanocode.run.digests import digests_beside
from nanocode.run.directory import Claim, Marker, RunDirectory
from nanocode.run.goodput import NO_TIME, Ledger
from nanocode.run.graph import STAGES, order
from nanocode.run.history import ending, stage_ledger
from nanocode.run.intent import latest_intent
from nanocode.run.liveness import last_sign, seems_alive
from nanocode.run.money import money
from nanocode.run.segments import newest_first, records
from nanocode.run.settling import read_settings
from nanocode.storage.objects import NotFound, Store, open_store
from nanocode.storage.snapshot import Snapshot

FRESH_SECONDS = 30.0
"""The controller writes its status every 10 s."""
STOPPED = ("failed", "over budget")
"""States that a controller may have ended in against the user's wish: they hold until something is begun."""
RESTING = ("done", "cancelled", *STOPPED)
"""States of a run in which there is nothing more to watch."""
WISHED = {"suspend": "suspended", "cancel": "cancelled"}
"""What the user wants -> the state of a run that does nothing else."""
RECENT_SEGMENTS = 4
"""Of 10 s each: what the speed is taken from."""
READ = re.compile(r"[^/]+/DONE\.json|[^/]+/attempts/\d+/((claim|EXIT|END)\.json|(events|metrics)/.+)|slices/.+")
"""Names of what nearly every look reads, so it may be read at once."""

KEYS = (
    "attempt", "step", "steps", "unit", "loss", "tokens_per_second", "mfu", "goodput", "reason", "eta_seconds",
)  # fmt: skip


class Status:
    """Looks at one run, again and again."""

    def __init__(self, location: str, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._snapshot = Snapshot(open_store(location))
        self.run = RunDirectory(cast(Store, self._snapshot))
        self._ledgers: dict[str, Ledger] = {}
        self._closed: dict[str, tuple[str, Ledger]] = {}
        """Of stages that are done, with the fingerprint of the marker: nothing changes them."""
        self._parsed: dict[str, list[dict[str, Any]]] = {}
        """Records by segment, of stages that are not closed: about 150 MB for a stage that trains a week."""

    def read(self) -> dict[str, Any]:
        """The documented object of `nanocode status --json`; `ConfigurationError` where there is no run."""
        self._snapshot.look(lambda name: READ.fullmatch(name) is not None)
        now, settings = self._clock(), read_settings(self.run)
        intent = latest_intent(self.run)
        digests = digests_beside(settings, self.run.marker, intent.again)
        told = self._controller()
        fresh = abs(now - told["at"]) < FRESH_SECONDS  # its clock may be ahead of ours
        stages = [self._stage(name, digests[name], settings, now, told if fresh else None) for name in order()]
        states = {stage["state"] for stage in stages}
        state = "done" if states == {"done"} else "running" if "running" in states else "unfinished"
        reason = None
        if fresh and state != "done":
            state, reason = told["state"], told["reason"]
        elif state == "unfinished" and intent.want in WISHED:
            state, reason = WISHED[intent.want], f"the user {WISHED[intent.want]} the run"
        elif state == "unfinished" and told["state"] in STOPPED and not self._begun_since(told["at"]):
            state, reason = told["state"], told["reason"]
            for stage in stages:
                self._rest(stage, told)
        said = [told["spent_dollars"]] if fresh else [0.0, told["spent_dollars"]]
        found = {"run": self.run.store.url, "state": state, "reason": reason or None}
        costs = money(self.run, settings, stages, self._ledgers, self._chips, said, now)
        done = {stage["name"] for stage in stages if stage["state"] == "done"}
        return {**found, **costs, **self._results(done), "stages": stages}

    def _results(self, done: set[str]) -> dict[str, Any]:
        """How many unseen tasks the last model does, with the interval, and where the report is; None until then."""
        evaluated = self.run.marker("agent-eval") if "agent-eval" in done else None
        models: Any = evaluated.metrics.get("models", {}) if evaluated is not None else {}
        stage = next((name for name in reversed(order()) if "fresh" in models.get(name, {})), None)
        scores = models[stage]["fresh"] if stage is not None else {}
        agent = {"stage": stage, **{key: scores[key] for key in ("pass@1", "interval")}} if scores else None
        marker = self.run.marker("report") if "report" in done else None
        report = marker.outputs.get("html") if marker is not None else None
        return {"agent": agent, "report": report and f"{self.run.store.url}/{report}"}

    def _controller(self) -> dict[str, Any]:
        """What the controller wrote last."""
        nothing = {"at": 0.0, "state": "", "reason": "", "stages": {}, "spent_dollars": 0.0}
        try:
            found = json.loads(self.run.store.read("controller/status.json"))
        except (NotFound, ValueError):
            return nothing
        return {**nothing, **found} if isinstance(found, dict) else nothing

    def _begun_since(self, at: float) -> bool:
        return any(claim.claimed.timestamp() > at for name in order() for claim in self.run.attempts(name))

    @staticmethod
    def _rest(stage: dict[str, Any], told: dict[str, Any]) -> None:
        theirs = told["stages"].get(stage["name"], {})
        if theirs.get("state") in STOPPED and stage["state"] != "done":
            stage["state"], stage["reason"] = theirs["state"], theirs.get("reason") or None

    def _stage(
        self, name: str, digest: str, settings: Settings, now: float, told: dict[str, Any] | None
    ) -> dict[str, Any]:
        marker, attempts = self.run.marker(name), self.run.attempts(name)
        current = marker if marker is not None and marker.input_digest == digest else None
        found: dict[str, Any] = {**dict.fromkeys(KEYS), **self._state(name, current, marker, attempts, digest, now)}
        if told is not None and current is None and (theirs := told["stages"].get(name)):
            found["state"], found["reason"] = theirs["state"], theirs.get("reason") or None
        if found["attempt"]:
            found |= self._progress(name, found["attempt"])
        if STAGES[name].trains:
            found["steps"] = steps_of(name, settings)
        if current is not None:
            found["eta_seconds"] = None
            if found["step"] is None:  # the last attempt had none left to do
                found["step"] = found["steps"]
            for key in ("loss", "tokens_per_second", "mfu"):
                found[key] = current.metrics.get(key) if found[key] is None else found[key]
        spent = self._ledgers[name] = self._ledger(name, digest, current, now)
        endings = [ending(self.run, claim) for claim in attempts]
        return {
            "name": name,
            **found,
            "attempts": len(attempts),
            "preemptions": endings.count(Ending.PREEMPTED),
            "failures": endings.count(Ending.FAILED) + endings.count(Ending.CONFIGURATION),
            "goodput": spent.goodput,
            "goodput_with_a_slice": spent.goodput_with_a_slice,
            "seconds": {str(kind): seconds for kind, seconds in spent.seconds.items()},
            "cost_dollars": marker.cost_dollars if marker is not None else self._cost(name, spent, found, settings),
        }

    def _ledger(self, name: str, digest: str, marker: Marker | None, now: float) -> Ledger:
        made = marker.fingerprint() if marker is not None else None
        if made is not None and name in self._closed and self._closed[name][0] == made:
            return self._closed[name][1]
        found = stage_ledger(self.run, name, digest, marker, now, self._records)
        if marker is not None and made is not None and now - marker.ended.timestamp() > FRESH_SECONDS:
            # Its last records come after the marker.
            self._closed[name] = made, found
            self._parsed = {one: kept for one, kept in self._parsed.items() if not one.startswith(f"{name}/")}
        return found

    def _records(self, store: Store, segment: str) -> list[dict[str, Any]]:
        if segment not in self._parsed:
            self._parsed[segment] = list(records(store, segment))
        return self._parsed[segment]

    def _state(
        self, name: str, current: Marker | None, marker: Marker | None, attempts: list[Claim], digest: str, now: float
    ) -> dict[str, Any]:
        """What the directory shows."""
        if current is not None:
            return {"state": "done", "attempt": current.attempt}
        own = [claim for claim in attempts if claim.input_digest == digest]
        if not own:
            return {"state": "stale" if marker is not None else "begun" if attempts else "waiting"}
        # The newest sign, not the highest number: of two processes on one run the older one may be the last alive.
        signs = [(last_sign(self.run, one), one) for one in own]
        sign, claim = max(signs, key=lambda pair: (pair[0], pair[1].attempt))
        if ending(self.run, claim) is None and seems_alive(claim, sign, now):
            return {"state": "running", "attempt": claim.attempt}
        reason = f"attempt {claim.attempt} by {claim.who} wrote last {now - sign:,.0f} s ago"
        return {"state": "stale" if marker is not None else "begun", "attempt": claim.attempt, "reason": reason}

    def _progress(self, name: str, attempt: int) -> dict[str, Any]:
        """How far an attempt is, and how long the rest takes at its recent speed."""
        trains = STAGES[name].trains
        kinds = ("step", "time") if trains else ("progress",)
        records = list(self._recent(name, attempt, "metrics" if trains else "events", kinds))
        newest: dict[str, dict[str, Any]] = {
            kind: next((one for one in reversed(records) if one["kind"] == kind), {}) for kind in kinds
        }
        if not trains:
            last = newest["progress"]
            points = [(one["time"], one["done"]) for one in records if one.get("phase") == last.get("phase")]
            found = {"step": last.get("done"), "steps": last.get("total"), "unit": last.get("unit")}
            return {**found, "eta_seconds": _left(points, last.get("done"), last.get("total"))}
        step, timed = newest["step"], newest["time"]
        points = [(one["time"], one["step"]) for one in records if one["kind"] == "time"]
        if len(points) == 1:
            taken = sum(timed.get(part, 0.0) for part in ("data", "step_seconds", "checkpoint", "evaluation"))
            points = [(timed["time"] - taken, timed["step"] - timed["steps_timed"]), *points]
        return {
            "step": step["step"] + 1 if step else None,
            "loss": step.get("loss"),
            "tokens_per_second": timed.get("tokens_per_second"),
            "mfu": timed.get("mfu"),
            "unit": "steps",
            "eta_seconds": _left(points, timed.get("step"), steps_of(name, read_settings(self.run))),
        }

    def _recent(self, name: str, attempt: int, kind: Any, kinds: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """The records of these kinds in the last segments; as many segments as it takes to find one of each."""
        wanted, parts = set(kinds), []
        for number, part in enumerate(newest_first(self.run.store, name, kind, attempt, host=None)):
            parts.append([one for one in part if one.get("kind") in kinds])
            wanted -= {one["kind"] for one in parts[-1]}
            if not wanted and number + 1 >= RECENT_SEGMENTS:
                break
        for part in reversed(parts):
            yield from part

    def _cost(self, name: str, spent: Ledger, found: dict[str, Any], settings: Settings) -> float:
        """Of a training stage that is under way, where a chip has a price: until its marker says it."""
        if not found["attempt"] or not settings.budget.dollars_per_chip_hour:
            return 0.0
        seconds = sum(took for kind, took in spent.seconds.items() if kind not in NO_TIME)
        return self._chips(name, found["attempt"]) * seconds / 3600 * settings.budget.dollars_per_chip_hour

    def _chips(self, name: str, attempt: int) -> int:
        """That an attempt at training has; 0 where it has not said."""
        segments = newest_first(self.run.store, name, "events", attempt, host=None)
        events = (one for part in segments for one in part)
        return next((int(one["devices"]) for one in events if one.get("kind") == "resumed"), 0)


def _left(points: list[tuple[float, float]], done: float | None, total: float | None) -> float | None:
    """Seconds to the total, at the speed between the first and the last point."""
    if done is None or total is None or len(points) < 2:
        return None
    (begin, first), (end, last) = points[0], points[-1]
    return (total - done) * (end - begin) / (last - first) if last > first and end > begin else None


def steps_of(name: str, settings: Settings) -> int:
    """Of a training stage."""
    return settings.pretrain_steps if name == "pretrain" else int(getattr(settings, name).steps)


def read(location: str) -> dict[str, Any]:
    """One look."""
    return Status(location).read()
