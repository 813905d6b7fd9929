"""What the controller makes of the words of VMs, and what a VM makes of the run directory: no process, no clock."""

from pathlib import Path

import pytest

from deploy.controller.backend import Unreachable
from deploy.controller.observed import Process, Slice, Trouble
from deploy.controller.record import STATUS
from deploy.local.backend import LocalBackend
from deploy.provisioners.here_and_there import HereAndThere, LaptopAndSlices
from deploy.provisioners.vm import assignments
from deploy.provisioners.vm.assignments import Assignment, WorkerNote
from deploy.provisioners.vm.watch import SECONDS_AFTER_RELEASE, SECONDS_TO_SAVE, Place, Watcher
from deploy.provisioners.vms import SECONDS_FOR_THE_CLOUD, SECONDS_TO_OBEY, SliceVms
from nanocode.run.attempts import End, Ending, ExitRecord, Stop, record, recorded
from nanocode.run.directory import RunDirectory
from nanocode.run.exits import Exit
from nanocode.storage.objects import StorageError, open_store

KEY = ("pretrain", 1)
ONE_HOST = ("agent-eval", 1)
SLICE = "slice-1"
USABLE = Slice(SLICE, "a", usable=True)
TAKEN = Slice(SLICE, "a", trouble=Trouble.PREEMPTED, reason="its machines were taken away")


class Stand:
    """A run directory with one attempt on a slice, and both sides of it."""

    def __init__(self, folder: Path, hosts: int = 2) -> None:
        self.run = RunDirectory(open_store(folder / "run"))
        for key in (KEY, ONE_HOST):
            self.run.claim_number(*key, "ab" * 8, "controller here:1 x", SLICE)
        self.seconds, self.hosts = 0.0, hosts
        self.shown: dict[str, Slice] | None = {SLICE: USABLE}
        self.backend = SliceVms(self.run, lambda: "image", lambda: self.shown, lambda: self.seconds)
        self.said: list[list[str]] = []
        self.watchers: list[Watcher] = []
        for worker in range(hosts):
            (folder / f"state-{worker}").mkdir()
            self.said.append([])
            self.watchers.append(self.watcher(worker, folder / f"state-{worker}"))

    def watcher(self, worker: int, state: Path) -> Watcher:
        place = Place(SLICE, worker, self.hosts, state)
        return Watcher(self.run, place, 600.0, self.said[worker].append, lambda: self.seconds, lambda: self.seconds)

    def look(self, worker: int = 0, after: float = 5.0) -> list[str]:
        """What a VM's script is told at its next look."""
        self.seconds += after
        self.said[worker].clear()
        self.watchers[worker].look()
        return [line for line in self.said[worker] if line != "alive"]

    def begin(self) -> None:
        """Every host's container runs."""
        self.backend.start(*KEY, SLICE)
        for worker in range(self.hosts):
            assert self.look(worker) == [f"start nanocode-pretrain-1 image pretrain 1 {self.hosts}"]
            self.run.store.write(f"pretrain/attempts/1/keeper-{worker}.json", b"{}")

    def end(self, worker: int, code: int, said: str = "") -> None:
        """A host's container ends, and its VM says so."""
        state = self.watchers[worker].place.state
        (state / "nanocode-pretrain-1.said").write_text(said)
        (state / "nanocode-pretrain-1.code").write_text(f"{code}\n")
        self.look(worker)

    def seen(self, after: float = 0.0) -> tuple[Process, int | None, bool]:
        self.seconds += after
        one = self.backend.observe([KEY])[KEY]
        return one.process, one.exit_code, one.disrupted


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


def test_a_claim_that_cannot_be_read_is_an_answer_that_is_missing_and_no_end_of_the_controller(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = HereAndThere(LocalBackend(RunDirectory(open_store(tmp_path / "run"))), stand.backend)

    def silent(name: str) -> bytes:
        raise StorageError("the bucket gives no answer")

    with monkeypatch.context() as outage:
        outage.setattr(stand.run.store, "read", silent)
        with pytest.raises(Unreachable, match="no answer"):
            both.observe([KEY])
        for act in (both.stop, both.kill, both.forget):
            with pytest.raises(Unreachable, match="no answer"):
                act(*KEY)
    assert both.observe([KEY])[KEY].process is Process.PENDING


def test_who_is_in_a_hurry_without_a_network_meets_no_error(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = LaptopAndSlices(LocalBackend(RunDirectory(open_store(tmp_path / "run"))), stand.backend)
    both.observe([KEY])
    assert list(both.alive) == [KEY]

    def silent(name: str, *_: object) -> None:
        raise StorageError("the bucket gives no answer")

    with monkeypatch.context() as outage:
        outage.setattr(stand.run.store, "create", silent)
        outage.setattr(stand.run.store, "write", silent)
        both.hurry()
        with pytest.raises(Unreachable):
            both.kill(*KEY)


def test_an_attempt_waits_until_its_containers_have_begun(stand: Stand) -> None:
    assert stand.seen() == (Process.PENDING, None, False)
    stand.begin()
    assert stand.seen() == (Process.RUNNING, None, False)


def test_a_claim_whose_controller_ended_before_it_assigned_it_is_assigned_by_the_next(stand: Stand) -> None:
    stand.seen()
    assert stand.look() == ["start nanocode-pretrain-1 image pretrain 1 2"]


def test_it_is_done_when_all_hosts_are(stand: Stand) -> None:
    stand.begin()
    stand.end(0, 0)
    assert stand.seen()[0] is Process.RUNNING
    stand.end(1, 0)
    assert stand.seen() == (Process.EXITED, Exit.DONE, False)
    ended = recorded(stand.run, *KEY, ExitRecord)
    assert ended is not None and ended.code == 0


def test_a_stage_that_uses_one_host_is_the_first_vm_s_and_nobody_waits_for_the_others(stand: Stand) -> None:
    stand.backend.start(*ONE_HOST, SLICE)
    assert stand.look(1) == []
    assert stand.backend.observe([ONE_HOST])[ONE_HOST].process is Process.PENDING
    assert stand.look(0) == ["start nanocode-agent-eval-1 image agent-eval 1 1"]
    stand.run.store.write("agent-eval/attempts/1/keeper.json", b"{}")
    assert stand.backend.observe([ONE_HOST])[ONE_HOST].process is Process.RUNNING
    stand.backend.kill(*ONE_HOST)
    assert [stand.look(1), stand.look(0)] == [[], ["kill nanocode-agent-eval-1"]]
    (stand.watchers[0].place.state / "nanocode-agent-eval-1.code").write_text("0")
    stand.look(0)
    stand.look(1)
    assert stand.backend.observe([ONE_HOST])[ONE_HOST].exit_code == Exit.DONE
    assert stand.run.store.children("agent-eval/attempts/1") == (
        "EXIT-0.json",
        "EXIT.json",
        "claim.json",
        "keeper.json",
    )


def test_a_vm_that_was_started_again_does_not_run_what_it_ran_alone(stand: Stand) -> None:
    stand.backend.start(*ONE_HOST, SLICE)
    stand.run.store.write("agent-eval/attempts/1/keeper.json", b"{}")
    assert stand.look(0) == []
    assert stand.backend.observe([ONE_HOST])[ONE_HOST].exit_code == Exit.PREEMPTED


def test_a_wrong_setting_on_one_host_is_one_for_all(stand: Stand) -> None:
    stand.begin()
    stand.end(1, Exit.CONFIGURATION, "the setting x is wrong")
    assert stand.seen() == (Process.EXITED, Exit.CONFIGURATION, False)
    assert stand.backend.observe([KEY])[KEY].reason == "host 1: the setting x is wrong"


def test_a_crash_whose_machines_were_taken_away_is_a_preemption_though_that_is_known_later(stand: Stand) -> None:
    stand.begin()
    stand.end(0, 1, "lost its peer")
    stand.end(1, 1, "lost its peer")
    assert stand.seen()[0] is Process.RUNNING
    stand.shown = {SLICE: TAKEN}
    assert stand.seen(after=5) == (Process.EXITED, 1, True)


def test_a_crash_on_machines_that_stay_is_a_failure(stand: Stand) -> None:
    stand.begin()
    stand.end(0, 1, "it broke")
    stand.end(1, 134)
    stand.seen()
    assert stand.seen(after=SECONDS_FOR_THE_CLOUD) == (Process.EXITED, 1, False)


def test_one_host_that_is_told_to_leave_makes_it_a_preemption(stand: Stand) -> None:
    stand.begin()
    stand.end(0, 1, "lost its peer")
    stand.end(1, Exit.PREEMPTED, "saved")
    assert stand.seen() == (Process.EXITED, Exit.PREEMPTED, False)


@pytest.mark.parametrize("shown", [{}, {SLICE: TAKEN}])
def test_without_a_word_of_its_vms_it_is_lost_with_its_slice(stand: Stand, shown: dict[str, Slice]) -> None:
    stand.begin()
    stand.shown = None
    assert stand.seen()[0] is Process.RUNNING, "nobody has looked yet"
    stand.shown = shown
    assert stand.seen() == (Process.LOST, None, False)


def test_vms_that_do_not_do_what_they_are_told_are_given_up_with_their_slice(stand: Stand) -> None:
    stand.begin()
    stand.backend.kill(*KEY)
    assert stand.seen()[0] is Process.RUNNING and not stand.backend.broken(SLICE)
    assert stand.seen(after=SECONDS_TO_OBEY + 1)[0] is Process.LOST
    assert stand.backend.broken(SLICE)


def test_a_vm_has_its_container_save_once_and_end_at_once_when_it_must(stand: Stand) -> None:
    stand.begin()
    record(stand.run, *KEY, Stop(reason="suspended", at=0.0))
    assert [stand.look(), stand.look()] == [["stop nanocode-pretrain-1"], []]
    stand.backend.kill(*KEY)
    assert [stand.look(), stand.look()] == [["kill nanocode-pretrain-1"], []]


def test_a_vm_ends_what_has_its_end(stand: Stand) -> None:
    stand.begin()
    record(stand.run, *KEY, End(ending=Ending.PREEMPTED, reason="", at=0.0, progress=0))
    assert stand.look() == ["kill nanocode-pretrain-1"]


def test_a_host_does_not_wait_for_ever_for_one_that_has_failed(stand: Stand) -> None:
    stand.begin()
    stand.end(1, 1, "it broke")
    assert stand.look() == []
    assert stand.look(after=31) == ["stop nanocode-pretrain-1"]


def test_a_watcher_that_begins_anew_starts_nothing_twice(stand: Stand) -> None:
    stand.begin()
    state = stand.watchers[0].place.state
    (state / "nanocode-pretrain-1.said").touch()
    stand.watchers[0] = stand.watcher(0, state)
    assert stand.look() == []
    (state / "nanocode-pretrain-1.said").unlink()  # the VM was booted again
    stand.watchers[0] = stand.watcher(0, state)
    assert stand.look() == []
    ended = assignments.exits(stand.run, KEY, ["EXIT-0.json"])[0]
    assert (ended.code, ended.reason) == (Exit.PREEMPTED, "its VM was started again")


def test_it_goes_on_for_as_long_as_a_controller_renews_its_status_whatever_that_ones_clock_says(stand: Stand) -> None:
    stand.begin()
    for number in range(5):
        stand.run.store.write(STATUS, f'{{"at": {-number}}}'.encode())
        assert stand.look(after=500) == []
    assert stand.look(after=599) == []
    assert stand.look(after=2) == ["stop nanocode-pretrain-1"]
    assert stand.look() == [], "it saves"
    stand.end(0, Exit.PREEMPTED, "saved")
    assert "leave" in stand.said[0]


def test_a_vm_that_runs_nothing_lets_the_first_one_save_before_it_deletes_their_slice(stand: Stand) -> None:
    stand.backend.start(*ONE_HOST, SLICE)
    stand.look(0)
    stand.look(1)
    assert stand.look(1, after=601) == []
    assert stand.look(0, after=0) == ["stop nanocode-agent-eval-1"]
    (stand.watchers[0].place.state / "nanocode-agent-eval-1.code").write_text(f"{Exit.PREEMPTED.value}")
    (stand.watchers[0].place.state / "nanocode-agent-eval-1.said").write_text("saved")
    assert [stand.look(0), stand.look(1)] == [["leave"], ["leave"]]


def test_a_vm_that_has_ended_what_it_runs_lets_the_first_one_save(stand: Stand) -> None:
    stand.begin()
    assert stand.look(1, after=601) == ["stop nanocode-pretrain-1"]
    stand.end(1, Exit.PREEMPTED, "saved")
    assert "leave" not in stand.said[1]
    stand.end(0, Exit.PREEMPTED, "saved")
    assert stand.look(1) == ["leave"]


def test_a_vm_that_runs_nothing_does_not_wait_for_ever_for_the_first_one(stand: Stand) -> None:
    stand.backend.start(*ONE_HOST, SLICE)
    stand.look(1)
    assert stand.look(1, after=601) == []
    assert stand.look(1, after=SECONDS_TO_SAVE + 1) == ["leave"]


def test_what_does_not_save_in_time_is_left_behind(stand: Stand) -> None:
    stand.begin()
    stand.look(after=601)
    assert stand.look(after=SECONDS_TO_SAVE + 1) == ["leave"]


@pytest.mark.parametrize("fact", ["released", "gone"])
def test_a_slice_that_was_given_back_and_is_still_there_leaves_by_itself(stand: Stand, fact: str) -> None:
    stand.run.store.write(f"slices/{SLICE}/{fact}.json", b"{}")
    assert stand.look() == []
    stand.run.store.write(STATUS, b"a controller lives")
    assert stand.look(after=SECONDS_AFTER_RELEASE + 1) == ["leave"]


def test_a_bucket_that_gives_no_answer_counts_as_nobody(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanocode.storage.objects import LocalStore, StorageError

    def down(*_: object) -> bytes:
        raise StorageError("down")

    stand.look()
    for method in ("read", "exists", "children", "write", "create"):
        monkeypatch.setattr(LocalStore, method, down)
    assert stand.look(after=590) == []
    assert stand.look(after=20) == ["leave"]


def test_a_note_says_what_a_vm_does(stand: Stand) -> None:
    stand.begin()
    stand.look(after=31)
    note = WorkerNote.model_validate_json(stand.run.store.read(f"vms/{SLICE}/worker-0.json"))
    assert (note.of, note.says) == (2, "runs nanocode-pretrain-1")


def test_assignments_are_kept_under_the_name_of_their_attempt(stand: Stand) -> None:
    for image in ("one", "another"):
        assignments.assign(stand.run, SLICE, Assignment(stage="base-eval", attempt=12, image=image))
    found = assignments.keys(stand.run.store.children(f"vms/{SLICE}"), "json")
    assert ("base-eval", 12) in found
    there = assignments.assignment(stand.run, SLICE, ("base-eval", 12))
    assert there is not None and there.image == "one"
