"""What `helm test` asks: may the controller do its work, and is what the run needs there? One line for each answer.

python -m deploy.kubernetes.check --namespace NS --run R
"""

import argparse
import sys
import uuid
from collections.abc import Callable, Iterator

from deploy.controller.backend import Unreachable
from deploy.kubernetes import templates, waits
from deploy.kubernetes.client import GROUP, PLURAL, Cluster, Conflict, Invalid, Object, connect
from deploy.kubernetes.trainingrun import Spec, spec_of
from nanocode.run.exits import ConfigurationError
from nanocode.run.graph import STAGES, order
from nanocode.storage.objects import StorageError, open_store

NEEDED = (
    (GROUP, PLURAL, "", ("get", "patch")),
    (GROUP, PLURAL, "status", ("patch",)),
    ("batch", "jobs", "", ("create", "delete", "list")),
    ("", "pods", "", ("delete", "list")),
    ("", "services", "", ("create", "delete", "list")),
    ("", "configmaps", "", ("get",)),
    ("", "events", "", ("create",)),
    ("", "nodes", "", ("get", "list")),
)
"""What the controller uses: API group, resource, subresource, verbs."""
_AUTOSCALERS_EVENTS = (("", "events", "", ("list",)),)
NEEDED_BY = {"gke": _AUTOSCALERS_EVENTS, "auto": _AUTOSCALERS_EVENTS}
"""Provisioner -> what it uses beside that: the autoscaler's events."""

Answer = tuple[bool, str]


def check(cluster: Cluster, name: str) -> Iterator[Answer]:
    """Whether each thing is as it should be, and a line that says so."""
    training_run = cluster.get(PLURAL, name)
    if training_run is None:
        yield False, f"TrainingRun {name} is not there: install the chart"
        return
    spec = spec_of(training_run)
    yield from _permissions(cluster, name, spec)
    jobs: dict[str, Object] = {}
    yield from _templates(cluster, training_run, spec, jobs)
    yield from _bucket(spec)
    yield from _nodes(cluster, jobs)
    yield from _image(training_run, spec)


def _permissions(cluster: Cluster, name: str, spec: Spec) -> Iterator[Answer]:
    named = {PLURAL: name, "configmaps": spec.templates}
    lacking = []
    for group, resource, part, verbs in (*NEEDED, *NEEDED_BY.get(spec.provisioner, ())):
        for verb in verbs:
            wish = {"group": group, "resource": resource, "subresource": part, "verb": verb}
            wish |= {"name": named.get(resource, ""), "namespace": "" if resource == "nodes" else cluster.namespace}
            review = {"spec": {"resourceAttributes": {key: value for key, value in wish.items() if value}}}
            if not cluster.create("access reviews", review)["status"].get("allowed"):
                lacking.append(f"{verb} {resource}{f'/{part}' if part else ''}")
    if lacking:
        yield False, f"permissions: the controller may not {', '.join(lacking)}: install the chart again"
    else:
        yield True, "permissions: the controller may do all it needs"


def _templates(cluster: Cluster, training_run: Object, spec: Spec, jobs: dict[str, Object]) -> Iterator[Answer]:
    owner = templates.reference(training_run)
    making = templates.Making(owner["name"], cluster.namespace, owner, spec.templates, spec.image, spec.image)
    found = cluster.get("configmaps", spec.templates) or {}
    for stage in order():
        try:
            text = (found.get("data") or {}).get(f"{stage}.yaml", "")
            jobs[stage], _ = templates.objects(text, making, stage, 1)
        except ConfigurationError as error:
            yield False, f"templates: {error}"
            return
    yield True, f"templates: {spec.templates} has one for each stage"


def _bucket(spec: Spec) -> Iterator[Answer]:
    """Written, read and deleted beside the run, as the controller: the jobs have an account of their own."""
    name, text = f"check-{uuid.uuid4().hex}", b"nanocode"
    try:
        store = open_store(spec.run_directory)
        store.create(name, text)
        same = store.read(name) == text
        store.delete(name)
        yield same, f"bucket: {spec.run_directory} can be written and read" if same else "bucket: reads something else"
    except (StorageError, ValueError) as error:
        yield False, f"bucket: {error}"


def _nodes(cluster: Cluster, jobs: dict[str, Object]) -> Iterator[Answer]:
    for machine in ("cpu", "accelerator"):
        job = next((job for stage, job in jobs.items() if STAGES[stage].machine == machine), None)
        if job is None:
            continue
        pod = job["spec"]["template"]
        there = [one for one in cluster.list("nodes", waits.selector(pod)) if waits.allowed(pod, one)]
        fit = sum(waits.fits(pod, one) for one in there)
        wanted = waits.described(pod)
        if fit:
            yield True, f"nodes: {fit} of {len(there)} {wanted} are large enough for {machine} stages"
        else:
            # A pool that is scaled to zero has none: that is no failure.
            yield True, f"nodes: none now for {machine} stages ({wanted}); an autoscaler has to add one"


def _image(training_run: Object, spec: Spec) -> Iterator[Answer]:
    digest = (training_run.get("status") or {}).get("imageDigest")
    if digest:
        yield True, f"image: {digest} was pulled"
    else:
        yield True, f"image: {spec.image} was not pulled yet; `kubectl get pods` shows whether it can be"


def main() -> int:
    parser = argparse.ArgumentParser("python -m deploy.kubernetes.check", description="Check what a run needs.")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--run", required=True, metavar="NAME", help="of the TrainingRun")
    options = parser.parse_args()
    return report(lambda: check(connect(options.namespace), options.run))


def report(answers: Callable[[], Iterator[Answer]]) -> int:
    """Print them; 1 when one is bad."""
    bad = 0
    try:
        for good, line in answers():
            bad += not good
            print(f"{'ok  ' if good else 'FAIL'}  {line}", flush=True)
    except (Unreachable, Conflict, Invalid) as error:
        print(f"FAIL  {error}", flush=True)
        return 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
