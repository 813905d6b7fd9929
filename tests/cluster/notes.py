"""Events about a pod, as `kubectl describe pod` and `kubectl get events` show them."""

import threading
import time

from tests.cluster.access import UNREACHABLE, Api, Json, Refused
from tests.cluster.slots import timestamp


class Notes:
    """Called with (type, reason, message). Best effort, as a kubelet's events are; the same thing is said once."""

    def __init__(self, pod: Json, node: str, api: Api, hung: threading.Event) -> None:
        metadata = pod["metadata"]
        self._path = f"/api/v1/namespaces/{metadata['namespace']}/events"
        self._about = {key: metadata[key] for key in ("name", "namespace", "uid")} | {"apiVersion": "v1", "kind": "Pod"}
        self._source = {"component": "kubelet", "host": node}
        self._api, self._hung = api, hung
        self._said: dict[str, str] = {}

    def __call__(self, kind: str, reason: str, message: str) -> None:
        if self._hung.is_set() or self._said.get(reason) == message:
            return
        self._said[reason] = message
        now = timestamp(time.time())
        event = {
            "metadata": {"generateName": f"{self._about['name']}.", "namespace": self._about["namespace"]},
            "involvedObject": self._about,
            "type": kind,
            "reason": reason,
            "message": message[:1024],  # longer ones are refused
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": self._source,
        }
        try:
            self._api.create(self._path, event)
        except (Refused, *UNREACHABLE):
            return
