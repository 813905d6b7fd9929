"""The cluster's network: an address of the loopback range for each pod, and names by /etc/hosts.

A pod with `hostname` and `subdomain` is `HOSTNAME.SUBDOMAIN` once its headless Service has it: when it has an address and is
ready, or not ready yet and the Service says publishNotReadyAddresses. A Service's own name gives the addresses of its
pods (kubernetes.io/docs/concepts/services-networking/dns-pod-service). Where a real pod asks the cluster's DNS at each
look-up, here each pod's hosts file is rewritten when an answer changes; the C library reads it at each look-up too.
Unlike on a real node, a Service that is not headless also gives its pods' addresses, and its ports must be theirs.
"""

import ipaddress
import os
import threading
from pathlib import Path

from tests.cluster.access import UNREACHABLE, Api, Json, Refused
from tests.cluster.environment import hostname_of

FIRST_ADDRESS = ipaddress.IPv4Address("127.64.0.1")
DOMAIN = "cluster.local"


class Names:
    """Addresses and names of all pods. `refresh()` is called when something changed, and now and then."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._lock = threading.Lock()
        self._next = FIRST_ADDRESS
        self._addresses: dict[str, str] = {}
        self._files: dict[str, tuple[Json, Path]] = {}

    def address(self, pod: Json) -> str:
        """The pod's own address, the same for its whole life; none is given twice."""
        with self._lock:
            uid = pod["metadata"]["uid"]
            if uid not in self._addresses:
                self._addresses[uid] = str(self._next)
                self._next += 1
            return self._addresses[uid]

    def serve(self, pod: Json, path: Path) -> None:
        """Keeps the hosts file of a pod until `forget`."""
        path.write_text(hosts_file(pod, self.address(pod), {}))
        path.chmod(0o644)
        with self._lock:
            self._files[pod["metadata"]["uid"]] = (pod, path)
        self.refresh()

    def forget(self, pod: Json) -> None:
        with self._lock:
            self._files.pop(pod["metadata"]["uid"], None)

    def refresh(self) -> None:
        """Looks at all pods and Services, and rewrites the files whose answers changed."""
        try:
            pods = self._api.get("/api/v1/pods")["items"]
            services = self._api.get("/api/v1/services")["items"]
        except (Refused, *UNREACHABLE):
            return  # the next refresh sees what this one missed
        found = records(pods, services)
        with self._lock:
            for pod, path in self._files.values():
                _rewrite(path, hosts_file(pod, self._addresses[pod["metadata"]["uid"]], found))


def records(pods: list[Json], services: list[Json]) -> dict[str, list[tuple[str, str]]]:
    """Namespace -> (name within the namespace, address), in a fixed order."""
    found: dict[str, list[tuple[str, str]]] = {}
    for service in services:
        namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
        selector = service["spec"].get("selector")
        if not selector:
            continue
        for pod in pods:
            labels = pod["metadata"].get("labels") or {}
            if pod["metadata"]["namespace"] != namespace or not selector.items() <= labels.items():
                continue
            if not _published(pod, bool(service["spec"].get("publishNotReadyAddresses"))):
                continue
            address = pod["status"]["podIP"]
            found.setdefault(namespace, []).append((name, address))
            if pod["spec"].get("subdomain") == name and pod["spec"].get("hostname"):
                found[namespace].append((f"{pod['spec']['hostname']}.{name}", address))
    return found


def _published(pod: Json, also_unready: bool) -> bool:
    """A pod that has ended has no address any more; one that is about to end keeps it where unready ones have theirs."""
    status = pod["status"]
    if not status.get("podIP") or status.get("phase") in ("Succeeded", "Failed"):
        return False
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())
    return also_unready or (ready and not pod["metadata"].get("deletionTimestamp"))


def hosts_file(pod: Json, address: str, found: dict[str, list[tuple[str, str]]]) -> str:
    """The file that the kubelet writes (kubernetes.io/docs/tasks/network/customize-hosts-file-for-pods), and the names."""
    own, namespace = hostname_of(pod), pod["metadata"]["namespace"]
    subdomain = pod["spec"].get("subdomain")
    full = f"{own}.{subdomain}.{namespace}.svc.{DOMAIN} " if subdomain else ""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback", f"{address} {full}{own}"]
    for alias in pod["spec"].get("hostAliases") or ():
        lines.append(f"{alias['ip']} {' '.join(alias['hostnames'])}")
    for other in sorted(found):
        for name, answer in sorted(set(found[other])):
            absolute = f"{name}.{other}"
            short = f"{name} " if other == namespace else ""
            lines.append(f"{answer} {short}{absolute} {absolute}.svc {absolute}.svc.{DOMAIN}")
    return "\n".join(lines) + "\n"


def _rewrite(path: Path, text: str) -> None:
    """In place, since the file is mounted, and by one write that never leaves less behind than was there."""
    content = text.encode()
    before = path.read_bytes()
    if before.rstrip(b"\n") == content.rstrip(b"\n"):
        return
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), content.ljust(len(before), b"\n"), 0)
