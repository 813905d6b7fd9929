"""The startup script in a real shell: docker, the metadata server and the clouds' REST sides are stand-ins, as
`tests/clouds/vm.py` says; everything else is what runs on a TPU VM."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import pytest

from deploy.controller.record import STATUS
from deploy.provisioners.vm import assignments
from deploy.provisioners.vm.assignments import Assignment
from nanocode.config.settings import Cloud
from nanocode.run.attempts import ExitRecord, Stop, record
from nanocode.run.exits import Exit
from nanocode.run.segments import read_segments
from tests.clouds.vm import Site, vms_of
from tests.deploy.local.world import World, until

pytestmark = pytest.mark.slow

IMAGE = "us-docker.pkg.dev/lab/nanocode/jobs@sha256:" + "1" * 64
SLICE = "slice-1"
NAME = "projects/lab/locations/us-east5-b/queuedResources/nanocode-run-slice-1"


class Slice:
    """The VMs of one slice, on a run directory of this machine."""

    def __init__(
        self, world: World, folder: Path, hosts: int, unattended: float, secrets: dict[str, str], images: str
    ) -> None:
        self.world, self.site, self.hosts = world, Site({"projects/lab/secrets/key/versions/1": "hush"}, print), hosts
        cloud = Cloud(image=IMAGE, secrets=secrets, unattended_minutes=unattended / 60)
        self.vms = vms_of(world.run.store.url, SLICE, hosts, cloud, folder, self.site, world.folder, images)

    def renew(self, text: str = "a") -> None:
        """What a controller does that lives."""
        self.world.run.store.write(STATUS, text.encode())

    def assign(self, stage: str = "tokenizer", attempt: int = 1, image: str = IMAGE) -> None:
        run = self.world.run
        run.claim_number(stage, attempt, self.world.digests[stage], "controller here:1 x", SLICE)
        assignments.assign(run, SLICE, Assignment(stage=stage, attempt=attempt, image=image))

    def exits(self, stage: str = "tokenizer", attempt: int = 1) -> dict[int, ExitRecord]:
        run = self.world.run
        return assignments.exits(run, (stage, attempt), run.store.children(run.attempt_folder(stage, attempt)))

    def ended(self, stage: str = "tokenizer", attempt: int = 1) -> list[int]:
        """The exit codes of all workers that it runs on, once they are there."""
        hosts = assignments.hosts_of(stage, self.hosts)
        until(lambda: len(self.exits(stage, attempt)) == hosts, "\n".join(vm.serial for vm in self.vms), 60)
        return [end.code for _, end in sorted(self.exits(stage, attempt).items())]


@pytest.fixture
def slice(world: Callable[..., World], tmp_path: Path) -> Iterator[Callable[..., Slice]]:
    made: list[Slice] = []

    def make(
        hosts: int = 1,
        unattended: float = 600,
        secrets: dict[str, str] | None = None,
        images: str = IMAGE,
        **plays: str,
    ) -> Slice:
        made.append(Slice(world(**plays), tmp_path / f"slice-{len(made)}", hosts, unattended, secrets or {}, images))
        return made[-1]

    yield make
    for one in made:
        for vm in one.vms:
            vm.vanish()


def test_an_attempt_runs_in_a_container_on_every_worker_of_the_slice(slice: Callable[..., Slice]) -> None:
    one = slice(hosts=2)
    one.assign()
    assert one.ended() == [0, 0], one.exits()
    assert one.world.run.done("tokenizer") is not None
    for vm in one.vms:
        (began,) = [call for call in vm.calls if "nanocode-tokenizer-1" in call and call.startswith("run")]
        assert f" {IMAGE} python -m " in began and "--of 2" in began
        assert [call for call in vm.calls if call.startswith("login")] == [
            "login --username oauth2accesstoken --password-stdin https://us-docker.pkg.dev"
        ]
    names = one.world.run.store.children("tokenizer/attempts/1")
    assert {"keeper-0.json", "keeper-1.json"} <= set(names)


def test_a_stage_that_uses_one_host_runs_on_the_first_alone_with_the_chips_of_that_one(
    slice: Callable[..., Slice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAX_PLATFORMS")
    one = slice(hosts=2)
    stage = "import json, os\njson.dump(dict(os.environ), open('began', 'x'))\n"
    (one.world.folder / "jobs/agent_eval.py").write_text(stage)
    one.assign("agent-eval")
    assert one.ended("agent-eval") == [0]
    one.assign()
    assert one.ended() == [0, 0], "both are there for what comes next"
    began = [[call for call in vm.calls if call.startswith("run --rm --name nanocode-agent")] for vm in one.vms]
    assert [len(calls) for calls in began] == [1, 0]
    assert set(one.exits("agent-eval")) == {0}
    told = json.loads((one.world.folder / "began").read_text())
    assert (told["TPU_PROCESS_BOUNDS"], told["TPU_CHIPS_PER_PROCESS_BOUNDS"]) == ("1,1,1", "2,2,1")
    assert told["JAX_PLATFORMS"] == "tpu,cpu" and "JAX_NUM_PROCESSES" not in told


def test_what_a_container_says_is_kept_and_its_last_line_is_the_reason(slice: Callable[..., Slice]) -> None:
    one = slice(tokenizer="misconfigured")
    one.assign()
    assert one.ended() == [Exit.CONFIGURATION]
    assert one.exits()[0].reason == "the setting x is wrong: correct it"
    said = [str(line["event"]) for line in read_segments(one.world.run.store, "tokenizer", "log", 1, host="keeper")]
    assert said[-1] == "nanocode: the setting x is wrong: correct it"


def test_an_attempt_that_is_to_stop_saves_and_one_that_is_to_end_does(slice: Callable[..., Slice]) -> None:
    one = slice(tokenizer="wait")
    one.assign()
    one.world.pid()
    record(one.world.run, "tokenizer", 1, Stop(reason="told to leave", at=0.0))
    assert one.ended() == [Exit.PREEMPTED]
    deaf = slice(tokenizer="deaf")
    deaf.assign()
    deaf.world.pid()
    assignments.kill(deaf.world.run, SLICE, "tokenizer", 1)
    assert deaf.ended() == [-9]


def test_a_slice_whose_controller_is_gone_saves_and_deletes_itself(slice: Callable[..., Slice]) -> None:
    one = slice(unattended=6, tokenizer="wait")
    one.renew("1")
    one.assign()
    one.world.pid()
    for number in range(8):  # for as long as somebody renews it, it goes on
        one.renew(f"still {number}")
        time.sleep(0.8)
    assert not one.site.deletions and not one.exits()
    assert one.ended() == [Exit.PREEMPTED]
    assert one.exits()[0].reason == "told to leave; saved"
    until(lambda: one.site.deletions, "the slice is deleted", 30)
    assert one.site.deletions == [NAME]


def test_a_slice_that_cannot_pull_its_image_deletes_itself_as_well(slice: Callable[..., Slice]) -> None:
    one = slice(unattended=2, images="another")
    until(lambda: one.site.deletions, one.vms[0].serial, 30)


def test_an_image_that_is_not_there_is_the_reason_of_its_attempt(slice: Callable[..., Slice]) -> None:
    one = slice()
    one.assign(image="us-docker.pkg.dev/lab/nanocode/jobs@sha256:none")
    assert one.ended() == [1]
    assert "cannot be pulled" in one.exits()[0].reason


def test_a_vm_that_was_started_again_ends_what_ran_on_it_and_takes_the_next(slice: Callable[..., Slice]) -> None:
    one = slice(tokenizer="wait done")
    one.assign()
    one.world.pid()
    (vm,) = one.vms
    vm.crash()
    vm.boot()
    assert one.ended() == [Exit.PREEMPTED]
    assert one.exits()[0].reason == "its VM was started again"
    one.assign(attempt=2)
    assert one.ended(attempt=2) == [0]


def test_secrets_are_in_the_environment_of_the_process_and_nowhere_else(slice: Callable[..., Slice]) -> None:
    one = slice(secrets={"TEACHER_API_KEY": "projects/lab/secrets/key/versions/1"})
    stage = one.world.folder / "jobs/tokenizer.py"
    stage.write_text("import os, sys\nsys.exit(40 + (os.environ.get('TEACHER_API_KEY') == 'hush'))\n")
    one.assign()
    assert one.ended() == [41]
    (vm,) = one.vms
    assert not any("hush" in call for call in vm.calls)
    assert "hush" not in vm.serial and "hush" not in str(vm.attributes)


def test_a_secret_that_may_not_be_read_is_one_line(slice: Callable[..., Slice]) -> None:
    one = slice(secrets={"TEACHER_API_KEY": "projects/lab/secrets/nobodys/versions/1"})
    one.assign()
    assert one.ended() == [Exit.CONFIGURATION]
    assert "projects/lab/secrets/nobodys/versions/1" in one.exits()[0].reason


@pytest.mark.parametrize(("says", "entry"), [((), False), (("2",), True)], ids=["older image", "same image"])
def test_an_image_may_be_older_than_the_script_that_it_is_run_by(
    tmp_path: Path, says: tuple[str, ...], entry: bool
) -> None:
    script = resources.files("deploy.provisioners.vm").joinpath("startup.sh").read_text()
    begin = script[script.index("\nstart() {") : script.index("\nwatch() {")]
    told = {"run_dir": "gs://b/r", "slice": "s", "worker": "1", "hosts": "2", "endpoints": "a,b"}
    told |= {"state": str(tmp_path), "secrets": "{}", "accelerator_type": "v6e-16"}
    stand_ins = 'set -u; pull() { :; }; contained() { echo "$@" > "$state/asked"; }'
    program = f"{stand_ins}\n{begin}\nstart c image pretrain 3 {' '.join(says)}\nwait"
    done = subprocess.run(
        ["bash", "-c", program], env={**os.environ, **told}, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    asked = (tmp_path / "asked").read_text()
    assert ("--vms 2 --endpoints a,b" in asked) is entry
    assert asked.endswith("--attempt 3 --worker 1 --of 2 --termination-log " + f"{tmp_path}/c.said\n")
    assert (tmp_path / "c.code").read_text() == "0\n"
