"""What a refusal of the Cloud TPU API means: for the controller a kind of trouble, for the user one sentence.

The words and reasons are those that the API is known to use; `tests/clouds/tpu.py` says where from. A stockout moves
on to the next zone, a lack of quota waits, and what somebody has to put right is left alone for longer; a sentence
names the command. What may pass by itself is `None`: nobody knows whether the call took effect, and the next round asks
again.
"""

import re
from dataclasses import dataclass
from typing import Any

from deploy.controller.observed import Trouble

LONGEST = 300
NO_CREDENTIALS = "there are no credentials of Google Cloud: `gcloud auth application-default login` makes them"
NO_PROJECT = "no project is named: say --set cloud.project=PROJECT, or `gcloud config set project PROJECT`"
MAY_PASS = (
    "Aborted",
    "Cancelled",
    "DeadlineExceeded",
    "GatewayTimeout",
    "InternalServerError",
    "RetryError",
    "ServiceUnavailable",
    "TooManyRequests",
    "Unknown",
)


@dataclass(frozen=True)
class Asked:
    """Where something was asked for, and what."""

    project: str
    zone: str
    accelerator: str


@dataclass(frozen=True)
class Refusal:
    trouble: Trouble
    sentence: str


def refusal(error: BaseException, asked: Asked) -> Refusal | None:
    """What an error of the client library means; None for one that may pass by itself."""
    message = " ".join(str(getattr(error, "message", None) or error).split())[:LONGEST]
    kind = type(error).__name__
    if kind == "ResourceExhausted":
        return exhausted(message, asked)
    if kind == "DefaultCredentialsError" or kind == "RefreshError" or kind == "Unauthenticated":
        return Refusal(Trouble.PERMISSION, NO_CREDENTIALS)
    if kind in MAY_PASS:
        return None
    if kind == "PermissionDenied":
        return Refusal(Trouble.PERMISSION, _denied(message, getattr(error, "reason", None), asked))
    return by_message(message, asked)


def by_status(status: Any, asked: Asked) -> Refusal:
    """The same for the `google.rpc.Status` of a request that was accepted and failed later."""
    message = " ".join(str(status.message).split())[:LONGEST]
    if status.code == 4:  # DEADLINE_EXCEEDED: nothing came for as long as we had asked it to wait
        return Refusal(Trouble.STOCKOUT, _stockout(asked))
    if status.code == 8:
        return exhausted(message, asked) or Refusal(Trouble.STOCKOUT, _stockout(asked))
    return by_message(message, asked)


def by_message(message: str, asked: Asked) -> Refusal:
    """By its words alone."""
    if re.search(r"capacity|stockout|RESOURCE_POOL_EXHAUSTED", message, re.IGNORECASE):
        return Refusal(Trouble.STOCKOUT, _stockout(asked))
    if re.search(r"quota", message, re.IGNORECASE):
        return Refusal(Trouble.QUOTA, _quota(message, asked))
    if re.search(r"accelerator.* not found|invalid accelerator", message, re.IGNORECASE):
        look = f"gcloud compute tpus accelerator-types list --zone={asked.zone} --project={asked.project}"
        sentence = f"zone {asked.zone} has no {asked.accelerator}: `{look}` says what it has; change controller.zones"
        return Refusal(Trouble.PERMISSION, sentence)
    if re.search(r"internal error", message, re.IGNORECASE):
        return Refusal(Trouble.OTHER, f"the Cloud TPU service had an error of its own in {asked.zone}: {message}")
    # Somebody has to put it right: a wrong network, runtime version or service account will be as wrong in a minute.
    return Refusal(Trouble.PERMISSION, f"{asked.accelerator} in {asked.zone} was refused: {message}")


def exhausted(message: str, asked: Asked) -> Refusal | None:
    """RESOURCE_EXHAUSTED is three things: too little there, too little allowed, and too many calls a minute."""
    if re.search(r"per minute|rate.?limit exceeded", message, re.IGNORECASE):
        return None
    if re.search(r"quota", message, re.IGNORECASE):
        return Refusal(Trouble.QUOTA, _quota(message, asked))
    return Refusal(Trouble.STOCKOUT, _stockout(asked))


def _stockout(asked: Asked) -> str:
    return f"zone {asked.zone} has no free {asked.accelerator} now"


def _quota(message: str, asked: Asked) -> str:
    limit = re.search(r"Limit: (\d+)", message)
    there = f"a quota of {limit[1]}" if limit else "too little quota"
    named = re.search(r"Quota limit '(\w+)'", message)
    chips = asked.accelerator.rpartition("-")[2]
    ask = "gcloud beta quotas preferences create --service=tpu.googleapis.com"
    ask += f" --quota-id={named[1] if named else 'QUOTA'} --dimensions=zone={asked.zone} --preferred-value={chips}"
    return (
        f"project {asked.project} has {there} for {asked.accelerator} in {asked.zone}: "
        f"`{ask} --project={asked.project}` asks for more, or take the zone out of controller.zones"
    )


def _denied(message: str, reason: str | None, asked: Asked) -> str:
    project = asked.project
    if reason == "SERVICE_DISABLED" or "has not been used in project" in message:
        return f"the Cloud TPU API is off: `gcloud services enable tpu.googleapis.com --project={project}` puts it on"
    if reason in ("CONSUMER_INVALID", "USER_PROJECT_DENIED") or "resource project" in message:
        return f"project {project} is not there, or not yours: `gcloud projects list` names yours; set cloud.project"
    if "locations/" in message and "may not exist" in message:
        look = f"gcloud compute tpus locations list --project={project}"
        return f"there is no zone {asked.zone} for you: `{look}` says which there are; change controller.zones"
    named = re.search(r"tpu\.\w+\.\w+", message)
    grant = f"gcloud projects add-iam-policy-binding {project} --member=user:YOU --role=roles/tpu.admin"
    return f"you may not {named[0] if named else 'do this'} in project {project}: `{grant}` allows it"
