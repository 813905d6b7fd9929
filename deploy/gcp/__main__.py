"""`python -m deploy.gcp COMMAND`: what `make gcp-setup`, `make deploy-d24` and their like run."""

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from deploy.gcp import checks, logs, release, setup, steps
from deploy.gcp.deployment import Deployment, read
from deploy.gcp.release import Release
from nanocode.run.exits import ConfigurationError, Exit, UsageError
from nanocode.storage.objects import StorageError

PROGRAMS = {"setup": ("gcloud",), "deploy": ("gcloud", "kubectl", "helm"), "undeploy": ("kubectl", "helm")}
"""What a command runs; all others run kubectl alone."""


def main() -> int:
    """Run one command; what a user can cause is one line on stderr."""
    options = _parser().parse_args()
    try:
        return int(_run(options, read(Path(options.env))))
    except UsageError as error:
        return _end(Exit.USAGE, error)
    except ConfigurationError as error:
        return _end(Exit.CONFIGURATION, error)
    except (steps.StepFailed, StorageError) as error:
        return _end(Exit.FAILED, error)
    except KeyboardInterrupt:
        return Exit.PREEMPTED


def _run(options: argparse.Namespace, to: Deployment) -> int:
    if options.command != "setup" and not to.has_cluster:
        raise ConfigurationError(
            f"{options.env} says CLUSTER=none, and make {options.command} needs one: `nanocode run` is the controller "
            "where there is none, or name a cluster"
        )
    if not options.dry_run:  # that one prints what it would run elsewhere too, and needs what it asks alone
        steps.need(*PROGRAMS.get(options.command, ("kubectl",)))
    elif options.command == "deploy":
        steps.need("helm")
    match options.command:
        case "setup":
            steps.perform(setup.steps(to), options.dry_run)
        case "deploy":
            name = release.checked_name(options.name or options.preset)
            tag = to.image_tag or this_version()
            wanted = Release(name, options.preset, tag, accept_stale=options.yes)
            return deploy(to.suited(options.preset), wanted, options.dry_run)
        case "status":
            status(to, options.name)
        case command:
            name = options.name or logs.only_run(to)
            if command == "logs":
                return logs.follow(to, name, options.stage)
            if command == "undeploy":
                return undeploy(to, name, options.dry_run)
            steps.perform(release.wish_steps(to, name, command), options.dry_run)
    return Exit.DONE


def deploy(to: Deployment, wanted: Release, dry_run: bool) -> int:
    """Check, then apply; in a dry run print what would be applied and ask nothing but helm."""
    if dry_run:
        steps.perform(release.deploy_steps(to, wanted), dry_run)
        argv, text = release.template_command(to, wanted)
        print("# what helm applies", flush=True)
        print(steps.output(argv, text), end="")
        return Exit.DONE
    if not checks.passed(checks.checks(to, wanted.tag)):
        raise ConfigurationError("nothing was deployed: put right what is WRONG above, and run this again")
    digest = checks.image_digest(to, f"jobs-{to.target}:{wanted.tag}")
    steps.perform(release.deploy_steps(to, replace(wanted, digest=digest)), dry_run)
    name = wanted.name
    print(f"\nmake status NAME={name}    make logs NAME={name} STAGE=tokenizer    make undeploy NAME={name}")
    return Exit.DONE


def undeploy(to: Deployment, name: str, dry_run: bool) -> int:
    if dry_run:
        steps.perform(release.undeploy_steps(to, name), dry_run)
        return Exit.DONE
    try:
        directory = logs.read_run(to, name).directory
    except steps.StepFailed:  # the release may be there without its run
        directory = to.bucket
    steps.perform(release.undeploy_steps(to, name), dry_run)
    print(f"what the run made stays in {directory}")
    return Exit.DONE


def status(to: Deployment, name: str | None) -> None:
    """The runs of the namespace, and of one its stages and what happened last."""
    kubectl = ("kubectl", f"--context={to.context}", f"--namespace={to.namespace}")
    steps.tell((*kubectl, "get", "trainingruns", *([name] if name else []), "--output=wide"))
    if name:
        each = '{range .status.stages[*]}{.name}{"\\t"}{.state}{"\\t"}{.reason}{"\\n"}{end}'
        steps.tell((*kubectl, "get", "trainingrun", name, f"--output=jsonpath={each}"))
        steps.tell((*kubectl, "events", f"--for=trainingrun/{name}"))


def this_version() -> str:
    """The tag that `make push` gives images, of the commit that is checked out."""
    argv = ("git", "describe", "--tags", "--always", "--dirty")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigurationError("IMAGE_TAG is not set and git describes no version here: set it to the images' tag")
    return done.stdout.strip()


def _end(code: Exit, error: Exception) -> int:
    print(f"nanocode: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m deploy.gcp", description="Deploy runs to a Google Cloud project.")
    parser.add_argument("--env", default="deploy.env", metavar="FILE", help="project, zones, bucket [deploy.env]")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    commands.add_parser("setup", help="what the project needs before the first run; never deletes")
    deploy = commands.add_parser("deploy", help="begin a run, or change one")
    deploy.add_argument("preset", choices=release.PRESETS, help="size of the model, and of the machine")
    deploy.add_argument("--yes", action="store_true", help="stages that a change makes stale may run again")
    commands.add_parser("status", help="how far runs are")
    commands.add_parser("undeploy", help="end a run and remove its release; the data stays")
    log = commands.add_parser("logs", help="what a stage says, over attempts and hosts")
    log.add_argument("stage", help="such as pretrain")
    for wish, what in (
        ("suspend", "stop a run, saved"),
        ("resume", "go on with it"),
        ("cancel", "stop a run for good"),
    ):
        commands.add_parser(wish, help=what)
    for command in commands.choices.values():
        command.add_argument("--name", metavar="RELEASE", help="the run; the only one there is, if left out")
    return parser


if __name__ == "__main__":
    sys.exit(main())
