"""What became of an attempt, by what its Job, its pods and their nodes say; the policies then count it."""

from dataclasses import replace
from typing import Any

import pytest

from deploy.controller.observed import Process, Seen
from deploy.controller.policies import ending
from deploy.kubernetes import endings, waits
from nanocode.run.attempts import Ending, Stop
from nanocode.run.exits import Exit
from tests.deploy.controller.builders import accelerator, attempt
from tests.deploy.kubernetes.objects import (
    NOW,
    PATIENCE,
    condition,
    failed,
    held,
    homeless,
    job,
    node,
    placed,
    pod,
    ran,
    running,
    taken,
)

HERE = {"node-0": node(), "node-1": node(name="node-1")}
GONE: dict[str, Any] = {"node-0": node(), "node-1": None}
SILENT = {"node-0": node(), "node-1": node("Unknown", ago=45, name="node-1")}
JUST_SILENT = {"node-0": node(), "node-1": node("Unknown", ago=10, name="node-1")}
BACKOFF = failed("BackoffLimitExceeded", "Job has reached the specified backoff limit")


def seen(its_job: Any, *its_pods: Any, nodes: Any = HERE, kind: waits.Kind = waits.Kind(), now: float = NOW) -> Seen:  # noqa: B008
    return endings.seen(its_job, its_pods, nodes, now, PATIENCE, kind)


def counts_as(found: Seen) -> tuple[Ending, str]:
    one = replace(attempt(1), seen=found)
    ended = ending(accelerator("pretrain", one), one, None, NOW)  # type: ignore[arg-type]  # it is not asked
    assert ended is not None, f"{found} is no ending"
    return ended


@pytest.mark.parametrize(
    ("why", "its_job", "its_pods", "nodes", "counted", "reason"),
    [
        ("the platform took the node back, with a word",
         job(failed("PodFailurePolicy")), [pod(0, ran(137), taken())], HERE,
         Ending.PREEMPTED, "pod r-pretrain-1-0-abcde on node-0 was taken away: TerminationByKubelet: imminent node shutdown"),
        ("it saved in time and left with 75",
         job(failed("PodFailurePolicy")), [pod(0, ran(75, "nanocode: saved at step 12"))], HERE,
         Ending.PREEMPTED, "saved at step 12"),
        ("its node vanished without a word",
         job(), [pod(0, running(), node="node-1")], GONE, Ending.PREEMPTED, "node node-1 is gone"),
        ("its node has been silent for long",
         job(), [pod(0, running(), node="node-1")], SILENT, Ending.PREEMPTED, "node node-1 is silent"),
        ("a host vanished, and its peer crashed first",
         job(BACKOFF, hosts=2), [pod(0, ran(1, "connection lost")), pod(1, running(), node="node-1")], SILENT,
         Ending.PREEMPTED, "node node-1 is silent"),
        ("a host was taken, and its peer crashed first",
         job(BACKOFF, hosts=2), [pod(0, ran(1, "connection lost")), pod(1, ran(143), taken(), node="node-1")], HERE,
         Ending.PREEMPTED, "pod r-pretrain-1-1-abcde on node-1 was taken away: TerminationByKubelet: imminent node shutdown"),
        ("a host was taken and its pod deleted before anybody looked",
         job(failed("PodFailurePolicy", "Pod x/y has condition DisruptionTarget matching FailJob rule at index 0"), hosts=2),
         [pod(0, ran(1, "connection lost"))], HERE, Ending.PREEMPTED,
         "a pod was taken away (PodFailurePolicy: Pod x/y has condition DisruptionTarget matching FailJob rule at index 0)"),
        ("its node took it before its devices were up",
         job(BACKOFF), [pod(0, {}, phase="Failed", reason="UnexpectedAdmissionError", message="no healthy devices present")], HERE,
         Ending.PREEMPTED,
         "pod r-pretrain-1-0-abcde on node-0 was taken away: UnexpectedAdmissionError: no healthy devices present"),
        ("one host waited for another that never came",
         job(BACKOFF, hosts=2), [pod(0, ran(1, "timed out")), pod(1, None, homeless(300), node=None)], HERE,
         Ending.PREEMPTED, "host 1 never began (it found no node), and the others gave up"),
        ("somebody deleted its pods", job(BACKOFF), [], HERE, Ending.PREEMPTED,
         "its pods are gone (BackoffLimitExceeded: Job has reached the specified backoff limit)"),
        ("it crashed", job(BACKOFF), [pod(0, ran(1, "RuntimeError: it broke"))], HERE,
         Ending.FAILED, "exit code 1: RuntimeError: it broke"),
        ("a host of two crashed, and the other with it",
         job(BACKOFF, hosts=2), [pod(0, ran(1, "peer lost", ago=3)), pod(1, ran(1, "it broke", ago=9))], HERE,
         Ending.FAILED, "exit code 1: host 1: it broke"),
        ("it was killed by a signal", job(BACKOFF), [pod(0, ran(139))], HERE, Ending.FAILED, "signal 11"),
        ("it needed too much memory", job(BACKOFF), [pod(0, ran(137, reason="OOMKilled"))], HERE, Ending.FAILED,
         "signal 9: it was out of memory (160Gi): raise stages.*.resources.limits.memory in the values"),
        ("a setting is wrong", job(failed("PodFailurePolicy")), [pod(0, ran(78, "nanocode: soul is not there"))], HERE,
         Ending.CONFIGURATION, "soul is not there"),
        ("a setting is wrong on one host, and a node went away as well",
         job(BACKOFF, hosts=2), [pod(0, ran(78, "soul is not there")), pod(1, running(), node="node-1")], GONE,
         Ending.CONFIGURATION, "soul is not there"),
        ("it ended well and left no marker", job(condition("Complete")), [pod(0, ran(0))], HERE,
         Ending.FAILED, "it ended with exit code 0 and left no marker"),
        ("a worker of a split stage failed once too often",
         job(failed("MaxFailedIndexesExceeded"), hosts=2, split=True),
         [pod(0, ran(0)), pod(1, ran(1, "no such file"))], HERE, Ending.FAILED, "exit code 1: worker 1: no such file"),
    ],
)  # fmt: skip
def test_an_ending_is_told_apart(
    why: str, its_job: Any, its_pods: list[Any], nodes: Any, counted: Ending, reason: str
) -> None:
    assert counts_as(seen(its_job, *its_pods, nodes=nodes)) == (counted, reason), why


@pytest.mark.parametrize(
    ("why", "its_job", "its_pods", "nodes", "process"),
    [
        ("all hosts run", job(hosts=2), [pod(0, running()), pod(1, running())], HERE, Process.RUNNING),
        ("one of two hosts runs", job(hosts=2), [pod(0, running()), pod(1, held("ContainerCreating"), placed(5))], HERE,
         Process.PENDING),
        ("one host is done before the other", job(hosts=2), [pod(0, ran(0)), pod(1, running())], HERE, Process.RUNNING),
        ("a node has just fallen silent", job(hosts=2), [pod(0, running()), pod(1, running(), node="node-1")], JUST_SILENT,
         Process.RUNNING),
        ("a host has crashed, and nobody knows yet of the other's node",
         job(hosts=2), [pod(0, ran(1, "connection lost", ago=20)), pod(1, running(), node="node-1")], JUST_SILENT,
         Process.RUNNING),
        ("the other has not told for too long",
         job(hosts=2), [pod(0, ran(1, "connection lost", ago=100)), pod(1, running(), node="node-1")], JUST_SILENT,
         Process.EXITED),
        ("a worker of a split stage is begun again", job(hosts=2, split=True), [pod(0, ran(1)), pod(1, running())], HERE,
         Process.RUNNING),
        ("a worker of a split stage lost its node", job(hosts=2, split=True), [pod(0, running()), pod(1, running(), node="node-1")],
         GONE, Process.RUNNING),
        ("its pods are not there yet", job(ago=3), [], HERE, Process.PENDING),
        ("its queue has not admitted it", job(ago=90_000, suspend=True), [], HERE, Process.PENDING),
        ("no pod was ever made", job(ago=700), [], HERE, Process.EXITED),
    ],
)  # fmt: skip
def test_while_it_may_still_do_something_it_is_left_alone(
    why: str, its_job: Any, its_pods: list[Any], nodes: Any, process: Process
) -> None:
    assert seen(its_job, *its_pods, nodes=nodes).process is process, why


TPU_KIND = waits.Kind([node()])
SMALL_KIND = waits.Kind([node(memory="16Gi")])
PROVEN = waits.Kind(proven=True)


@pytest.mark.parametrize(
    ("why", "state", "conditions", "kind", "sentence"),
    [
        ("an image that nobody pushed", held("ImagePullBackOff", 'Back-off pulling image "registry/nanocode:1"'), [placed(90)], None,
         'image registry/nanocode:1 cannot be pulled (Back-off pulling image "registry/nanocode:1"): push it (`make push`), '
         "or correct image.repository and image.tag"),
        ("a Secret that is not there", held("CreateContainerConfigError", 'secret "teacher" not found'), [placed(90)], None,
         "Secret teacher is not there: `kubectl create secret generic teacher --from-literal=KEY=VALUE` with the key that the "
         "values name at `secrets`, or take it out of them"),
        ("a key that the Secret lacks", held("CreateContainerConfigError", "couldn't find key A in Secret ns/teacher"), [placed(90)],
         None, "the container's environment cannot be made (couldn't find key A in Secret ns/teacher): correct the Secret, or "
         "`secrets` in the values"),
        ("no node of its kind", {}, [homeless(90)], waits.Kind(),
         "there is no node with cloud.google.com/gke-tpu-topology=2x4 (0/3 nodes are available: 3 node(s) didn't match Pod's "
         "node affinity/selector): add such a node pool, or correct accelerator, tpu and spot in the values"),
        ("only nodes that are too small", {}, [homeless(90)], SMALL_KIND,
         "no node with cloud.google.com/gke-tpu-topology=2x4 is large enough for 8 cpu, 8 google.com/tpu, 48Gi memory (0/3 nodes "
         "are available: 3 node(s) didn't match Pod's node affinity/selector): correct resources of the stage in the values, or "
         "add larger nodes"),
    ],
)  # fmt: skip
def test_what_somebody_has_to_correct_is_said_at_once_and_ends_the_attempt_after_a_deadline(
    why: str, state: Any, conditions: list[Any], kind: waits.Kind | None, sentence: str
) -> None:
    one = pod(0, state, *conditions, node=None if not state else "node-0")
    early = seen(job(), one, kind=kind or waits.Kind())
    assert (early.process, early.reason) == (Process.PENDING, sentence), why
    late = seen(job(), one, kind=kind or waits.Kind(), now=NOW + 4000)
    assert counts_as(late) == (Ending.CONFIGURATION, sentence)


@pytest.mark.parametrize(
    ("why", "kind"),
    [("a node that would do is busy", TPU_KIND), ("there was such a node, and the pool is empty now", PROVEN)],
)
def test_a_node_that_is_busy_or_will_come_back_is_waited_for_without_a_deadline(why: str, kind: waits.Kind) -> None:
    found = seen(job(), pod(0, {}, homeless(90), node=None), kind=kind, now=NOW + 100_000)
    assert (found.process, found.since) == (Process.PENDING, NOW + 100_000), "and no other deadline holds for it"


def test_a_container_that_is_set_up_for_too_long_is_a_failure() -> None:
    found = seen(job(), pod(0, held("ContainerCreating"), placed(700)))
    assert counts_as(found)[0] is Ending.FAILED
    assert "`kubectl describe pod r-pretrain-1-0-abcde` says what it waits for" in found.reason


def test_in_a_gang_the_host_that_waits_is_named() -> None:
    found = seen(job(hosts=2), pod(0, running()), pod(1, held("ImagePullBackOff", "denied"), placed(20), node="node-1"))
    assert found.reason.startswith("host 1: image registry/nanocode:1 cannot be pulled (denied)")


def test_what_we_have_stopped_ourselves_is_no_preemption() -> None:
    found = seen(job(failed("PodFailurePolicy")), pod(0, ran(143), taken("DeletionByPodGC")))
    stopped = replace(attempt(1), seen=found, stop=Stop(reason="suspended", at=NOW))
    assert ending(accelerator("pretrain", stopped), stopped, None, NOW) == (Ending.STOPPED, "suspended")  # type: ignore[arg-type]
    assert found.exit_code == -15


def test_a_job_that_has_failed_and_still_ends_its_pods_is_not_over() -> None:
    assert not endings.is_over(job(condition("FailureTarget", "PodFailurePolicy")))
    assert endings.is_over(job(failed("PodFailurePolicy")))
    assert counts_as(seen(job(condition("FailureTarget")), pod(0, ran(int(Exit.PREEMPTED)))))[0] is Ending.PREEMPTED


@pytest.mark.parametrize(
    ("why", "its_job", "its_pods", "nodes", "code", "at"),
    [
        ("it crashed", job(BACKOFF), [pod(0, ran(1, "it broke", ago=7))], HERE, 1, NOW - 7),
        ("it was killed", job(BACKOFF), [pod(0, ran(137, ago=7))], HERE, -9, NOW - 7),
        ("it saved and left", job(failed("PodFailurePolicy")), [pod(0, ran(75, ago=7))], HERE, 75, NOW - 7),
        ("all is done, and its pods are deleted", job(condition("Complete")), [], HERE, 0, NOW),
        ("a host was taken before anybody saw it end", job(BACKOFF, hosts=2),
         [pod(0, ran(1, ago=7)), pod(1, running(), taken(), node="node-1")], HERE, 75, NOW - 7),
        ("a worker crashed an hour ago, was begun again and crashed again", job(BACKOFF, hosts=2, split=True),
         [pod(0, ran(1, ago=3600)), pod(0, ran(1, ago=7)), pod(1, ran(0, ago=50))], HERE, 1, NOW - 7),
        ("its other hosts ended later", job(BACKOFF, hosts=2), [pod(0, ran(1, ago=40)), pod(1, ran(1, ago=7))], HERE,
         1, NOW - 7),
        ("its node's clock is ahead", job(BACKOFF), [pod(0, ran(1, ago=-3))], HERE, 1, NOW),
        ("its image was never pulled", job(), [pod(0, held("ImagePullBackOff"), placed(9000))], HERE, None, None),
        ("its node vanished, and nobody knows when", job(), [pod(0, running(), node="node-1")], GONE, None, None),
        ("it runs", job(), [pod(0, running())], HERE, None, None),
        ("a worker of a split stage is begun again", job(hosts=2, split=True), [pod(0, ran(1)), pod(1, running())], HERE,
         None, None),
    ],
)  # fmt: skip
def test_when_its_processes_ended_is_written_down_where_somebody_knows(
    why: str, its_job: Any, its_pods: list[Any], nodes: Any, code: int | None, at: float | None
) -> None:
    found = endings.exit_record(seen(its_job, *its_pods, nodes=nodes), its_pods, NOW)
    assert (found and found.code, found and found.at) == (code, at), why
