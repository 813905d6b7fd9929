"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler on loopback, in one folder.

Authorization is Node and RBAC, Pod Security admission is on, every request is in the audit log. What differs from a
cluster made for production, each on purpose: etcd never syncs to disk, there is one replica of everything, the addresses
of Services lead nowhere (there is no kube-proxy), and Endpoints are not kept, since their validation refuses loopback.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.cluster.access import Api, Refused, write_kubeconfig
from tests.cluster.certificates import Authority, Credentials
from tests.cluster.processes import free_ports, start, stop, wait_until

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    # One line for each request, written when it has been answered; a watch also when it begins.
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


@dataclass(frozen=True)
class Timings:
    """How soon the control plane acts on a silent node. Kubernetes' defaults are 50 s and 300 s."""

    node_silence_seconds: int = 10
    """A node whose lease is older than this is NotReady (--node-monitor-grace-period)."""
    eviction_seconds: int = 20
    """Pods that do not say otherwise are evicted this long after their node is tainted unreachable."""


@dataclass(frozen=True)
class Request:
    """One line of the audit log."""

    user: str
    verb: str
    group: str
    resource: str
    """`jobs`, or with its subresource `pods/log`."""
    namespace: str
    name: str
    code: int


@dataclass
class ControlPlane:
    """`start()` returns when the API server is ready; `stop()` ends what was started and keeps the logs in `folder`."""

    binaries: Path
    folder: Path
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        self.authority = Authority(self.folder / "pki")
        self.port, self._etcd_port, self._etcd_peer_port = free_ports(3)
        self.server = f"https://127.0.0.1:{self.port}"
        self.audit_log = self.folder / "audit.log"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.token_keys = self.authority.signing_key("service-accounts")
        # The group that Kubernetes' own bootstrap policy binds to cluster-admin.
        self.kubeconfig = self.kubeconfig_of("admin", "system:masters")
        self.api = Api(self.kubeconfig)

    def kubeconfig_of(self, user: str, *groups: str) -> Path:
        """A kubeconfig for a user that is whoever the name and groups say."""
        path = self.folder / "pki" / f"{user.replace(':', '-')}.kubeconfig"
        return write_kubeconfig(path, self.server, self.authority.certificate, self.authority.issue(user, *groups))

    def start(self) -> None:
        self._start("etcd", *self._etcd_flags())
        self._api_server_flags = self._make_api_server_flags()
        self._start("kube-apiserver", *self._api_server_flags)
        self.wait_until_ready()
        managers = self.kubeconfig_of("system:kube-controller-manager")
        self._start("kube-controller-manager", *self._controller_manager_flags(managers))
        scheduler = self.kubeconfig_of("system:kube-scheduler")
        self._start("kube-scheduler", f"--kubeconfig={scheduler}", "--leader-elect=false", "--secure-port=0")
        wait_until("the default service account", self._has_default_account)

    def restart_api_server(self) -> None:
        """Ends it as an upgrade does, and waits until a new one is ready at the same address."""
        # It would wait for its clients' watches, longer than a node may be silent here.
        stop(self._processes["kube-apiserver"], seconds=2)
        self._start("kube-apiserver", *self._api_server_flags)
        self.wait_until_ready()

    def stop(self) -> None:
        """Ends all at once: nobody needs a request that is still open."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            stop(process, seconds=2)
        self._processes.clear()

    def wait_until_ready(self, seconds: float = 90) -> None:
        wait_until("the API server is ready", self._ready, seconds)

    def audit(self, user: str = "") -> Iterator[Request]:
        """The requests that were answered so far, of all users or one, oldest first; a watch counts from its beginning."""
        seen = set()
        with self.audit_log.open() as log:
            for line in log:
                if not line.endswith("\n"):
                    return  # it is being written
                event = json.loads(line)
                target = event.get("objectRef")
                if target is None or event["auditID"] in seen:
                    continue
                seen.add(event["auditID"])
                resource = "/".join(filter(None, (target.get("resource"), target.get("subresource"))))
                request = Request(
                    event["user"]["username"],
                    event["verb"],
                    target.get("apiGroup", ""),
                    resource,
                    target.get("namespace", ""),
                    target.get("name", ""),
                    event["responseStatus"]["code"],
                )
                if not user or request.user == user:
                    yield request

    def _start(self, name: str, *flags: str) -> None:
        self._processes[name] = start([str(self.binaries / name), *flags], self.folder / f"{name}.log")

    def _ready(self) -> bool:
        for name, process in self._processes.items():
            if process.poll() is not None:
                tail = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{name} ended with {process.returncode}:\n{tail}")
        return self.api.ready()

    def _has_default_account(self) -> bool:
        try:
            return bool(self.api.get("/api/v1/namespaces/default/serviceaccounts/default"))
        except Refused:
            return False

    def _etcd_flags(self) -> list[str]:
        peer = f"https://127.0.0.1:{self._etcd_peer_port}"
        url = f"https://127.0.0.1:{self._etcd_port}"
        server = self.authority.issue("etcd", addresses=("127.0.0.1",))
        return [
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            # Pods share this machine's loopback; only the API server may read what etcd holds.
            *(
                flag
                for side in ("", "peer-")
                for flag in (
                    f"--{side}client-cert-auth",
                    f"--{side}trusted-ca-file={self.authority.certificate}",
                    *_flags(f"{side}cert-file", f"{side}key-file", server),
                )
            ),
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def _make_api_server_flags(self) -> list[str]:
        policy = self.folder / "audit-policy.yaml"
        policy.write_text(yaml.safe_dump(AUDIT_POLICY))
        names = ("127.0.0.1", "10.0.0.1", "localhost", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
        serving = self.authority.issue("kube-apiserver", addresses=names)
        etcd = self.authority.issue("apiserver-etcd-client")
        # Group system:masters lets it read logs from any node, as kubeadm's certificate of this name does.
        kubelet = self.authority.issue("kube-apiserver-kubelet-client", "system:masters")
        private, public = self.token_keys
        seconds = self.timings.eviction_seconds
        return [
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            "--service-cluster-ip-range=10.0.0.0/16",
            "--endpoint-reconciler-type=none",
            f"--etcd-servers=https://127.0.0.1:{self._etcd_port}",
            f"--etcd-cafile={self.authority.certificate}",
            *_flags("etcd-certfile", "etcd-keyfile", etcd),
            f"--client-ca-file={self.authority.certificate}",
            *_flags("tls-cert-file", "tls-private-key-file", serving),
            *_flags("kubelet-client-certificate", "kubelet-client-key", kubelet),
            f"--kubelet-certificate-authority={self.authority.certificate}",
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC",
            # A node's credentials change nothing but its own node and pods; PodSecurity is on by default.
            "--enable-admission-plugins=NodeRestriction",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={private}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--default-unreachable-toleration-seconds={seconds}",
            f"--default-not-ready-toleration-seconds={seconds}",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-mode=blocking",
            # Megabytes: never rotated, or `audit` would miss what came before.
            "--audit-log-maxsize=10000",
            "--shutdown-delay-duration=0s",
            "--profiling=false",
        ]

    def _controller_manager_flags(self, kubeconfig: Path) -> list[str]:
        return [
            f"--kubeconfig={kubeconfig}",
            "--leader-elect=false",
            "--secure-port=0",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self.token_keys[0]}",
            f"--root-ca-file={self.authority.certificate}",
            f"--node-monitor-grace-period={self.timings.node_silence_seconds}s",
            "--node-monitor-period=1s",
            # Endpoints on loopback are invalid, and nothing here reads them.
            "--controllers=*,-endpoints-controller,-endpointslice-controller,-endpointslice-mirroring-controller",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ]


def _flags(certificate: str, key: str, credentials: Credentials) -> list[str]:
    return [f"--{certificate}={credentials.certificate}", f"--{key}={credentials.key}"]
