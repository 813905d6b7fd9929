"""What a user types, and what they are told when it cannot work: one line, the right exit code, nothing lost."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from deploy.gcp import __main__ as gcp
from jobs import cli, local
from jobs.cli import main, settings_help
from nanocode.config.settings import Settings, known_keys, load
from nanocode.run import digests, settling
from nanocode.run.digests import stage_digests
from nanocode.run.directory import Marker, RunDirectory
from nanocode.run.exits import Exit
from nanocode.storage.objects import open_store
from tests.clouds.tpu import TpuServer, TpuService
from tests.clouds.world import World, Zone
from tests.jobs.runs import BASE, begin, directory, job, nanocode, write_sources

GOLDEN = Path(__file__).parents[1] / "golden"


def one_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("nanocode: ")
    return lines[0]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("pretrain.step=5", "no setting is called pretrain.step: did you mean pretrain.steps?"),
        ("pretrain.steps=many", "pretrain.steps = 'many' cannot be: it has to be a whole number"),
        ("pretrain.batch_tokens=1000", "pretrain.batch_tokens 1000 is not a multiple of model.context 384"),
        ("model.heads=3", "width 128 is not divisible by heads 3"),
        ("corpus.sources=/nowhere/at/all", "corpus.sources '/nowhere/at/all' is not there"),
        ("pretrain.steps", "--set 'pretrain.steps' has no value"),
        ("cloud.buckets={europe-west4: gs://BUCKET-eu}", "it has to be gs:// and a name in lower case, as gs://my-bu"),
        ("cloud.buckets={europe-west4:gs://my-eu}", "YAML wants a space after the colon of {key: value}"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_written(
    setting: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--run-dir", str(tmp_path / "run"), "--set", setting]) == Exit.CONFIGURATION
    assert told in one_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_an_unknown_stage_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--run-dir", str(tmp_path), "--stages", "pretrian"]) == Exit.USAGE
    assert "no stage is called 'pretrian'" in one_line(capsys.readouterr().err)


def test_slices_cannot_reach_a_folder_here_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["run", "--run-dir", str(tmp_path / "run"), "--provisioner", "queued-resource"]
    assert main(asked) == Exit.USAGE
    assert "give --run-dir gs://BUCKET/NAME" in one_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ((), "no zone is named: say --set 'controller.zones=[us-east5-b]'"),
        (("controller.zones=[us-east5-b]",), "no image is named: say --set cloud.image=REGISTRY/jobs-tpu@sha256:"),
        (
            ("controller.zones=[us-east5-b]", "cloud.image=h/p/n/jobs-tpu:v1"),
            "cloud.image=h/p/n/jobs-tpu:v1 ends with no digest: say --set cloud.image=REGISTRY/jobs-tpu@sha256:",
        ),
    ],
    ids=["zone", "image", "digest"],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_what_slices_need_is_asked_for_by_its_name(
    settings: tuple[str, ...], told: str, dry: tuple[str, ...], gcs_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part for setting in settings for part in ("--set", setting)]
    asked = ["run", "--run-dir", f"{gcs_url}/run", "--provisioner", "queued-resource", *given, *dry]
    assert main(asked) == Exit.CONFIGURATION
    assert told in one_line(capsys.readouterr().err)
    assert open_store(f"{gcs_url}/run").children() == (), "a controller of this run would take it up"


def test_text_that_slices_cannot_read_is_refused(
    gcs_url: str, sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"corpus.sources=[embedded, {{location: gs://b/text}}, {{location: {sources}}}]"
    asked = ["run", "--run-dir", f"{gcs_url}/run", "--provisioner", "queued-resource", "--set", text]
    assert main(asked) == Exit.USAGE
    assert f"corpus.sources: slices of a cloud cannot read {sources}: copy it to gs://" in one_line(
        capsys.readouterr().err
    )
    assert open_store(f"{gcs_url}/run").children() == ()


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[TpuService]:
    """The Cloud TPU API, with room."""
    world = World(time.time)
    world.zones |= {zone: Zone(capacity=8, quota=8) for zone in ("us-east5-a", "us-east5-b")}
    service = TpuService(world)
    server = TpuServer(service)
    monkeypatch.setenv("TPU_EMULATOR_HOST", server.address)
    yield service
    server.close()


def dry_run(run: str, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, str]:
    """Stage -> what a dry run says of it."""
    assert main(["run", "--run-dir", run, "--dry-run", *more]) == Exit.DONE
    lines = capsys.readouterr().out.splitlines()
    stages = [line.strip() for line in lines[1:] if line.startswith("  ") and line[2] != " "]
    return {line.partition(" ")[0]: line.partition(" ")[2].strip() for line in stages}


def test_a_dry_run_says_what_each_stage_would_do_and_writes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = directory(run)
    there.claim_number("pretrain", 1, stage_digests(settling.read_settings(there), there)["pretrain"], "me")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    found = dry_run(str(run), capsys)
    assert [found[name] for name in ("tokenizer", "corpus", "base-eval")] == ["is done"] * 2 + ["runs on this machine"]
    assert found["pretrain"] == "goes on on this machine: 3,000 steps of 256 tokens, 768k in all"
    assert dry_run(str(run), capsys, "--stages", "corpus,pretrain") == {
        name: found[name] for name in ("corpus", "pretrain")
    }
    main(["run", "--run-dir", str(run), "--dry-run", "--set", "corpus.tokens=70000"])
    assert "\nit asks first whether corpus shall run again; --yes agrees\n" in capsys.readouterr().out
    stale = dry_run(str(run), capsys, "--set", "corpus.tokens=70000")
    assert [stale[name] for name in ("tokenizer", "corpus")] == ["is done", "runs again on this machine"]
    assert stale["pretrain"].startswith("begins anew on this machine"), "it was begun with other inputs"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_dry_run_says_that_a_report_is_made_again_with_what_it_is_about(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = dry_run(str(trained), capsys)
    assert (found["base-eval"], found["sft"]) == ("is done", "runs on this machine")
    assert found["report"] == "runs again on this machine"
    assert dry_run(str(trained), capsys, "--stages", "report") == {"report": "is done"}


def test_a_dry_run_refuses_stages_that_could_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["run", "--run-dir", str(tmp_path / "run"), "--stages", "sft,report", "--dry-run"]
    assert main(asked) == Exit.CONFIGURATION
    assert "stage sft needs stage pretrain, which is not done" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("budget.dollars=5",), "budget.dollars limits nothing here without controller.dollars_per_slice_hour.local"),
        (
            ("budget.dollars=5", "controller.dollars_per_slice_hour={local: 2}"),
            "it ends before it costs more than $5.00",
        ),
    ],
)
def test_a_dry_run_says_what_a_budget_does(
    settings: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part for setting in settings for part in ("--set", setting)]
    assert main(["run", "--run-dir", str(tmp_path / "run"), "--dry-run", *given]) == Exit.DONE
    assert f"\n{told}" in capsys.readouterr().out


def test_a_dry_run_asks_the_cloud_for_no_slice_and_says_which_ones_stages_would_run_on(
    gcs_url: str, capsys: pytest.CaptureFixture[str], cloud: TpuService
) -> None:
    image = f"h/p/n/jobs-tpu@sha256:{'0' * 64}"
    given = (
        "controller.zones=[us-east5-b, us-east5-a]",
        f"cloud.image={image}",
        "budget.dollars=50",
        "cloud.project=lab",
    )
    sets = [part for setting in given for part in ("--set", setting)]
    asked = ["run", "--run-dir", f"{gcs_url}/run", "--provisioner", "queued-resource", *sets, "--dry-run"]
    assert main(asked) == Exit.DONE
    said = capsys.readouterr().out
    assert "sft          runs on a spot slice v6e-8 in us-east5-b or us-east5-a\n" in said
    assert "corpus       runs on this machine\n" in said
    assert "what a slice in us-east5-b, us-east5-a costs, so the budget of $50.00 cannot be kept" in said
    assert (
        main([*asked, "--set", "prices.chip_hour={us-east5-b: {v6e: {spot: 0.5}}, us-east5-a: {v6e: {spot: 1}}}"]) == 0
    )
    assert "it ends before it costs more than $50.00\n" in capsys.readouterr().out
    assert not cloud.all
    assert list(open_store(f"{gcs_url}/run").children()) == []
    cloud.enabled = False
    assert main(asked) == Exit.CONFIGURATION
    assert "gcloud services enable tpu.googleapis.com" in one_line(capsys.readouterr().err)


def test_help_lists_every_setting_with_its_meaning() -> None:
    text = settings_help()
    assert [key for key in known_keys() if key not in text and key != "preset"] == []


def test_another_preset_and_another_model_are_refused(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path for path in prepared.rglob("*"))
    assert main(["run", "--run-dir", str(prepared), "--preset", "d3"]) == Exit.CONFIGURATION
    assert "a run of preset demo, not d3: choose another run directory" in one_line(capsys.readouterr().err)
    assert main(["run", "--run-dir", str(prepared), "--set", "model.layers=3"]) == Exit.CONFIGURATION
    assert "model.layers 3 is another model than this run's (2)" in one_line(capsys.readouterr().err)
    assert sorted(path for path in prepared.rglob("*")) == before


@pytest.mark.parametrize("way", ["--set", "environment", "--config"])
def test_another_preset_is_refused_however_it_is_asked_for(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    local.settle(directory(tmp_path / "run"), None, [], None, yes=False)
    arguments = ["run", "--run-dir", str(tmp_path / "run")]
    match way:
        case "--set":
            arguments += ["--set", "preset=d3"]
        case "environment":
            monkeypatch.setenv("NANOCODE_PRESET", "d3")
        case "--config":
            (tmp_path / "c.yaml").write_text("preset: d3\n")
            arguments += ["--config", str(tmp_path / "c.yaml")]
    assert main(arguments) == Exit.CONFIGURATION
    assert "a run of preset demo, not d3: choose another run directory" in one_line(capsys.readouterr().err)


def test_settings_that_make_stages_stale_name_them_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--run-dir", str(run), "--set", "tokenizer.digits=2"]) == Exit.USAGE
    told = one_line(capsys.readouterr().err)
    assert "make tokenizer, corpus stale" in told
    assert "--yes" in told
    assert [path.name for path in (run / "config").iterdir()] == ["1.yaml"]


def test_a_source_that_changed_makes_its_stages_stale(
    run: Path, tmp_path: Path, sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "fresh"
    assert nanocode(*begin(new, write_sources(tmp_path / "own")), "--stages", "tokenizer").returncode == 0
    (tmp_path / "own/new.py").write_text("something = 'else'\n" * 20)
    assert main(["run", "--run-dir", str(new), "--stages", "tokenizer"]) == Exit.USAGE
    assert "make tokenizer stale" in one_line(capsys.readouterr().err)


def test_a_core_bundle_that_changed_makes_only_its_stage_stale(tmp_path: Path) -> None:
    bundle, run = Path(shutil.copytree(GOLDEN / "core-bundle", tmp_path / "bundle")), directory(tmp_path / "run")
    settings = load("demo", [f"base_eval.core_bundle={bundle}"], environment={})
    before = stage_digests(settings, run)
    (bundle / "eval_data/toy_lm.jsonl").write_text("another item\n")
    digests._path_digest.cache_clear()  # it is for one process, in which nothing changes
    after = stage_digests(settings, run)
    assert [name for name in before if before[name] != after[name]] == ["base-eval"]


def test_installing_a_package_later_makes_nothing_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory(open_store(tmp_path))
    first = local.settle(directory, "demo", [], None, yes=False)
    wanted = stage_digests(first, directory)
    now = datetime.now(UTC)
    for stage in ("tokenizer", "corpus"):
        directory.finish(stage, Marker(stage=stage, input_digest=wanted[stage], attempt=1, started=now, ended=now))
    monkeypatch.setattr(settling, "embedded_revision", lambda: "f" * 32)
    monkeypatch.setattr("nanocode.run.digests.embedded_revision", lambda: "f" * 32)
    assert local.settle(directory, None, [], None, yes=False) == first
    other = RunDirectory(open_store(tmp_path / "other"))
    assert local.settle(other, "demo", [], None, yes=False).corpus.sources[0].revision == "f" * 32


def test_with_yes_only_the_stale_stages_run_again_and_old_markers_are_kept(run: Path) -> None:
    first = directory(run).done("tokenizer")
    done = nanocode(
        "run", "--run-dir", str(run), "--set", "corpus.tokens=50000", "--yes", "--stages", "tokenizer,corpus"
    )
    assert done.returncode == 0, done.stderr
    assert directory(run).done("tokenizer") == first
    assert len(list((run / "corpus").glob("DONE.*.json"))) == 1


def test_an_operating_setting_makes_nothing_stale(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--run-dir", str(run), "--set", "pretrain.checkpoint_minutes=9", "--stages", "corpus"]
    assert main(arguments) == Exit.DONE


def test_a_stage_without_what_it_reads_says_what_to_run(run: Path, tmp_path: Path, sources: Path) -> None:
    process = job("base_eval", run)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == Exit.CONFIGURATION
    assert "base-eval needs stage pretrain, which is not done" in one_line(errors)
    process = job("pretrain", tmp_path / "nothing")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == Exit.CONFIGURATION
    assert "is no run directory" in one_line(errors)


def test_a_half_written_marker_is_set_aside_and_the_stage_done_again(run: Path) -> None:
    whole = directory(run).done("corpus")
    assert whole is not None
    path = run / "corpus/DONE.json"
    path.write_bytes(path.read_bytes()[:40])
    done = nanocode("run", "--run-dir", str(run), "--stages", "corpus")
    assert done.returncode == 0, done.stderr
    again = directory(run).done("corpus")
    assert again is not None
    assert again.outputs == whole.outputs
    assert list((run / "corpus").glob("DONE.damaged-*.json"))


@pytest.mark.parametrize("harm", ["gone", "cut", "no index"])
def test_a_damaged_corpus_is_named(run: Path, harm: str) -> None:
    folder = next(path for path in (run / "corpus").iterdir() if (path / "index.json").exists())
    match harm:
        case "gone":
            (folder / "train-00000.bin").unlink()
        case "cut":
            data = (folder / "train-00000.bin").read_bytes()
            (folder / "train-00000.bin").write_bytes(data[:-2])
        case "no index":
            (folder / "index.json").unlink()
    process = job("pretrain", run)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == Exit.CONFIGURATION, errors
    told = one_line(errors)
    assert str(folder) in told
    assert "run the corpus stage" in told


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(run: Path) -> None:
    path = next((run / "tokenizer").rglob("tokenizer.json"))
    found = json.loads(path.read_text())
    found["added_tokens"] += [{**found["added_tokens"][0], "id": 320 + i, "content": f"<|more{i}|>"} for i in range(5)]
    path.write_text(json.dumps(found))
    process = job("pretrain", run)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == Exit.CONFIGURATION, errors
    assert "model.vocab_size 320 is smaller than the tokenizer's 325" in one_line(errors)


def test_status_says_what_is_done(trained: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(trained), "--json"]) == Exit.DONE
    found = json.loads(capsys.readouterr().out)
    assert {stage["name"]: stage["state"] for stage in found["stages"]}["report"] == "done"
    assert main(["status", str(run)]) == Exit.DONE
    assert "waiting" in capsys.readouterr().out


def test_a_reader_that_leaves_early_sees_no_traceback(tmp_path: Path) -> None:
    run = RunDirectory(open_store(tmp_path))
    local.settle(run, "demo", [], None, yes=False)
    readable, writable = os.pipe()
    os.close(readable)
    with os.fdopen(writable, "w") as nobody:
        command = [sys.executable, "-m", "jobs.cli", "status", "--json", str(tmp_path)]
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (Exit.DONE, "")


def test_a_finished_run_is_not_run_again(trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    done = nanocode("run", "--run-dir", str(trained), "--stages", BASE)
    assert done.returncode == 0, done.stderr
    assert "bits per byte on held-out text" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_run_can_live_in_a_bucket(gcs_url: str, sources: Path) -> None:
    arguments = begin(Path("unused"), sources, "pretrain.steps=20")
    arguments[2] = gcs_url
    done = nanocode(*arguments, "--stages", BASE)
    assert done.returncode == 0, done.stderr + done.stdout
    assert gcs_url in done.stdout.strip().splitlines()[-1]


def test_an_export_can_be_imported_again(tmp_path: Path, sources: Path, prepared: Path) -> None:
    run, folder, again = tmp_path / "run", tmp_path / "hf", tmp_path / "again"
    plain = ("model.previous_token_keys=0", "model.tied_embeddings=false", "pretrain.steps=20")
    assert nanocode(*begin(run, sources, *plain), "--stages", "tokenizer,corpus,pretrain").returncode == 0
    done = nanocode("export", str(run), "--to", str(folder))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    done = nanocode("export", str(run), "--to", str(folder))
    assert done.returncode == Exit.USAGE
    assert "is there and not empty: say --force" in one_line(done.stderr)
    assert nanocode("export", str(run), "--to", str(folder), "--force").returncode == 0
    done = nanocode("import", str(folder), "--run-dir", str(again))
    assert done.returncode == 0, done.stderr
    twice = tmp_path / "twice"
    assert nanocode("export", str(again), "--to", str(twice)).returncode == 0
    assert (twice / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    done = nanocode("import", str(folder), "--run-dir", str(again))
    assert done.returncode == Exit.CONFIGURATION
    assert "is a run already" in one_line(done.stderr)


def test_imported_weights_stay_when_the_run_goes_on(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = Path(shutil.copytree(GOLDEN / "hf-nanochat", tmp_path / "hf")), tmp_path / "run"
    shutil.copy(next(prepared.glob("tokenizer/*/tokenizer.json")), folder)
    assert main(["import", str(folder), "--run-dir", str(run)]) == Exit.DONE
    imported = directory(run).done("pretrain")
    assert imported is not None
    go_on = ["run", "--run-dir", str(run), "--stages", "tokenizer,pretrain"]
    assert main(go_on) == Exit.DONE
    monkeypatch.setattr(settling, "embedded_revision", lambda: "f" * 32)  # a package was installed
    assert main(go_on) == Exit.DONE
    assert directory(run).done("pretrain") == imported


def test_weights_without_their_tokenizer_are_not_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["import", str(GOLDEN / "hf-nanochat"), "--run-dir", str(tmp_path / "run")]
    assert main(arguments) == Exit.CONFIGURATION
    assert "it has no tokenizer.json" in one_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_an_export_of_extras_names_the_extra(trained: Path, tmp_path: Path) -> None:
    done = nanocode("export", str(trained), "--to", str(tmp_path / "hf"))
    assert done.returncode == Exit.CONFIGURATION
    assert "no place for previous_token_keys=0.5, tied_embeddings=True" in one_line(done.stderr)


def test_core_is_measured_from_a_bundle_and_its_finished_tasks_are_kept(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    bundle = GOLDEN / "core-bundle"
    change = ("run", "--run-dir", str(run), "--set", f"base_eval.core_bundle={bundle}", "--yes", "--stages", BASE)
    done = nanocode(*change)
    assert done.returncode == 0, done.stderr
    first = directory(run).done("base-eval")
    assert first is not None
    assert set(first.metrics["core"]["tasks"]) == {"toy_mc", "toy_mc_zero_shot", "toy_schema", "toy_lm"}
    (run / "base-eval/DONE.json").unlink()
    kept = next(run.glob("base-eval/*/core/toy_lm.json"))
    kept.write_text(kept.read_text().replace("false", "true"))
    assert nanocode("run", "--run-dir", str(run), "--stages", BASE).returncode == 0
    again = directory(run).done("base-eval")
    assert again is not None
    assert again.metrics["core"]["tasks"]["toy_lm"]["accuracy"] == 1.0, "what was done is not done again"
    assert again.metrics["core"]["tasks"]["toy_mc"] == first.metrics["core"]["tasks"]["toy_mc"]
    broken = nanocode(*change[:4], f"base_eval.core_bundle={tmp_path / 'absent'}", "--yes")
    assert broken.returncode == Exit.CONFIGURATION
    assert f"base_eval.core_bundle '{tmp_path / 'absent'}' is not there" in one_line(broken.stderr)


def parsers(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """A parser and those of its commands, by what a user types."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {one.dest for one in action._choices_actions if one.help}
            assert told == set(action.choices), f"{name}: commands without help"
            for command, below in action.choices.items():
                yield from parsers(below, f"{name} {command}")


@pytest.mark.parametrize("parser", [cli._parser(), gcp._parser()], ids=["nanocode", "deploy.gcp"])
def test_every_option_of_every_command_says_what_it_is_for(parser: argparse.ArgumentParser) -> None:
    silent = [
        f"{name} {action.option_strings or action.dest}"
        for name, one in parsers(parser, parser.prog)
        for action in one._actions
        if not action.help and not isinstance(action, argparse._SubParsersAction)
    ]
    assert silent == []


def sections(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section and all below it, those in lists and tables too."""
    yield section
    for field in section.model_fields.values():
        for kind in found_in(field.annotation):
            yield from sections(kind)


def found_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from found_in(part)


def test_every_setting_says_what_it_means() -> None:
    every = set(sections(Settings))
    assert {"Settings", "Source", "PublicSet", "ChipPrice", "Endpoint", "ModelShape"} <= {one.__name__ for one in every}
    silent = [
        f"{section.__name__}.{name}"
        for section in every
        for name, field in section.model_fields.items()
        if not field.description and not any(found_in(field.annotation))
    ]
    assert sorted(silent) == []
