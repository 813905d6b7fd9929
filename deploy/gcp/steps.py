"""Commands as lists, each with what it is for: printed, or run one after the other. No shell reads them."""

import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nanocode.run.exits import ConfigurationError

HOW_TO_GET = {
    "gcloud": "install the Google Cloud CLI (cloud.google.com/sdk) and run `gcloud auth login`",
    "kubectl": "install it, for GKE with `gcloud components install kubectl gke-gcloud-auth-plugin`",
    "helm": "install Helm 3.18 or newer (helm.sh)",
}


class StepFailed(Exception):
    """A command failed: one line that says which, and what it said last."""


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
        said = [" ".join(line.split()) for line in done.stderr.splitlines() if line.strip()]
        # gcloud says what is wrong first and then, at length, what may help.
        why = next((line for line in said if line.startswith("ERROR:")), said[-1] if said else "it does not say why")
        raise StepFailed(f"`{shlex.join(argv[:4])} ...` failed: {why}")
    return done.stdout


def succeeds(argv: Sequence[str]) -> bool:
    return _run(argv, "").returncode == 0


def show(argv: Sequence[str]) -> int:
    """Run a command whose output is the user's to see; its exit code."""
    need(argv[0])
    return subprocess.run(argv, check=False).returncode


def need(program: str) -> None:
    """`ConfigurationError` where a program is not installed."""
    if shutil.which(program) is None:
        raise ConfigurationError(f"{program} is not on the PATH: {HOW_TO_GET[program]}")


def _run(argv: Sequence[str], stdin: str) -> subprocess.CompletedProcess[str]:
    need(argv[0])
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
