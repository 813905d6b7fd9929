"""A slice of two VMs of the Cloud TPU API: a stage's containers find each other by what the VMs tell them, over gloo."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.provisioners.vm import assignments
from deploy.provisioners.vm.assignments import Assignment
from nanocode.config.settings import Cloud
from nanocode.run.digests import stage_digests
from nanocode.run.exits import Exit
from nanocode.run.settling import read_settings
from tests.clouds.vm import Site, Vm, vms_of
from tests.deploy.local.world import until
from tests.jobs.runs import STEPS, directory, steps_of

IMAGE = "us-docker.pkg.dev/lab/nanocode/jobs@sha256:" + "3" * 64
ROOT = Path(__file__).parents[2]
SLICE = "slice-1"


@pytest.fixture
def vms(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Vm]]:
    monkeypatch.setenv("XLA_FLAGS", "")  # one device each
    config = (run / "config/1.yaml").read_text().replace(f"steps: {STEPS}", "steps: 20")
    directory(run).add_config(config.replace("log_steps: 10", "log_steps: 1"))
    made = vms_of(str(run), SLICE, 2, Cloud(image=IMAGE), tmp_path / "slice", Site({}, print), ROOT)
    yield made
    for vm in made:
        vm.vanish()


def test_the_containers_on_the_vms_of_a_slice_train_together(run: Path, vms: list[Vm]) -> None:
    place = directory(run)
    digest = stage_digests(read_settings(place), place)["pretrain"]
    place.claim_number("pretrain", 1, digest, "a controller", SLICE)
    assignments.assign(place, SLICE, Assignment(stage="pretrain", attempt=1, image=IMAGE))

    def exits() -> dict[int, int]:
        names = place.store.children("pretrain/attempts/1")
        return {worker: end.code for worker, end in assignments.exits(place, ("pretrain", 1), names).items()}

    until(lambda: len(exits()) == 2, "both containers end", 300)
    assert exits() == {0: Exit.DONE, 1: Exit.DONE}, "\n".join(vm.serial for vm in vms)
    marker = place.done("pretrain")
    assert marker is not None
    assert (marker.attempt, marker.metrics["devices"], len(place.attempts("pretrain"))) == (1, 2, 1)
    assert len(steps_of(run)) == 20
