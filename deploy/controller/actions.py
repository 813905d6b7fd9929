"""What `decide` can ask for. Each is idempotent, and safe to be done late, twice, or never."""

from dataclasses import dataclass

from nanocode.run.attempts import Ending


@dataclass(frozen=True)
class Begin:
    """Claim exactly this attempt and, if nobody else has, start it."""

    stage: str
    attempt: int
    digest: str
    slice: str | None = None


@dataclass(frozen=True)
class Leave:
    """Record that the attempt has to stop, then ask it to: again in every round until it has ended."""

    stage: str
    attempt: int
    reason: str
    hung: bool = False


@dataclass(frozen=True)
class Kill:
    """The grace is over: end it now."""

    stage: str
    attempt: int


@dataclass(frozen=True)
class Close:
    """Record how the attempt ended, then let the backend clean up."""

    stage: str
    attempt: int
    ending: Ending
    reason: str
    progress: int


@dataclass(frozen=True)
class Request:
    """Record that we want this slice, and ask for it; asked again while the provisioner does not show it."""

    name: str
    zone: str
    dollars_per_hour: float | None


@dataclass(frozen=True)
class Release:
    """Record that we do not need the slice, and give it back: again in every round until it is gone."""

    name: str
    reason: str


@dataclass(frozen=True)
class Note:
    """Record a fact about a slice that the provisioner shows: it is ready, it is gone, or it came to nothing."""

    name: str
    fact: str
    """`ready`, `gone` or the name of a `Trouble`."""
    reason: str = ""
    at: float | None = None
    """When that was; None: now."""


@dataclass(frozen=True)
class Tell:
    """Tell the user, once for this key: a webhook, an event."""

    key: str
    text: str


Action = Begin | Leave | Kill | Close | Request | Release | Note | Tell
