"""A pod's volumes as folders of this machine.

Content is laid once, when the pod starts; a real kubelet follows later changes of ConfigMaps and Secrets after a while
(kubernetes.io/docs/concepts/configuration/configmap, "mounted ConfigMaps are updated automatically"), which nothing of
ours relies on. Tokens are renewed as the kubelet does.
"""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.access import Api, Json
from tests.cluster.environment import Lookup, Unresolved, amount_of, entries, field_of

IN_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Owner:
    """Whose files a pod's volumes are: `securityContext.fsGroup`, and the user that a token is for."""

    group: int | None
    user: int | None


class Volumes:
    """Everything that one pod mounts, below `folder`; a volume of medium Memory is in this machine's own tmpfs."""

    def __init__(self, pod: Json, folder: Path, api: Api, lookup: Lookup, owner: Owner) -> None:
        self.pod = pod
        self.folder = folder
        self._api = api
        self._lookup = lookup
        self._owner = owner
        self._in_memory = IN_MEMORY / f"nanocode-{pod['metadata']['uid']}"
        self._renewals: list[tuple[float, Path, Json, int]] = []

    def prepare(self) -> None:
        """Lays every volume; raises Unresolved (the kubelet's FailedMount) while something that is named is missing."""
        self._renewals = []
        for volume in self.pod["spec"].get("volumes") or ():
            self._lay(volume)

    def path(self, name: str) -> tuple[Path, bool]:
        """(folder of a volume, whether its kind can be mounted read-only alone)."""
        volume = next(v for v in self.pod["spec"]["volumes"] if v["name"] == name)
        return self._folder(volume), "emptyDir" not in volume

    def renew_tokens(self) -> None:
        """Fresh tokens for those that have used 80 % of their life.

        kubernetes.io/docs/tasks/configure-pod-container/configure-service-account, "launch a Pod using service account
        token projection".
        """
        due = [renewal for renewal in self._renewals if time.time() > renewal[0]]
        for renewal in due:
            _, path, source, mode = renewal
            self._write_token(path, source, mode)
            self._renewals.remove(renewal)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self._in_memory, ignore_errors=True)

    def _folder(self, volume: Json) -> Path:
        memory = (volume.get("emptyDir") or {}).get("medium") == "Memory"
        return (self._in_memory if memory else self.folder) / str(volume["name"])

    def _lay(self, volume: Json) -> None:
        folder = self._folder(volume)
        folder.mkdir(parents=True, exist_ok=True)
        folder.parent.chmod(0o711)
        if "emptyDir" in volume:
            # kubernetes.io/docs/tasks/configure-pod-container/security-context: fsGroup owns the volume, setgid
            folder.chmod(0o2777 if self._owner.group is not None else 0o777)
            _own(folder, None, self._owner.group)
        elif "configMap" in volume:
            self._lay_entries(folder, "configmaps", volume["configMap"], volume["configMap"])
        elif "secret" in volume:
            self._lay_entries(
                folder, "secrets", volume["secret"] | {"name": volume["secret"]["secretName"]}, volume["secret"]
            )
        elif "downwardAPI" in volume:
            self._lay_fields(folder, volume["downwardAPI"], volume["downwardAPI"])
        elif "projected" in volume:
            for source in volume["projected"].get("sources") or ():
                self._lay_source(folder, source, volume["projected"])
        else:
            raise Unresolved(f"volume {volume['name']}: this kubelet mounts no {', '.join(set(volume) - {'name'})}")

    def _lay_source(self, folder: Path, source: Json, volume: Json) -> None:
        if "serviceAccountToken" in source:
            token = source["serviceAccountToken"]
            self._write_token(folder / token["path"], token, volume.get("defaultMode", 0o644))
        elif "configMap" in source:
            self._lay_entries(folder, "configmaps", source["configMap"], volume)
        elif "secret" in source:
            self._lay_entries(folder, "secrets", source["secret"], volume)
        elif "downwardAPI" in source:
            self._lay_fields(folder, source["downwardAPI"], volume)
        else:
            raise Unresolved(f"this kubelet projects no {', '.join(source)}")

    def _lay_entries(self, folder: Path, kind: str, reference: Json, volume: Json) -> None:
        found = self._lookup(kind, reference["name"])
        if found is None:
            if reference.get("optional"):
                return
            raise Unresolved(f'{kind.removesuffix("s")} "{reference["name"]}" not found')
        content = entries(kind, found)
        items = reference.get("items") or [{"key": key, "path": key} for key in content]
        for item in items:
            if item["key"] not in content:
                raise Unresolved(f"references non-existent config key: {item['key']}")
            self._write(
                folder / item["path"], content[item["key"]], item.get("mode") or volume.get("defaultMode", 0o644)
            )

    def _lay_fields(self, folder: Path, fields: Json, volume: Json) -> None:
        for item in fields.get("items") or ():
            if "fieldRef" in item:
                text = field_of(self.pod, item["fieldRef"]["fieldPath"])
            else:
                reference = item["resourceFieldRef"]
                named = reference["containerName"]
                text = amount_of(next(c for c in self.pod["spec"]["containers"] if c["name"] == named), reference)
            self._write(folder / item["path"], text.encode(), item.get("mode") or volume.get("defaultMode", 0o644))

    def _write_token(self, path: Path, source: Json, mode: int) -> None:
        metadata, seconds = self.pod["metadata"], int(source.get("expirationSeconds", 3600))
        bound = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
        # kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1
        specification = {
            "expirationSeconds": seconds,
            "boundObjectRef": bound,
            "audiences": [source["audience"]] if source.get("audience") else [],
        }
        account = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{self.pod['spec']['serviceAccountName']}"
        answer = self._api.create(
            f"{account}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": specification},
        )
        self._renewals.append((time.time() + 0.8 * seconds, path, source, mode))
        # Readable for the container's user alone, or for its fsGroup.
        private = 0o640 if self._owner.group is not None else 0o600 if self._owner.user is not None else mode
        self._write(path, answer["status"]["token"].encode(), private)
        _own(path, self._owner.user, self._owner.group)

    def _write(self, path: Path, content: bytes, mode: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.next")
        aside.write_bytes(content)
        aside.chmod(mode | (0o040 if self._owner.group is not None else 0))
        _own(aside, None, self._owner.group)
        aside.rename(path)


def _own(path: Path, user: int | None, group: int | None) -> None:
    """Only root can give files away; without it every container runs as us anyway."""
    if os.geteuid() == 0:
        os.chown(path, -1 if user is None else user, -1 if group is None else group)
