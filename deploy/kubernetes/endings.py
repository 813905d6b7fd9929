"""What became of an attempt, from its Job, its pods and their nodes. Pure.

A gang (one pod per host) runs when all of its pods do, and is over when one of them is. Who ended first says little:
when a host vanishes without a word, its peers crash first, with ordinary exit codes, and the node is known to be silent
only 50 s later. So a failure counts as one when the others have ended too, on nodes that are there.
The pods of a split stage are begun again one by one by the Job, whose word counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deploy.controller.observed import Process, Seen
from deploy.kubernetes import pods, waits
from deploy.kubernetes.pods import Nodes, Object
from deploy.kubernetes.templates import hosts, is_split
from nanocode.run.attempts import ExitRecord
from nanocode.run.exits import Exit

TOLD_TO_LEAVE = (Exit.PREEMPTED, -15)
NEVER_WORTH_ANOTHER = (Exit.CONFIGURATION, Exit.USAGE)
SECONDS_FOR_THE_OTHERS = 90.0
"""Longer than a node takes to be known as silent, and than the grace of any pod."""


def seen(
    job: Object,
    mine: Sequence[Object],
    nodes: Nodes,
    now: float,
    patience: waits.Patience,
    kind: waits.Kind = waits.Kind(),  # noqa: B008  (it is frozen)
) -> Seen:
    """What the cluster says about an attempt that has a Job."""
    if pods.holds(job, "Complete") or pods.holds(job, "SuccessCriteriaMet"):
        at = pods.seconds(job["status"].get("completionTime"))
        return Seen(Process.EXITED, Exit.DONE, since=at)
    failed = pods.holds(job, "Failed") or pods.holds(job, "FailureTarget")
    if failed is not None or (not is_split(job) and _broken(mine, nodes, now)):
        verdict = _verdict(job, mine, nodes, now)
        if verdict is not None:
            return verdict
        return Seen(Process.RUNNING, since=pods.created(job), reason="one of its pods has ended, and the others end")
    return _under_way(job, mine, now, patience, kind)


def exit_record(found: Seen, mine: Sequence[Object], now: float) -> ExitRecord | None:
    """When its processes ended, and how, for the run directory; None where none has, or nobody knows when."""
    ends = [end.at for pod in mine if (end := pods.ended(pod)) is not None]
    ended = found.exit_code == Exit.DONE or bool(ends)
    if found.process not in (Process.EXITED, Process.LOST) or found.since is None or not ended:
        return None
    code = Exit.PREEMPTED if found.exit_code is None else found.exit_code  # nobody saw the one that was taken away end
    # The last one's: a worker of a split stage may have crashed hours before and was begun again. By its node's clock,
    # which may be ahead of ours: END.json, with the time of ours, comes after it.
    return ExitRecord(code=code, at=min(max([found.since, *ends]), now), reason=found.reason)


def exit_record_without_a_job(mine: Sequence[Object], now: float) -> ExitRecord | None:
    """The same of an attempt whose Job is deleted, from the last of its pods to end; None where one has not ended, or
    none is there any more: then nobody has seen how they did."""
    ends = [end for pod in mine if (end := pods.ended(pod)) is not None]
    if not ends or len(ends) < len(mine):
        return None
    last = max(ends, key=lambda end: end.at)
    return ExitRecord(code=last.code, at=min(last.at, now), reason=last.said)


def _broken(mine: Sequence[Object], nodes: Nodes, now: float) -> bool:
    return any(
        pods.phase(pod) == "Failed" or (not pods.finished(pod) and pods.node_trouble(pod, nodes, now)) for pod in mine
    )


def _under_way(job: Object, mine: Sequence[Object], now: float, patience: waits.Patience, kind: waits.Kind) -> Seen:
    """Of an attempt that has not ended."""
    alive = [pod for pod in mine if not pods.finished(pod)]
    since = [at for pod in alive if (at := pods.running_since(pod)) is not None]
    done = {pods.index(pod) for pod in mine if pods.phase(pod) == "Succeeded"}
    if since and (is_split(job) or len(since) + len(done) >= hosts(job)):
        return Seen(Process.RUNNING, since=max(since))
    held_up = [pod for pod in alive if pods.running_since(pod) is None]
    found: list[tuple[Object | None, waits.Wait]] = []
    found += [(pod, waits.of_pod(pod, now, patience, kind)) for pod in held_up]
    found = found or [(None, waits.of_job(job, now, patience))]
    pod, wait = next(((pod, wait) for pod, wait in found if wait.code is not None), found[0])
    sentence = wait.sentence if pod is None else _said_by(job, pod, wait.sentence)
    if wait.code is not None:
        return Seen(Process.EXITED, wait.code, since=now, reason=sentence)
    return Seen(Process.PENDING, since=now, reason=sentence)  # its deadlines are those of `waits`


def _verdict(job: Object, mine: Sequence[Object], nodes: Nodes, now: float) -> Seen | None:
    """How it ended; None while pods that may tell are still ending."""
    wrong = [(pod, end) for pod in mine if (end := pods.ended(pod)) is not None and end.code != Exit.DONE]
    at = min((end.at for _, end in wrong), default=None)
    for _, end in wrong:
        if end.code in NEVER_WORTH_ANOTHER:
            return Seen(Process.EXITED, end.code, since=at, reason=end.said)
    for pod in mine:
        if taken := pods.disruption(pod) or refused_by_its_node(pod):
            code = next((end.code for one, end in wrong if one is pod), None)
            return Seen(Process.EXITED, code, disrupted=True, since=at, reason=f"{_where(pod)} was taken away: {taken}")
    if "DisruptionTarget" in _told_by(job):  # the pod that was taken away is deleted by now
        code = wrong[0][1].code if wrong else None
        return Seen(Process.EXITED, code, disrupted=True, since=at, reason=f"a pod was taken away{_told_by(job)}")
    for pod in mine:
        if not pods.finished(pod) and (trouble := pods.node_trouble(pod, nodes, now)):
            return Seen(Process.LOST, since=at, reason=trouble)
    if not _settled(mine) and (at is None or now - at < SECONDS_FOR_THE_OTHERS):
        return None
    return _judged(job, mine, wrong, at)


def _judged(job: Object, mine: Sequence[Object], wrong: Sequence[tuple[Object, Any]], at: float | None) -> Seen:
    """How it ended, on nodes that are all there."""
    for _, end in wrong:
        if end.code in TOLD_TO_LEAVE:
            return Seen(Process.EXITED, end.code, since=at, reason=end.said)
    if not wrong:
        return Seen(Process.LOST, reason=f"its pods are gone{_told_by(job)}")
    never = [pod for pod in mine if not pods.finished(pod) and pods.running_since(pod) is None]
    if never:
        why = pods.waiting(never[0])[0] or "it found no node"
        reason = f"host {pods.index(never[0])} never began ({why}), and the others gave up"
        return Seen(Process.EXITED, wrong[0][1].code, disrupted=True, since=at, reason=reason)
    first, end = min(wrong, key=lambda pair: pair[1].at)
    said = end.said
    if end.reason == "OOMKilled":
        said = (
            f"it was out of memory ({pods.memory_limit(first)}): raise stages.*.resources.limits.memory in the values"
        )
    return Seen(Process.EXITED, end.code, since=at, reason=_said_by(job, first, said))


def _settled(mine: Sequence[Object]) -> bool:
    """Whether no pod runs that may still tell."""
    return all(pods.finished(pod) or pods.running_since(pod) is None for pod in mine)


def refused_by_its_node(pod: Object) -> str:
    """What a node said that took a pod and then could not run it: its devices come up later than it does."""
    if pods.phase(pod) != "Failed" or pods.ended(pod) is not None:
        return ""
    status: Mapping[str, Any] = pod["status"]
    found = ": ".join(str(status[key]) for key in ("reason", "message") if status.get(key))
    return found[: pods.LONGEST] or "its container never ran"


def _told_by(job: Object) -> str:
    failed = pods.holds(job, "Failed") or pods.holds(job, "FailureTarget") or {}
    told = ": ".join(part for part in (failed.get("reason"), failed.get("message")) if part)
    return f" ({told})"[: pods.LONGEST] if told else ""


def _said_by(job: Object, pod: Object, sentence: str) -> str:
    """With the pod's number in front, where it is one of several."""
    if hosts(job) == 1 or not sentence:
        return sentence
    return f"{'worker' if is_split(job) else 'host'} {pods.index(pod)}: {sentence}"


def _where(pod: Object) -> str:
    name, node = pod["metadata"]["name"], pods.node_of(pod)
    return f"pod {name} on {node}" if node else f"pod {name}"


def is_over(job: Object) -> bool:
    """Whether a Job has ended, and its pods with it."""
    return any(pods.holds(job, kind) for kind in ("Complete", "Failed"))


def ends(job: Object) -> bool:
    """Whether it has ended, or is about to by itself."""
    return is_over(job) or any(pods.holds(job, kind) for kind in ("FailureTarget", "SuccessCriteriaMet"))
