"""The first process of a stage's container on a TPU VM: sets the environment of the command, and becomes it.

    python -m deploy.provisioners.vm.entry --secrets '{"KEY": "projects/P/secrets/S/versions/V"}' -- COMMAND...

What jax is told is `deploy.provisioners.vm.environment`; what the image sets wins. The values of secrets come from
Secret Manager under the VM's own service account (cloud.google.com/secret-manager/docs/access-secret-version); they are
in no metadata, no command line and no container configuration: only in the environment of the process.
"""

import argparse
import base64
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx

from deploy.local.keeper import TERMINATION_LOG
from deploy.provisioners.vm.environment import Host, compile_cache, environment
from nanocode.run.exits import Exit
from nanocode.storage.objects import StorageError

SECRETS_API = "https://secretmanager.googleapis.com"
CALL_SECONDS = 10.0
TRIES = 5
NEVER = (400, 401, 403, 404)
"""Answers that are the same in a moment."""


class NoSecret(Exception):
    """It cannot be read; one line that says why, without its value."""


def read(
    secrets: Mapping[str, str], metadata: str, api: str, wait: Callable[[float], object] = time.sleep
) -> dict[str, str]:
    """Environment variable -> value; `NoSecret` when one cannot be had."""
    if not secrets:
        return {}
    with httpx.Client(timeout=CALL_SECONDS) as client:
        where = f"http://{metadata}/computeMetadata/v1/instance/service-accounts/default/token"
        answer = _asked(client, where, {"Metadata-Flavor": "Google"}, "the VM's service account", wait)
        headers = {"Authorization": f"Bearer {answer['access_token']}"}
        found = {}
        for variable, name in secrets.items():
            secret = _asked(client, f"{api}/v1/{name}:access", headers, name, wait)
            found[variable] = base64.b64decode(secret["payload"]["data"]).decode()
        return found


def _asked(
    client: httpx.Client, url: str, headers: dict[str, str], what: str, wait: Callable[[float], object]
) -> dict[str, dict[str, str]]:
    why = ""
    for attempt in range(TRIES):
        try:
            answer = client.get(url, headers=headers)
            if answer.status_code == 200:
                body: dict[str, dict[str, str]] = answer.json()
                return body
            why = f"HTTP {answer.status_code}"
            if answer.status_code in NEVER:
                break
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
        wait(2.0**attempt)
    raise NoSecret(
        f"cannot read {what} ({why}): is it there, and may the slices' service account read it "
        "(roles/secretmanager.secretAccessor)?"
    )


def main() -> int:
    parser = argparse.ArgumentParser("python -m deploy.provisioners.vm.entry", description="Set the environment, run.")
    parser.add_argument("--secrets", type=json.loads, default={}, help="environment variable -> name, as JSON")
    parser.add_argument("--said", type=Path, default=TERMINATION_LOG, help="for the line that says why it cannot begin")
    # The script of a slice may be older than the image: what it does not say is as it was for it.
    parser.add_argument("--run-dir", default="")
    parser.add_argument("--slice", default="")
    parser.add_argument("--worker", default=0, type=int)
    parser.add_argument("--of", default=1, type=int, help="hosts of the attempt")
    parser.add_argument("--vms", default=1, type=int, help="hosts of the slice")
    parser.add_argument("--endpoints", default="", help="of all of them, as the metadata server has it")
    parser.add_argument("--accelerator-type", default="")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    cache = None
    with suppress(StorageError):  # who compiles anew is slow, and no worse
        cache = compile_cache(options.run_dir, options.slice)
    host = Host(options.worker, options.of, options.vms, options.endpoints, options.accelerator_type)
    for variable, value in environment(host, cache).items():
        os.environ.setdefault(variable, value)
    metadata = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    try:
        os.environ.update(read(options.secrets, metadata, os.environ.get("SECRETS_API", SECRETS_API)))
    except NoSecret as error:
        print(f"nanocode: {error}", file=sys.stderr, flush=True)
        with suppress(OSError):
            options.said.write_text(str(error))
        return Exit.CONFIGURATION
    os.execvp(options.command[0], options.command)  # noqa: S606  (no shell is wanted)


if __name__ == "__main__":
    sys.exit(main())
