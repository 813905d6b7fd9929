"""The chart as helm renders it, and the JSON schemas that its objects have to meet."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/nanocode"
CRD = yaml.safe_load((CHART / "crds/trainingrun.yaml").read_text())
BASE = {
    "bucket": "gs://my-bucket",
    "image": {"repository": "registry/jobs", "controllerRepository": "registry/controller"},
}
PRESETS = ("demo", "d12", "d20", "d24")
KUBERNETES = "1.36.3"
Object = dict[str, Any]


@cache
def program(name: str) -> str:
    """helm or kubeconform, from the PATH or as tests/cluster has built it; skips where it is neither."""
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanocode/cluster"
    found = shutil.which(name) or next((str(path) for path in sorted(cached.glob(f"*/{name}"))), None)
    if found is None:
        pytest.skip(f"{name} is neither on the PATH nor in {cached}: `make test-cluster` builds it")
    return found


def helm(
    command: str, values: Mapping[str, Any], files: Sequence[str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """`helm COMMAND ... CHART`, with values over the presets' files."""
    layers = [part for file in files for part in ("--values", str(CHART / f"values-{file}.yaml"))]
    argv = [program("helm"), command, *arguments, str(CHART), *layers, "--values", "-"]
    return subprocess.run(argv, input=json.dumps(values), capture_output=True, text=True, check=False, timeout=120)


def render(
    values: Mapping[str, Any] | None = None,
    files: Sequence[str] = ("d24",),
    release: str = "mine",
    apis: Sequence[str] = (),
) -> list[Object]:
    """Every object of the chart, its hooks too."""
    known = [part for api in apis for part in ("--api-versions", api)]
    done = helm("template", BASE | dict(values or {}), files, release, "--namespace", "ns", *known)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one is not None]


def refused(values: Mapping[str, Any], release: str = "mine") -> str:
    """What helm says when it does not take these values."""
    done = helm("template", BASE | dict(values), ("d24",), release, "--namespace", "ns")
    assert done.returncode != 0
    return done.stderr


def one(objects: Sequence[Object], kind: str, name: str | None = None) -> Object:
    """The only object of a kind, and of a name if given."""
    (found,) = [each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    return found


def templates(objects: Sequence[Object]) -> dict[str, tuple[Object, Object]]:
    """Stage -> its Job and Service."""
    data = next(each for each in objects if "-templates-" in each["metadata"]["name"])["data"]
    stages = {name: text for name, text in data.items() if name != "bridge.yaml"}
    documents = {name.removesuffix(".yaml"): tuple(yaml.safe_load_all(text)) for name, text in stages.items()}
    return {name: (job, service) for name, (job, service) in documents.items()}


def bridge(objects: Sequence[Object]) -> Object | None:
    """The Job that mirrors a log, where there is one."""
    data = next(each for each in objects if "-templates-" in each["metadata"]["name"])["data"]
    found: Object | None = yaml.safe_load(data["bridge.yaml"]) if "bridge.yaml" in data else None
    return found


def jobs(objects: Sequence[Object]) -> dict[str, Object]:
    return {name: job for name, (job, _) in templates(objects).items()}


def pod(workload: Object) -> Object:
    """The pod spec of a Job, CronJob, Deployment or Pod."""
    spec: Object = workload["spec"].get("jobTemplate", workload)["spec"]
    return spec["template"]["spec"] if "template" in spec else spec


def pods(objects: Sequence[Object]) -> dict[str, Object]:
    """Name -> pod spec, of all that runs one, stages included."""
    workloads = [each for each in objects if each["kind"] in ("CronJob", "Deployment", "Job", "Pod")]
    found = {each["metadata"]["name"]: pod(each) for each in workloads}
    if (mirror := bridge(objects)) is not None:
        found["bridge"] = pod(mirror)
    return found | {name: pod(job) for name, job in jobs(objects).items()}


def environment(spec: Object) -> dict[str, Any]:
    (container,) = spec["containers"]
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def write_schemas(folder: Path) -> bool:
    """JSON schemas for kubeconform; whether Kubernetes' own are among them, from its Go module where that is there."""
    crd = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    (folder / "trainingrun-nanocode-v1alpha1.json").write_text(json.dumps(_strict(crd)))
    modules = Path(os.environ.get("GOMODCACHE") or Path(os.environ.get("GOPATH") or Path.home() / "go") / "pkg/mod")
    swagger = modules / f"k8s.io/kubernetes@v{KUBERNETES}/api/openapi-spec/swagger.json"
    if not swagger.exists():
        return False
    definitions = json.loads(swagger.read_text())["definitions"]
    strict = {name: _strict(definition) for name, definition in definitions.items()}
    strict["io.k8s.apimachinery.pkg.api.resource.Quantity"] = {"type": ["string", "number"]}
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", []):
            group = f"-{kind['group'].split('.')[0]}" if kind["group"] else ""
            needed = {each: strict[each] for each in _closure(name, definitions)}
            schema = {"$ref": f"#/definitions/{name}", "definitions": needed}
            (folder / f"{kind['kind'].lower()}{group}-{kind['version']}.json").write_text(json.dumps(schema))
    return True


def _closure(name: str, definitions: Mapping[str, Any]) -> set[str]:
    found: set[str] = set()
    coming = [name]
    while coming:
        each = coming.pop()
        if each not in found:
            found.add(each)
            coming += [reference.rpartition("/")[2] for reference in _references(definitions[each])]
    return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _strict(schema: Any) -> Any:
    """An OpenAPI schema as JSON schema (draft 4) that takes no unknown field, as the API server's strict validation."""
    found = {key: value for key, value in schema.items() if not key.startswith("x-")}
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            found[key] = _strict(found[key])
    if "properties" in found:
        found["properties"] = {name: _strict(each) for name, each in found["properties"].items()}
        if "x-kubernetes-preserve-unknown-fields" not in schema:
            found.setdefault("additionalProperties", False)
    if found.get("format") == "int-or-string":
        found["type"] = ["string", "integer"]
    if found.pop("nullable", False):
        found["type"] = [found["type"], "null"]
    return found
