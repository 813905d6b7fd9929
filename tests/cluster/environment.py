"""What a container's environment and arguments are, from its pod: pure, given a way to look up ConfigMaps and Secrets.

Order and precedence: kubernetes.io/docs/tasks/inject-data-application/define-environment-variable-container, and the
field descriptions of EnvVar and EnvFromSource in the API reference.
"""

import base64
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from tests.cluster.access import Json

Lookup = Callable[[str, str], Json | None]
"""(`configmaps` or `secrets`, name) -> the object, None where there is none in the pod's namespace."""


class Unresolved(Exception):
    """A reference leads nowhere; the kubelet reports it as CreateContainerConfigError, and tries again."""


def environment_of(
    pod: Json, container: Json, image: Mapping[str, str], lookup: Lookup, api_server: tuple[str, int]
) -> dict[str, str]:
    """Later ones win: image, the API server's address, envFrom in order, env in order."""
    host, port = api_server
    variables = {
        # What a container gets that sets no PATH (opencontainers runtimes, and so containerd).
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        **image,
        "HOSTNAME": hostname_of(pod),
        # kubernetes.io/docs/concepts/services-networking/service, "environment variables"
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": str(port),
        "KUBERNETES_SERVICE_PORT_HTTPS": str(port),
    }
    for source in container.get("envFrom") or ():
        variables |= _from_source(source, lookup)
    for variable in container.get("env") or ():
        value = _value(variable, pod, container, lookup, variables)
        if value is not None:
            variables[variable["name"]] = value
    return variables


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` by its value; `$$(NAME)` and names that are not defined stay as they are written.

    kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables
    """
    return re.sub(
        r"\$(\$|\(([^()]*)\))",
        lambda match: "$" if match[1] == "$" else variables.get(match[2], match[0]),
        text,
    )


def hostname_of(pod: Json) -> str:
    """kubernetes.io/docs/concepts/services-networking/dns-pod-service: `spec.hostname`, else the pod's name."""
    return str(pod["spec"].get("hostname") or pod["metadata"]["name"])[:63]


def field_of(pod: Json, path: str) -> str:
    """The fields of kubernetes.io/docs/concepts/workloads/pods/downward-api; raises Unresolved for others."""
    if found := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str((pod["metadata"].get(found[1]) or {}).get(found[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        values = pod["metadata"].get(path.partition(".")[2]) or {}
        return "\n".join(f'{key}="{value}"' for key, value in sorted(values.items()))
    allowed = {
        "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
        "status.podIP", "status.podIPs", "status.hostIP", "status.hostIPs",
    }  # fmt: skip
    if path not in allowed:
        raise Unresolved(f"unsupported fieldPath: {path}")
    if path.endswith("IPs"):
        return field_of(pod, path[:-1])
    part, name = path.split(".")
    return str(pod[part].get(name, ""))


def amount_of(container: Json, reference: Json) -> str:
    """A container's own request or limit, in units of the divisor, rounded up."""
    kind, _, resource = reference["resource"].partition(".")
    value = ((container.get("resources") or {}).get(kind) or {}).get(resource)
    if value is None:
        raise Unresolved(f"container {container['name']} says no {reference['resource']}")
    return str(math.ceil(parse_quantity(value) / parse_quantity(reference.get("divisor") or "1")))


def entry(kind: str, reference: Json, lookup: Lookup) -> str | None:
    """The value of one key; None for a missing one that is optional."""
    found = lookup(kind, reference["name"])
    value = entries(kind, found).get(reference["key"]) if found else None
    if value is None and not reference.get("optional"):
        what = {"configmaps": "configmap", "secrets": "secret"}[kind]
        # The kubelet's own words, which users search for.
        if not found:
            raise Unresolved(f'{what} "{reference["name"]}" not found')
        raise Unresolved(f"couldn't find key {reference['key']} in {what} {reference['name']}")
    return None if value is None else value.decode()


def entries(kind: str, found: Json) -> dict[str, bytes]:
    """Key -> content of a ConfigMap or Secret."""
    if kind == "secrets":
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    binary = {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}
    return binary | {key: value.encode() for key, value in (found.get("data") or {}).items()}


def _from_source(source: Json, lookup: Lookup) -> dict[str, str]:
    kind, reference = (
        ("configmaps", source["configMapRef"]) if "configMapRef" in source else ("secrets", source["secretRef"])
    )
    found = lookup(kind, reference["name"])
    if found is None:
        if reference.get("optional"):
            return {}
        raise Unresolved(f'{kind.removesuffix("s")} "{reference["name"]}" not found')
    prefix = source.get("prefix") or ""
    return {prefix + key: value.decode() for key, value in entries(kind, found).items()}


def _value(variable: Json, pod: Json, container: Json, lookup: Lookup, variables: Mapping[str, str]) -> str | None:
    source: dict[str, Any] | None = variable.get("valueFrom")
    if not source:
        return expand(variable.get("value") or "", variables)
    if "fieldRef" in source:
        return field_of(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return amount_of(container, source["resourceFieldRef"])
    if "configMapKeyRef" in source:
        return entry("configmaps", source["configMapKeyRef"], lookup)
    if "secretKeyRef" in source:
        return entry("secrets", source["secretKeyRef"], lookup)
    raise Unresolved(f"environment variable {variable['name']}: this kubelet knows no {', '.join(source)}")
