"""Images that a node can run: unpacked root file systems and their configuration.

There is no registry: an image that is not listed here is one that nobody pushed. A folder of images holds, for each,
`NAME.json` with `{"names": [reference, ...], "root": path, "config": {"User", "Env", "Entrypoint", "Cmd",
"WorkingDir"}}`; the fields of `config` are those of the OCI image configuration
(github.com/opencontainers/image-spec, config.md), `root` is relative to the folder.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Image:
    """One unpacked image. Nothing is ever written into `root`: each container has a layer of its own above it."""

    root: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    from_host: tuple[str, ...] = ()
    """Folders of this machine that appear, read-only, in the image: for roots made by hand in the harness's own tests."""

    @property
    def environment(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.config.get("Env") or ())

    def command(self, command: list[str] | None, args: list[str] | None) -> list[str]:
        """What runs, by the table of kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container.

        A pod's command replaces the image's entrypoint and its arguments, a pod's args the arguments alone.
        """
        entrypoint, default = list(self.config.get("Entrypoint") or ()), list(self.config.get("Cmd") or ())
        if command:
            return [*command, *(args or ())]
        return [*entrypoint, *(args or default)]

    def user(self) -> tuple[int | str, int | None]:
        """(uid or a name that the image does not resolve to one, gid or None) of the image's `User`."""
        user, _, group = str(self.config.get("User") or "0").partition(":")
        gid = int(group) if group.isdigit() else None
        if user.isdigit():
            return int(user), gid
        for line in self._accounts():
            name, _, uid, own_gid, *_ = line.split(":")
            if name == user:
                return int(uid), int(own_gid) if gid is None else gid
        return user, gid

    def group_of(self, uid: int) -> int:
        """The primary group of a user, 0 for one that the image does not know (as the OCI runtimes take it)."""
        for line in self._accounts():
            _, _, one, gid, *_ = line.split(":")
            if int(one) == uid:
                return int(gid)
        return 0

    def _accounts(self) -> list[str]:
        path = self.root / "etc" / "passwd"
        return [line for line in path.read_text().splitlines() if line.count(":") >= 6] if path.exists() else []


class Images:
    """Image reference -> image. A reference is what a pod says: `name:tag`, `name@sha256:...` or both."""

    def __init__(self) -> None:
        self._by_name: dict[str, Image] = {}

    def add(self, image: Image, *names: str) -> str:
        """Makes an image known under its names and under `name@digest`; gives its digest."""
        digest = (
            image.digest
            or "sha256:" + hashlib.sha256(f"{image.root}{json.dumps(dict(image.config))}".encode()).hexdigest()
        )
        known = Image(image.root, image.config, digest, image.from_host)
        for name in names:
            self._by_name[_canonical(name)] = known
            self._by_name[f"{_repository(_canonical(name))}@{digest}"] = known
        return digest

    def read(self, folder: Path) -> None:
        """Adds every image that a folder describes; called again, also those that came later."""
        for path in sorted(folder.glob("*.json")):
            described = json.loads(path.read_text())
            root = (folder / described["root"]).resolve()
            self.add(Image(root, described.get("config") or {}, described.get("digest", "")), *described["names"])

    def find(self, reference: str) -> Image | None:
        return self._by_name.get(_canonical(reference))


def _canonical(reference: str) -> str:
    """`name` is `name:latest`; where there is a digest a tag beside it counts for nothing (kubernetes.io/docs/concepts/containers/images)."""
    name, at, digest = reference.partition("@")
    if at:
        return f"{_repository(name)}@{digest}"
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def _repository(name: str) -> str:
    folder, slash, last = name.partition("@")[0].rpartition("/")
    return f"{folder}{slash}{last.partition(':')[0]}"
