"""The command line `nanocode`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.controller.backend import Unreachable
from nanocode.config.settings import OPERATING, PRESETS, settings
from nanocode.run.exits import ConfigurationError, Exit, UsageError
from nanocode.run.graph import order
from nanocode.storage.objects import StorageError

RUN_DIR = "a run directory: a local path or gs://bucket/prefix"
WITH_WEIGHTS = ("preference", "sft", "pretrain")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors a user can cause are one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        code = int(options.command(options))
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _end(Exit.USAGE, error)
    except ConfigurationError as error:
        return _end(Exit.CONFIGURATION, error)
    except (StorageError, Unreachable) as error:
        return _end(Exit.FAILED, error)
    except BrokenPipeError:
        # Whoever read has had enough, as `head` has. Python would flush what is left at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except KeyboardInterrupt:
        return _end(Exit.PREEMPTED, "interrupted; the same command goes on from here")


def _run(options: argparse.Namespace) -> int:
    from jobs import local

    chosen = [f"provisioner={options.provisioner}"] if options.provisioner is not None else []
    overrides = [*options.set, *chosen]
    if options.dry_run:
        return local.dry_run(options.run_dir, options.preset, overrides, options.config, options.stages)
    return local.run(
        options.run_dir, options.preset, overrides, options.config, options.stages, options.yes, options.chaos
    )


def _wish(options: argparse.Namespace) -> int:
    from jobs import wishes

    print(wishes.WISHES[options.wish](options.run_dir))
    return Exit.DONE


def _retry(options: argparse.Namespace) -> int:
    from jobs import wishes

    print(wishes.retry(options.run_dir, options.stage))
    return Exit.DONE


def _status(options: argparse.Namespace) -> int:
    from nanocode.run.status import Status

    status = Status(options.run_dir)
    if options.json:
        print(json.dumps(status.read(), indent=1))
    elif options.metrics:
        from nanocode.run.exposition import exposition

        print(exposition(status.read()), end="")
    else:
        from jobs.status_table import table, watch

        if options.watch:
            watch(status.read)
        else:
            print(table(status.read()))
    return Exit.DONE


def _slices(options: argparse.Namespace) -> int:
    if options.dry_run and not options.janitor:
        raise UsageError("--dry-run says what --janitor would delete: say both")
    from jobs import slices

    return slices.slices(options.runs, options.set, options.json, options.janitor, options.dry_run, options.older_than)


def _export(options: argparse.Namespace) -> int:
    if options.to.exists() and not options.force and (not options.to.is_dir() or any(options.to.iterdir())):
        raise UsageError(
            f"{options.to} is there and not empty: say --force to write into it, or export to a new folder"
        )
    from jobs import weights

    weights.export(options.run_dir, options.stage, options.to)
    print(f"exported to {options.to}: `transformers` loads it as AutoModelForCausalLM")
    return Exit.DONE


def _import(options: argparse.Namespace) -> int:
    from jobs import weights

    weights.import_run(options.folder, options.run_dir, options.preset)
    print(f"imported into {options.run_dir}: go on with `nanocode run --run-dir {options.run_dir}`")
    return Exit.DONE


def _chat(options: argparse.Namespace) -> int:
    from jobs import chat

    return chat.chat(_speaker(options), options.workspace, options.unsafe_bash)


def _ask(options: argparse.Namespace) -> int:
    from jobs import ask

    return ask.ask(_speaker(options), options.prompt, options.workspace, options.yes, options.json, options.unsafe_bash)


def _speaker(options: argparse.Namespace) -> Any:
    from jobs.speaker import open_speaker

    return open_speaker(options.run_dir, options.stage, options.endpoint, options.model, options.temperature)


def _eval(options: argparse.Namespace) -> int:
    from jobs import suites

    return suites.evaluate(
        options.run_dir, options.suite, options.stage, options.instances, options.json, options.unsafe_bash
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("nanocode", description="Train your own coding agent from scratch.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_run, _add_wishes, _add_status, _add_slices, _add_agent, _add_weights):
        add(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="train, or go on training, on this machine",
        description="Run the stages of a run directory in order; what is done is skipped, what was begun is resumed.",
        epilog=settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("--run-dir", required=True, metavar="DIR", help=RUN_DIR)
    run.add_argument("--preset", choices=PRESETS, help="where settings begin; a new run directory takes demo")
    run.add_argument("--stages", metavar="A,B", help=f"only these of: {', '.join(order())}")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; repeatable")
    run.add_argument(
        "--provisioner",
        choices=("local", "queued-resource", "auto"),
        help="where stages that need an accelerator run: on this machine, or on slices of the Cloud TPU API, which are "
        "asked for and given back; the same as --set provisioner=",
    )
    run.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    run.add_argument("--yes", action="store_true", help="run stages again that become stale, without asking")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="only print what would run, and where, and which rollouts synth would make, read from public sets, and "
        "buy at what estimated cost; refuses what would be refused",
    )
    run.add_argument(
        "--chaos",
        metavar="SPEC",
        help="trouble to survive: preempt-every=60s,kill-every=90s,kill-controller-every=180s,slow-storage=2s,seed=1",
    )
    run.set_defaults(command=_run)


def _add_status(commands: Any) -> None:
    status = commands.add_parser("status", help="what is done, and how well")
    status.add_argument("run_dir", metavar="DIR", help=RUN_DIR)
    how = status.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="as one JSON object")
    how.add_argument("--watch", action="store_true", help="draw it again and again, until the run is done or Ctrl-C")
    how.add_argument("--metrics", action="store_true", help="in Prometheus' text format")
    status.set_defaults(command=_status)


def _add_agent(commands: Any) -> None:
    """What the agent is for, once there is one."""
    chat = commands.add_parser("chat", help="talk to the agent", description="Talk to the agent in a workspace.")
    chat.add_argument("run_dir", metavar="DIR", nargs="?", help="a run directory; may be left out with --endpoint")
    chat.add_argument("--workspace", type=Path, metavar="PATH", help="folder to work in; without one, a sample project")
    _add_speaker(chat)
    chat.set_defaults(command=_chat)
    ask = commands.add_parser(
        "ask",
        help="have the agent do one thing",
        description="One request and one turn. Exit code 0: it ended with a message; 1: it did not.",
    )
    ask.add_argument("run_dir", metavar="DIR", help=RUN_DIR)
    ask.add_argument("prompt", metavar="PROMPT", help="the request, in single quotes where it has backticks")
    ask.add_argument("--workspace", type=Path, required=True, metavar="PATH", help="folder to work in")
    ask.add_argument("--yes", action="store_true", help="allow every Edit and Bash without asking")
    ask.add_argument("--json", action="store_true", help="print how it ended, the message and the whole conversation")
    _add_speaker(ask)
    ask.set_defaults(command=_ask)
    evaluation = commands.add_parser(
        "eval", help="measure the agent on tasks", description="Play tasks in workspaces of their own and check them."
    )
    evaluation.add_argument("run_dir", metavar="DIR", help=RUN_DIR)
    evaluation.add_argument(
        "--suite", required=True, metavar="agent|FILE.jsonl", help="the built-in families, or your own tasks"
    )
    evaluation.add_argument("--stage", choices=WITH_WEIGHTS, help="whose weights; the newest if left out")
    evaluation.add_argument("--instances", type=int, default=50, metavar="N", help="of each built-in family [50]")
    evaluation.add_argument("--json", action="store_true", help="print one JSON object, no table")
    evaluation.add_argument("--unsafe-bash", action="store_true", help="run commands even where nothing can hold them")
    evaluation.set_defaults(command=_eval)


def _add_weights(commands: Any) -> None:
    """Weights that leave, and weights that come from elsewhere."""
    export = commands.add_parser("export", help="write weights in the layout that `transformers` loads")
    export.add_argument("run_dir", metavar="DIR", help=RUN_DIR)
    export.add_argument("--stage", default="pretrain", choices=["pretrain"], help="whose weights: the base model's")
    export.add_argument("--to", type=Path, required=True, metavar="PATH", help="folder to write into")
    export.add_argument("--force", action="store_true", help="write into PATH though something is there")
    export.set_defaults(command=_export)
    imported = commands.add_parser("import", help="begin a run from published NanoChat weights")
    imported.add_argument("folder", type=Path, metavar="HF_DIR", help="folder with config.json, weights and tokenizer")
    imported.add_argument("--run-dir", required=True, metavar="DIR", help="where the run begins: a new directory")
    imported.add_argument("--preset", choices=PRESETS, default="demo", help="settings of the stages that follow")
    imported.set_defaults(command=_import)


def _add_wishes(commands: Any) -> None:
    """What a user may want of a run that is under way."""
    for name, help in (
        ("suspend", "stop a run, saved, until it is resumed"),
        ("resume", "go on with a suspended run"),
        ("cancel", "stop a run for good"),
    ):
        wish = commands.add_parser(name, help=help)
        wish.add_argument("run_dir", metavar="DIR", help=RUN_DIR)
        wish.set_defaults(command=_wish, wish=name)
    retry = commands.add_parser("retry", help="do a stage again from its beginning, and all that stands on it")
    retry.add_argument("run_dir", metavar="DIR", help=RUN_DIR)
    retry.add_argument("--from", dest="stage", required=True, metavar="STAGE", help=f"one of: {', '.join(order())}")
    retry.set_defaults(command=_retry)


def _add_slices(commands: Any) -> None:
    slices = commands.add_parser(
        "slices",
        help="what there is in the cloud, what it costs, and who uses it",
        description="Everything in the project that a run has asked for. Project, zones and prices are those of the "
        "first run that is named, or of --set.",
    )
    slices.add_argument("runs", nargs="*", metavar="DIR", help="run directories, or folders of them, to find the users")
    slices.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `nanocode run`")
    slices.add_argument("--json", action="store_true", help="print one JSON object, no table")
    slices.add_argument("--janitor", action="store_true", help="delete what nobody uses")
    slices.add_argument("--dry-run", action="store_true", help="with --janitor: only say what it would delete")
    slices.add_argument(
        "--older-than", type=float, default=2.0, metavar="HOURS", help="without a sign of life for so long [2]"
    )
    slices.set_defaults(command=_slices)


def _add_speaker(parser: argparse.ArgumentParser) -> None:
    """Who speaks, and what its commands may do."""
    parser.add_argument("--stage", choices=WITH_WEIGHTS, help="whose weights; the newest if left out")
    parser.add_argument("--endpoint", metavar="URL", help="ask an OpenAI-compatible endpoint instead, with its --model")
    parser.add_argument("--model", metavar="NAME", help="the endpoint's model; its key is read from OPENAI_API_KEY")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 always takes the likeliest token [0]")
    parser.add_argument("--unsafe-bash", action="store_true", help="run commands even where nothing can hold them")


def settings_help() -> str:
    """Every setting with what it means and its default, for `nanocode run --help`."""
    lines = [
        "settings (--set KEY=VALUE, or environment NANOCODE_SECTION__KEY=VALUE, or --config FILE):",
        "  * may change while a run lives; changing any other runs stages again",
    ]
    section = ""
    for key, field in settings():
        begins, dot, _ = key.partition(".")
        if dot and begins != section:
            section = begins
            lines += ["", f"  {section}"]
        if key != "preset":
            lines.append(_setting(key, field))
    return "\n".join(lines)


def _setting(key: str, field: Any) -> str:
    mark = "*" if field.json_schema_extra == OPERATING else " "
    required = "needed" if key.count(".") > 1 else "by the preset"
    default = required if field.is_required() else field.get_default(call_default_factory=True)
    if key == "corpus.sources":
        default = "embedded"
    text = " ".join((field.description or "").split())
    return f"  {mark} {key:<30} {text} [{default}]" if text else f"  {mark} {key:<30} [{default}]"


def _end(code: Exit, message: object) -> int:
    print(f"nanocode: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
