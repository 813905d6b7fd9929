"""What GKE's refusals mean, and the command that mends each. Pure.

Stockout, quota, addresses and permission come in several wordings: a call's status, an operation's error, a node pool's
conditions (`StatusCondition.Code`), and the autoscaler's events. Seen in the wild: `[GCE_STOCKOUT]: Instance '...'
creation failed: The zone '...' does not have enough resources` (an operation), `GCE out of resources` and `GCE quota
exceeded` (FailedScaleUp). All codes of the autoscaler and of pools, under cloud.google.com/kubernetes-engine/docs:
how-to/cluster-autoscaler-visibility, reference/rest/v1/StatusCondition.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from deploy.controller.observed import Trouble
from nanocode.run.near import region_of

LONGEST = 240
TRANSIENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL", "UNKNOWN", "CANCELLED", "DATA_LOSS")
BUSY = re.compile(
    r"incompatible operation|is currently (creat|delet|updat|upgrad|repair|be)ing|RATE_?LIMIT_?EXCEEDED", re.IGNORECASE
)
"""One operation at a time for each pool, and for the cluster: cloud.google.com/kubernetes-engine/docs/troubleshooting/
concurrent-operations. Too many calls a minute are no lack of chips."""


@dataclass(frozen=True)
class Refusal:
    """Why there will be no slice, or none for now."""

    trouble: Trouble
    sentence: str


@dataclass(frozen=True)
class Where:
    """What is asked for, and where."""

    project: str
    location: str
    cluster: str
    zone: str = ""
    machine_type: str = ""
    chips: int = 0
    account: str = "SERVICE_ACCOUNT"
    """The one that the nodes run as."""

    @property
    def region(self) -> str:
        place = self.zone or self.location
        return region_of(place) if re.fullmatch(r".+-[a-z]", place) else place

    @property
    def parent(self) -> str:
        return f"projects/{self.project}/locations/{self.location}/clusters/{self.cluster}"


def passes(code: str, message: str) -> bool:
    """Whether asking again in a while may be all that is needed."""
    return code in TRANSIENT or BUSY.search(message) is not None


def refusal(code: str, message: str, where: Where) -> Refusal:
    """`code`: of the call's status, the operation's error or the pool's condition, as it is spelled there."""
    said = " ".join(message.split())[:LONGEST].rstrip(" .")
    for pattern, trouble, sentence in RULES:
        if re.search(pattern, f"{code}: {message}", re.IGNORECASE):
            return Refusal(trouble, sentence(where, said))
    return Refusal(Trouble.OTHER, f"GKE could not make the pool ({code}: {said}): it is tried again")


def _api_is_off(at: Where, said: str) -> str:
    return f"the GKE API is off ({said}): `gcloud services enable container.googleapis.com --project={at.project}`"


def _may_not_act_as(at: Where, said: str) -> str:
    return (
        f"the controller may not make nodes that run as {at.account} ({said}): `gcloud iam service-accounts "
        f"add-iam-policy-binding {at.account} --member=serviceAccount:CONTROLLER --role=roles/iam.serviceAccountUser "
        f"--project={at.project}`"
    )


def _nodes_may_nothing(at: Where, said: str) -> str:
    return (
        f"the account of the nodes may not do what nodes do ({said}): `gcloud projects add-iam-policy-binding "
        f"{at.project} --member=serviceAccount:{at.account} --role=roles/container.defaultNodeServiceAccount`"
    )


def _robot_is_gone(at: Where, said: str) -> str:
    return (
        f"GKE's own service account is deleted or lost its role ({said}): `gcloud projects add-iam-policy-binding "
        f"{at.project} --member=serviceAccount:service-PROJECT_NUMBER@container-engine-robot.iam.gserviceaccount.com "
        "--role=roles/container.serviceAgent`"
    )


def _no_addresses(at: Where, said: str) -> str:
    return (
        f"the cluster has no addresses left for pods of another node ({said}): `gcloud container clusters update "
        f"{at.cluster} --location={at.location} --project={at.project} --additional-pod-ipv4-ranges=RANGE`"
    )


def _no_quota(at: Where, said: str) -> str:
    return (
        f"project {at.project} has no quota for {at.chips} more chips in {at.region} ({said}): `gcloud beta quotas "
        f"info list --service=compute.googleapis.com --project={at.project}` shows it, `gcloud beta quotas preferences "
        "create` asks for more; what the TPU Research Cloud grants is Cloud TPU quota: provisioner queued-resource"
    )


def _no_capacity(at: Where, said: str) -> str:
    return (
        f"{at.zone} has no {at.machine_type} to give now ({said}): other zones are tried; more of them to choose from: "
        "`nanocode run --set controller.zones=[...]`, or `zones` in the values"
    )


def _no_such_machine(at: Where, said: str) -> str:
    return (
        f"there is no {at.machine_type} in {at.zone} ({said}): `gcloud compute machine-types list "
        f"--filter=name={at.machine_type} --project={at.project}` shows the zones that have it"
    )


def _elsewhere(at: Where, said: str) -> str:
    return (
        f"cluster {at.cluster} in {at.location} can have no nodes in {at.zone} ({said}): take it out of "
        f"controller.zones, or choose from `gcloud container clusters list --project={at.project}`"
    )


def _no_project(at: Where, said: str) -> str:
    mine = "`gcloud projects list` names yours; set cloud.project"
    return f"project {at.project} is not there, or not yours ({said}): {mine}"


def _no_cluster(at: Where, said: str) -> str:
    return (
        f"there is no cluster {at.cluster} in {at.location} of project {at.project} ({said}): `gcloud container "
        f"clusters list --project={at.project}` shows them; correct cloud.cluster, .cluster_location or .project"
    )


def _no_credentials(at: Where, said: str) -> str:
    return f"Google does not know who asks ({said}): `gcloud auth application-default login`"


def _may_not(at: Where, said: str) -> str:
    return (
        f"the controller may not manage node pools of {at.cluster} ({said}): `gcloud projects add-iam-policy-binding "
        f"{at.project} --member=serviceAccount:CONTROLLER --role=roles/container.clusterAdmin`"
    )


def _wrong(at: Where, said: str) -> str:
    return (
        f"GKE refuses such a pool of {at.machine_type} in {at.zone} ({said}): correct cloud.machine_type and "
        f"cloud.topology; `gcloud container node-pools list --cluster={at.cluster} --location={at.location} "
        f"--project={at.project}` shows what it has taken"
    )


RULES: tuple[tuple[str, Trouble, Callable[[Where, str], str]], ...] = (
    (r"SERVICE_DISABLED|has not been used in project|API .*disabled", Trouble.PERMISSION, _api_is_off),
    (r"CONSUMER_INVALID|USER_PROJECT_DENIED|on resource project", Trouble.PERMISSION, _no_project),
    (r"serviceAccounts?\.actAs|iam\.serviceAccountUser", Trouble.PERMISSION, _may_not_act_as),
    (r"NODE_SERVICE_ACCOUNT_MISSING_PERMISSIONS", Trouble.PERMISSION, _nodes_may_nothing),
    (r"GKE_SERVICE_ACCOUNT_DELETED|service\.account\.deleted", Trouble.PERMISSION, _robot_is_gone),
    (r"IP_SPACE_EXHAUSTED|ip\.space\.exhausted|IP space .*exhausted|free IP addresses", Trouble.QUOTA, _no_addresses),
    (
        r"QUOTA_EXCEEDED|quota\.exceeded|quota exceeded|quota '\S+' exceeded|insufficient \w* ?quota",
        Trouble.QUOTA,
        _no_quota,
    ),
    (
        r"STOCKOUT|out\.of\.resources|out of resources|lack of capacity|no more capacity|resource is exhausted"
        r"|enough resources|RESOURCE_POOL_EXHAUSTED",
        Trouble.STOCKOUT,
        _no_capacity,
    ),
    (
        r"(machine|accelerator) type \S+ .*(not exist|not found|not supported|not available)",
        Trouble.PERMISSION,
        _no_such_machine,
    ),
    (r"(zone|location)s? .*(not in|not within|outside) .*(region|location|cluster)", Trouble.PERMISSION, _elsewhere),
    (r"^NOT_FOUND", Trouble.PERMISSION, _no_cluster),
    (r"^UNAUTHENTICATED", Trouble.PERMISSION, _no_credentials),
    (r"^PERMISSION_DENIED", Trouble.PERMISSION, _may_not),
    (r"^RESOURCE_EXHAUSTED", Trouble.STOCKOUT, _no_capacity),
    (r"^(INVALID_ARGUMENT|FAILED_PRECONDITION|UNIMPLEMENTED|OUT_OF_RANGE)", Trouble.PERMISSION, _wrong),
)
"""The first that fits counts. PERMISSION is whatever somebody has to mend: the zone is left alone for an hour."""
