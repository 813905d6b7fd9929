"""Names and labels of everything that is made in a cloud: whose it is, and when it may be deleted. Pure.

A slice is called `nanocode-<run>-<slice>`, of at most 40 characters (a GKE node pool's name; a queued resource may have
63), so that asking twice makes it once. The run's own part is the end of its directory's name and a hash of the whole:
two buckets may both hold a `d24`. Label values: lower case letters, digits, `-` and `_`, at most 63
(cloud.google.com/compute/docs/labeling-resources).
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

RUN, OWNER, SLICE, EXPIRES = "nanocode-run", "nanocode-owner", "nanocode-slice", "nanocode-expires"
LONGEST_NAME = 40
LONGEST_LABEL = 63
LONGEST_RUN = 20
"""Leaves room for `nanocode-` and `-slice-9999` within `LONGEST_NAME`."""
HASH_DIGITS = 6


@dataclass(frozen=True)
class Owned:
    """What the labels of a thing say."""

    run: str
    slice: str
    owner: str
    expires: float
    """Unix seconds."""


def run_label(url: str) -> str:
    """The run in names and labels, from its directory's address."""
    url = url.rstrip("/")
    digest = hashlib.sha256(url.encode()).hexdigest()[:HASH_DIGITS]
    tail = _plain(url.rpartition("/")[2])[: LONGEST_RUN - HASH_DIGITS - 1].strip("-")
    return f"{tail}-{digest}" if tail else digest


def name_of(run: str, slice: str) -> str:
    """Of the slice in the cloud; `ValueError` for one that is too long."""
    name = f"nanocode-{run}-{slice}"
    if len(name) > LONGEST_NAME:
        raise ValueError(f"{name} has {len(name)} characters, and a slice's name at most {LONGEST_NAME}")
    return name


def labels(run: str, slice: str, owner: str, expires: float) -> dict[str, str]:
    """What everything that is made for a slice is labelled with."""
    return {
        RUN: run,
        SLICE: slice,
        OWNER: _plain(owner)[:LONGEST_LABEL].strip("-") or "unknown",
        EXPIRES: str(int(expires)),
    }


def owned(found: Mapping[str, str]) -> Owned | None:
    """What the labels of a thing say; None for a thing of somebody else's."""
    if RUN not in found or SLICE not in found:
        return None
    expires = found.get(EXPIRES, "")
    known = expires.isascii() and expires.isdecimal()
    return Owned(found[RUN], found[SLICE], found.get(OWNER, "unknown"), float(expires) if known else 0.0)


def _plain(text: str) -> str:
    """Lower case letters, digits and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
