"""From a pod's container to what is run: user, mounts, environment, command."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.access import Json
from tests.cluster.containers import Mount, Plan
from tests.cluster.environment import Lookup, Unresolved, environment_of, expand, hostname_of
from tests.cluster.images import Image
from tests.cluster.volumes import Owner, Volumes


@dataclass(frozen=True)
class Surroundings:
    """What a pod's containers share beside its volumes."""

    lookup: Lookup
    api_server: tuple[str, int]
    hosts: Path
    resolv: Path
    injected: Mapping[str, Mapping[str, str]]
    """Container name -> environment that the cloud adds to its specification."""


def plan(pod: Json, container: Json, image: Image, volumes: Volumes, surroundings: Surroundings, message: Path) -> Plan:
    """Raises Unresolved, the kubelet's CreateContainerConfigError, for what cannot be."""
    user, group = _user(pod, container, image)
    context = container.get("securityContext") or {}
    injected = [
        {"name": name, "value": value} for name, value in surroundings.injected.get(container["name"], {}).items()
    ]
    asked = {**container, "env": [*(container.get("env") or ()), *injected]}
    variables = environment_of(pod, asked, image.environment, surroundings.lookup, surroundings.api_server)
    command, args = ([expand(word, variables) for word in container.get(key) or ()] for key in ("command", "args"))
    shared = pod["spec"].get("securityContext") or {}
    groups = [*(shared.get("supplementalGroups") or ()), *([shared["fsGroup"]] if "fsGroup" in shared else [])]
    seccomp = (context.get("seccompProfile") or shared.get("seccompProfile") or {}).get("type", "Unconfined")
    return Plan(
        image=image,
        command=image.command(command, args),
        environment=variables,
        user=user,
        group=group,
        groups=tuple(groups),
        hostname=hostname_of(pod),
        mounts=(*_mounts(container, volumes), *_files(container, surroundings, message)),
        folder=container.get("workingDir") or image.config.get("WorkingDir") or "/",
        read_only_root=bool(context.get("readOnlyRootFilesystem")),
        user_namespaces=seccomp == "Unconfined",
    )


def unsupported(pod: Json) -> str:
    """What a pod asks for that would be left out in silence, as words; empty if there is nothing."""
    spec = pod["spec"]
    containers = [*(spec.get("initContainers") or ()), *spec["containers"]]
    asked = {
        "lifecycle hooks": any(one.get("lifecycle") for one in containers),
        "startup probes": any(one.get("startupProbe") for one in containers),
        "sidecars": any(one.get("restartPolicy") for one in spec.get("initContainers") or ()),
        "the host's namespaces": any(spec.get(f"host{kind}") for kind in ("Network", "PID", "IPC")),
        "privileged containers": any((one.get("securityContext") or {}).get("privileged") for one in containers),
    }
    return ", ".join(what for what, is_asked in asked.items() if is_asked)


def owner(pod: Json) -> Owner:
    """Whose the volumes are. A token is private to a user only if all containers say the same one.

    kubernetes.io/docs/concepts/storage/projected-volumes, "securityContext interactions".
    """
    shared = pod["spec"].get("securityContext") or {}
    users = {
        (container.get("securityContext") or {}).get("runAsUser", shared.get("runAsUser"))
        for container in (*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"])
    }
    return Owner(shared.get("fsGroup"), users.pop() if len(users) == 1 else None)


def _user(pod: Json, container: Json, image: Image) -> tuple[int, int]:
    """kubernetes.io/docs/tasks/configure-pod-container/security-context; the messages are the kubelet's."""
    shared = pod["spec"].get("securityContext") or {}
    context = {**shared, **(container.get("securityContext") or {})}
    from_image, image_group = image.user()
    user = context.get("runAsUser", from_image)
    if context.get("runAsNonRoot"):
        if user == 0:
            raise Unresolved("container has runAsNonRoot and image will run as root")
        if "runAsUser" not in context and not str(image.config.get("User", "")).partition(":")[0].isdigit():
            raise Unresolved(
                "container has runAsNonRoot and image has non-numeric user, cannot verify user is non-root"
            )
    if isinstance(user, str):
        raise Unresolved(f"unable to find user {user}: no matching entries in passwd file")
    group = context.get("runAsGroup")
    if group is None:
        group = image_group if "runAsUser" not in context and image_group is not None else image.group_of(user)
    return user, group


def _mounts(container: Json, volumes: Volumes) -> list[Mount]:
    mounts = []
    for mount in container.get("volumeMounts") or ():
        folder, always_read_only = volumes.path(mount["name"])
        source = folder / mount["subPath"] if mount.get("subPath") else folder
        if not source.exists():
            source.mkdir(parents=True)  # an emptyDir's subPath is made (kubernetes.io/docs/concepts/storage/volumes)
            source.chmod(0o777)
        mounts.append(Mount(source, mount["mountPath"], always_read_only or bool(mount.get("readOnly"))))
    return mounts


def _files(container: Json, surroundings: Surroundings, message: Path) -> list[Mount]:
    """The files that the kubelet itself puts into every container."""
    message.touch()
    message.chmod(0o666)
    return [
        Mount(surroundings.hosts, "/etc/hosts"),
        Mount(surroundings.resolv, "/etc/resolv.conf"),
        Mount(message, container.get("terminationMessagePath") or "/dev/termination-log", read_only=False),
    ]
