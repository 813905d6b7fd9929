"""Commands as lists, each with what it is for: printed, or run one after the other. No shell reads them."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nanocode.run.exits import ConfigurationError

HOW_TO_GET = {
    "gcloud": "install the Google Cloud CLI (cloud.google.com/sdk) and run `gcloud auth login`",
    "kubectl": "install it, for GKE with `gcloud components install kubectl gke-gcloud-auth-plugin`",
    "helm": "install Helm 3.18 or newer (helm.sh)",
}
LOG_IN = "`gcloud auth login` logs you in"
NEXT_MOVES = (
    (r"auth login|(?<!get-)credential|reauth|active account|unauthorized|must be logged in", LOG_IN),
    (r"context .*does not exist|current-context|no configuration", "`make gcp-setup` tells kubectl of the cluster"),
    (r"unable to connect|connection refused|no such host|timeout", f"`make gcp-setup` where it is gone; {LOG_IN}"),
    (r"doesn't have a resource type|no matches for kind", "nothing is deployed there yet: `make deploy-d24`"),
)
"""What gcloud and kubectl say, in lower case -> what to do about it."""


class StepFailed(Exception):
    """A command failed: one line that says which, what it said last, and what to do, where that is known."""


@dataclass(frozen=True)
class Step:
    """One command."""

    what: str
    """A sentence on what there is when it has run."""
    argv: tuple[str, ...]
    unless: tuple[str, ...] = ()
    """A command that succeeds where there is nothing left to do."""
    stdin: str = ""


def perform(steps: Iterable[Step], dry_run: bool) -> None:
    """Run them in order, or print them as a shell would take them; `StepFailed` at the first that fails."""
    for step in steps:
        print(f"# {step.what}", flush=True)
        if dry_run:
            print(written(step), flush=True)
        elif step.unless and succeeds(step.unless):
            print("  there already", flush=True)
        else:
            print(f"  {shlex.join(step.argv)}", flush=True)
            output(step.argv, step.stdin)


def written(step: Step) -> str:
    """The step as a line of shell, with its input below it."""
    line = shlex.join(step.argv)
    if step.unless:
        line = f"{shlex.join(step.unless)} >/dev/null 2>&1 || \\\n  {line}"
    return f"{line} <<'END'\n{step.stdin.rstrip()}\nEND" if step.stdin else line


def output(argv: Sequence[str], stdin: str = "") -> str:
    """What the command prints; `StepFailed` with one line of its complaint."""
    done = _run(argv, stdin)
    if done.returncode:
        raise _failed(argv, done.stderr)
    return done.stdout


def succeeds(argv: Sequence[str]) -> bool:
    return _run(argv, "").returncode == 0


def tell(argv: Sequence[str]) -> None:
    """Show what a short command prints; `StepFailed` with one line of its complaint."""
    done = _run(argv, "")
    if done.returncode:
        raise _failed(argv, done.stderr)
    print(done.stdout, end="", flush=True)
    print(done.stderr, end="", file=sys.stderr, flush=True)


def need(*programs: str) -> None:
    """`ConfigurationError` where one of these programs is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            raise ConfigurationError(f"{program} is not on the PATH: {HOW_TO_GET[program]}")


def _failed(argv: Sequence[str], stderr: str) -> StepFailed:
    said = [" ".join(line.split()) for line in stderr.splitlines() if line.strip()]
    # gcloud says what is wrong first and then, at length, what may help.
    why = next((line for line in said if line.startswith("ERROR:")), said[-1] if said else "it does not say why")
    move = next((move for pattern, move in NEXT_MOVES if re.search(pattern, stderr.lower())), None)
    return StepFailed(f"`{shlex.join(argv[:4])} ...` failed: {why}" + (f"; next: {move}" if move else ""))


def _run(argv: Sequence[str], stdin: str) -> subprocess.CompletedProcess[str]:
    need(argv[0])
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
