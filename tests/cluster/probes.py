"""Whether a container's port answers (kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes)."""

import http.client
import socket
import time
from dataclasses import dataclass

from tests.cluster.access import Json

KINDS = ("readinessProbe", "livenessProbe")


@dataclass
class Probe:
    """One container's probe of one kind; without one a container is ready and alive as long as it runs."""

    container: Json
    kind: str
    address: str
    _run: float = 0.0
    """When the run began that the answers are from."""
    _next: float = 0.0
    _answers: int = 0
    """Successes in a row, or, negative, failures."""

    def judge(self, started: float, before: bool) -> tuple[bool, str]:
        """(the verdict, `before` while there is no other; what this call's probe complained of). Called often, asks when it is time."""
        probe = self.container.get(self.kind)
        if not probe:
            return True, ""
        if self._run != started:
            self._run, self._answers = started, 0
        now = time.time()
        if now < max(self._next, started + probe.get("initialDelaySeconds", 0)):
            return before, ""
        self._next = now + probe.get("periodSeconds", 10)
        problem = self._ask(probe)
        self._answers = min(self._answers, 0) - 1 if problem else max(self._answers, 0) + 1
        if self._answers >= probe.get("successThreshold", 1):
            return True, ""
        if -self._answers >= probe.get("failureThreshold", 3):
            return False, problem
        return before, problem

    def _ask(self, probe: Json) -> str:
        seconds = probe.get("timeoutSeconds", 1)
        try:
            if "httpGet" in probe:
                asked = probe["httpGet"]
                host, port = asked.get("host") or self.address, self._port(asked["port"])
                connection = http.client.HTTPConnection(host, port, timeout=seconds)
                headers = {header["name"]: header["value"] for header in asked.get("httpHeaders") or ()}
                connection.request("GET", asked.get("path", "/"), headers=headers)
                status = connection.getresponse().status
                connection.close()
                return "" if 200 <= status < 400 else f"HTTP probe failed with statuscode: {status}"
            if "tcpSocket" in probe:
                asked = probe["tcpSocket"]
                socket.create_connection(
                    (asked.get("host") or self.address, self._port(asked["port"])), seconds
                ).close()
                return ""
        except (OSError, http.client.HTTPException) as problem:
            return f"probe failed: {problem}"
        return f"this kubelet has no probe {', '.join(probe)}"

    def _port(self, port: int | str) -> int:
        if isinstance(port, int) or port.isdigit():
            return int(port)
        return next(int(p["containerPort"]) for p in self.container.get("ports") or () if p.get("name") == port)
