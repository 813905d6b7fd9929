"""The Kubernetes API as far as the controller of one run needs it: objects are JSON, as the templates are.

Every request has a timeout and is made once: the next round is the retry. Lists come in pages, so that a crowded
namespace is no large answer. Who gives no answer, or none that can be used now, is `Unreachable`, in one line.
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from deploy.controller.backend import Unreachable

Object = dict[str, Any]

GROUP, VERSION, PLURAL = "nanocode.dev", "v1alpha1", "trainingruns"
SECONDS_TO_CONNECT, SECONDS_TO_ANSWER = 5.0, 15.0
PAGE = 200
LONGEST_MESSAGE = 300
IN_CLUSTER_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class Forbidden(Unreachable):
    """The service account may not do this."""


class Missing(Exception):
    """There is no such object."""


class Conflict(Exception):
    """The object has changed since it was read, or an object of this name is there."""


class Invalid(Exception):
    """The API server refuses the object as it is; asking again changes nothing."""


class Cluster:
    """Objects of one namespace, and nodes."""

    def __init__(
        self,
        namespace: str,
        api_client: Any,
        timeout: tuple[float, float] = (SECONDS_TO_CONNECT, SECONDS_TO_ANSWER),
        page: int = PAGE,
    ) -> None:
        from kubernetes import client  # late: it costs a second

        self.namespace = namespace
        self._errors = client.ApiException
        self._page = page
        self._how = {"_preload_content": False, "_request_timeout": timeout}
        core, batch = client.CoreV1Api(api_client), client.BatchV1Api(api_client)
        custom, access = client.CustomObjectsApi(api_client), client.AuthorizationV1Api(api_client)
        self._lists: dict[str, Callable[..., Any]] = {
            "jobs": partial(batch.list_namespaced_job, namespace),
            "pods": partial(core.list_namespaced_pod, namespace),
            "services": partial(core.list_namespaced_service, namespace),
            "nodes": core.list_node,
            "events": partial(core.list_namespaced_event, namespace),
        }
        self._creates: dict[str, Callable[..., Any]] = {
            "jobs": partial(batch.create_namespaced_job, namespace),
            "services": partial(core.create_namespaced_service, namespace),
            "events": partial(core.create_namespaced_event, namespace),
            "access reviews": access.create_self_subject_access_review,
        }
        self._deletes: dict[str, Callable[..., Any]] = {
            "jobs": partial(batch.delete_namespaced_job, namespace=namespace),
            "pods": partial(core.delete_namespaced_pod, namespace=namespace),
            "services": partial(core.delete_namespaced_service, namespace=namespace),
            PLURAL: partial(self._named_run, custom.delete_namespaced_custom_object),
        }
        self._gets: dict[str, Callable[..., Any]] = {
            "nodes": core.read_node,
            "configmaps": partial(core.read_namespaced_config_map, namespace=namespace),
            PLURAL: partial(self._named_run, custom.get_namespaced_custom_object),
        }
        merge = {"_content_type": "application/merge-patch+json"}
        self._patch = partial(self._named_run, custom.patch_namespaced_custom_object, **merge)
        self._patch_status = partial(self._named_run, custom.patch_namespaced_custom_object_status, **merge)

    def _named_run(self, method: Callable[..., Any], name: str, **more: Any) -> Any:
        return method(GROUP, VERSION, self.namespace, PLURAL, name, **more)

    def list(
        self, resource: str, labels: Mapping[str, str], name: str | None = None, fields: Mapping[str, str] | None = None
    ) -> list[Object]:
        """All objects with these labels, and this name and these fields if given."""
        found: list[Object] = []
        more: dict[str, Any] = {"label_selector": ",".join(f"{key}={value}" for key, value in sorted(labels.items()))}
        wanted = {**({"metadata.name": name} if name is not None else {}), **(fields or {})}
        if wanted:
            more["field_selector"] = ",".join(f"{key}={value}" for key, value in sorted(wanted.items()))
        while True:
            page = self._ask(f"list {resource}", self._lists[resource], limit=self._page, **more)
            found += page["items"]
            onward = page["metadata"].get("continue")
            if not onward:
                return found
            more["_continue"] = onward

    def get(self, resource: str, name: str) -> Object | None:
        """The object of this name, if there is one."""
        try:
            return self._ask(f"get {resource}/{name}", self._gets[resource], name)
        except Missing:
            return None

    def create(self, resource: str, body: Object) -> Object:
        """Make it; `Conflict` where an object of its name is there, `Invalid` where it cannot be."""
        return self._ask(f"create {resource}", self._creates[resource], body)

    def delete(self, resource: str, name: str, uid: str | None = None, grace: int | None = None) -> None:
        """Delete it, and in the background what it owns; one that is gone, or is another object by now, is no error."""
        body: Object = {"propagationPolicy": "Background"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        try:
            self._ask(f"delete {resource}/{name}", self._deletes[resource], name, body=body)
        except (Missing, Conflict):
            return

    def patch_run(self, name: str, body: Object) -> Object:
        """Merge this into the TrainingRun; `Conflict` when it names a resource version that is not the last."""
        return self._patched(self._patch, name, body)

    def patch_run_status(self, name: str, body: Object) -> Object:
        """The same for its status."""
        return self._patched(self._patch_status, name, body)

    def _patched(self, method: Callable[..., Any], name: str, body: Object) -> Object:
        try:
            return self._ask(f"patch {PLURAL}/{name}", method, name, body=body)
        except Missing as error:
            raise Conflict(f"TrainingRun {name} is gone") from error

    def _ask(self, what: str, method: Callable[..., Any], *arguments: Any, **more: Any) -> Object:
        from urllib3.exceptions import HTTPError

        try:
            answer: Object = json.loads(method(*arguments, **more, **self._how).data)
        except self._errors as error:
            raise _meaning(what, error) from error
        except HTTPError as error:
            raise Unreachable(f"the API server does not answer ({what}: {_short(type(error).__name__)})") from error
        except (ValueError, OSError) as error:
            raise Unreachable(f"the API server's answer cannot be read ({what}: {_short(str(error))})") from error
        return answer


def _meaning(what: str, error: Any) -> Exception:
    """What an answer with an HTTP status of an error means for whoever asked."""
    try:
        message = str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        message = str(error.reason)
    said = f"{what}: {_short(message)}"
    match error.status:
        case 404:
            return Missing(said)
        case 409:
            return Conflict(said)
        case 400 | 413 | 422:
            return Invalid(said)
        case 401 | 403:
            return Forbidden(f"the API server refuses: {said}: check the service account's Role")
        case status:
            return Unreachable(f"the API server answered {status} ({said})")


def _short(text: str) -> str:
    return " ".join(text.split())[:LONGEST_MESSAGE]


def connect(namespace: str) -> Cluster:
    """The cluster this process runs in, or the one that the user's kubeconfig names."""
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and IN_CLUSTER_TOKEN.exists():
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(client_configuration=configuration)
    except config.ConfigException as error:
        raise Unreachable(f"no cluster: {_short(str(error))}: run in a pod, or set KUBECONFIG") from error
    return at(namespace, configuration)


def at(namespace: str, configuration: Any, **how: Any) -> Cluster:
    """The cluster of this configuration."""
    from kubernetes import client

    configuration.retries = False  # the client's own would multiply every timeout
    return Cluster(namespace, client.ApiClient(configuration), **how)
