"""A run whose own region has no machines: it trains in another one, near a bucket there, and ends whole at home."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanocode.config.settings import from_yaml, load
from nanocode.run import copied, near, status
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import Exit
from nanocode.run.intent import change_intent
from nanocode.storage.objects import LocalStore, open_store
from tests.clouds.world import Zone
from tests.deploy.local.world import ROOT
from tests.deploy.provisioners.site import IMAGE, A, B, Cloud
from tests.gcs import AWAY

SETTINGS = (
    "provisioner=queued-resource",
    "cloud.project=lab",
    f"cloud.image={IMAGE}",
    f"cloud.buckets={{europe-west4: gs://{AWAY}}}",
    "cloud.queue_minutes=0.02",
    f"controller.zones=[{A},{B}]",
    f"controller.dollars_per_slice_hour={{{A}: 4.32, {B}: 5.0}}",
    "controller.seconds_between_looks=0.5",
    "prices.egress_gb=1000",
    "pretrain.steps=60",
    "pretrain.eval_steps=60",
    "pretrain.checkpoint_minutes=0.05",
)


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    monkeypatch.setenv("XLA_FLAGS", "")  # its VMs have one device each
    one = Cloud(tmp_path / "cloud", tmp_path)
    one.world.zones[A] = Zone(capacity=0, quota=16)
    yield one
    one.close()


def test_a_run_goes_to_the_other_region_when_its_own_has_no_machines_and_ends_whole_at_home(
    prepared: Path, gcs_url: str, cloud: Cloud, tmp_path: Path
) -> None:
    run = RunDirectory(open_store(gcs_url))
    for name in LocalStore(prepared).list():
        run.store.upload(prepared / name, name)
    number, text = run.latest_config() or (0, "")
    base = from_yaml(text, f"config/{number}.yaml").model_dump(mode="json")
    run.add_config(load("demo", SETTINGS, environment={}, base=base).to_yaml())
    change_intent(run, stages=("pretrain",))
    controller = subprocess.Popen(
        [sys.executable, "-m", "deploy.local.loop", "--run-dir", gcs_url],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **cloud.environment},
    )  # fmt: skip
    try:
        _, errors = controller.communicate(timeout=240)
    finally:
        controller.kill()
    assert controller.returncode == Exit.DONE, errors
    assert [holding.zone for holding in cloud.world.ledger] == [B] and cloud.is_empty()
    wishes = [json.loads(run.store.read(f"slices/{name}/REQUEST.json")) for name in run.store.children("slices")]
    place = near.address({"europe-west4": f"gs://{AWAY}"}, "europe-west4", gcs_url)
    assert {wish["zone"]: wish.get("near") for wish in wishes} == {A: None, B: place}
    assert place is not None
    away, done = open_store(place), run.done("pretrain")
    assert done is not None
    checkpoint = done.outputs["checkpoint"]
    marked = json.loads(run.store.read(f"{checkpoint}.json"))
    there = run.store.checksums(f"{checkpoint}/")
    assert (
        {f"{checkpoint}/{file}": sums for file, sums in marked["files"].items()}
        == there
        == away.checksums(f"{checkpoint}/")
    )
    corpus = away.checksums("corpus/")
    crossed = sum(int(size) for size, _ in [*corpus.values(), *there.values()])
    found = status.read(gcs_url)
    assert found["copied_bytes"] == copied.total(run.store.children(copied.FOLDER)) == crossed
    assert found["copied_dollars"] == pytest.approx(crossed / 2**30 * 1000)
    assert found["copied_dollars"] < found["spent_dollars"] < found["copied_dollars"] + 0.5
