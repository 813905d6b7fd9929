"""Every line of the table in `decide`, and every transition, as a sentence."""

from dataclasses import replace

import pytest

from deploy.controller.actions import Begin, Close, Kill, Leave, Note, Release, Request, Tell
from deploy.controller.decision import State
from deploy.controller.observed import Attempt, Observed, Process, Slice, Trouble
from nanocode.run.attempts import Ending
from nanocode.run.intent import Intent
from tests.deploy.controller.builders import (
    DIGEST,
    HERE,
    MINUTE,
    NOW,
    OLD,
    POLICY,
    accelerator,
    acts,
    attempt,
    cpu,
    decided,
    over,
    slice_,
    stop,
    world,
)

TOLD = attempt(1, stop=stop(ago=5))
PREEMPTED, FAILED = over(1, Ending.PREEMPTED), over(1, Ending.FAILED, ago=MINUTE)

STATES: dict[str, tuple[Observed, State]] = {
    "a stage whose marker has the digest is done": (world(cpu("a", marked=DIGEST)), State.DONE),
    "done counts for more than cancelled": (world(cpu("a", marked=DIGEST), want="cancel"), State.DONE),
    "a cancelled run's stage is cancelled": (world(cpu("a"), want="cancel"), State.CANCELLED),
    "a suspended run's stage is suspended": (world(cpu("a"), want="suspend"), State.SUSPENDED),
    "an attempt that did a step is running": (world(cpu("a", attempt(1, first_step=NOW))), State.RUNNING),
    "an attempt that did none is starting": (world(cpu("a", attempt(1))), State.STARTING),
    "an attempt that was told to leave still runs": (world(cpu("a", TOLD), want="suspend"), State.RUNNING),
    "a configuration error is final": (world(cpu("a", over(1, Ending.CONFIGURATION))), State.FAILED),
    "a stage that was taken away is preempted": (
        world(cpu("a", PREEMPTED), cpu("b", attempt(1)), cpu("c", attempt(1))),
        State.PREEMPTED,
    ),
    "a marker with another digest is stale": (
        world(cpu("a", marked=OLD), cpu("b", attempt(1)), cpu("c", attempt(1))),
        State.STALE,
    ),
    "a stage whose input is not there waits": (world(cpu("a", reads=("b",)), cpu("b")), State.WAITING),
    "a stage that nobody asked for waits": (
        world(cpu("a"), cpu("b"), intent=Intent(stages=("b",))),
        State.WAITING,
    ),
    "a failure of a stage that nobody asks for now is no failure of the run": (
        world(cpu("a", over(1, Ending.CONFIGURATION)), cpu("b"), intent=Intent(stages=("b",))),
        State.WAITING,
    ),
    "a stage that begins is starting": (world(cpu("a")), State.STARTING),
    "a stage that waits for its slice is provisioning": (
        world(accelerator("a"), slices=(slice_(1, ready=None),)),
        State.PROVISIONING,
    ),
    "a stage whose slice is asked for now is provisioning": (world(accelerator("a"), slices=()), State.PROVISIONING),
    "a stage that cannot have its input has failed": (
        world(cpu("a", reads=("b",)), cpu("b"), intent=Intent(stages=("a",))),
        State.FAILED,
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_state_of_the_first_stage(name: str) -> None:
    seen, state = STATES[name]
    assert decided(seen).stages["a"].state == state


RUNS: dict[str, tuple[Observed, State, bool]] = {
    "a run is done when everything is": (world(cpu("a", marked=DIGEST), cpu("b", marked=DIGEST)), State.DONE, True),
    "a run is done when everything that was asked for is": (
        world(cpu("a", marked=DIGEST), cpu("b"), intent=Intent(stages=("a",))),
        State.DONE,
        True,
    ),
    "a done run does not rest while an attempt lives": (
        world(cpu("a", attempt(1, last_sign=NOW), marked=DIGEST)),
        State.DONE,
        False,
    ),
    "a done run does not rest while it holds a slice": (
        world(cpu("a", marked=DIGEST), slices=(slice_(1),)),
        State.DONE,
        False,
    ),
    "a done run rests without any slice": (world(cpu("a", marked=DIGEST), slices=()), State.DONE, True),
    "a done run does not rest while it holds one slice of two": (
        world(cpu("a", marked=DIGEST), slices=(slice_(1), slice_(2, released=NOW - 9, gone=NOW - 5, present=False))),
        State.DONE,
        False,
    ),
    "a done run does not rest while a slice that it asked for may still come": (
        world(cpu("a", marked=DIGEST), slices=(slice_(1, ready=None, present=False),)),
        State.DONE,
        False,
    ),
    "a run with one stage done of two is not done": (
        world(cpu("a", marked=DIGEST), cpu("b", attempt(1, first_step=NOW))),
        State.RUNNING,
        False,
    ),
    "a done run does not rest while a slice that counts as gone is there": (
        world(cpu("a", marked=DIGEST), slices=(slice_(1, released=NOW - 9, gone=NOW - 5),)),
        State.DONE,
        False,
    ),
    "a done run does not rest while a stray process lives": (
        world(cpu("a", marked=DIGEST), strays=(("a", 3),)),
        State.DONE,
        False,
    ),
    "a done run rests when its slices are gone": (
        world(cpu("a", marked=DIGEST), slices=(slice_(1, released=NOW - 9, gone=NOW - 5, present=False),)),
        State.DONE,
        True,
    ),
    "a suspended run rests once nothing lives": (world(cpu("a", FAILED), want="suspend"), State.SUSPENDED, True),
    "a suspended run does not rest while an attempt lives": (
        world(cpu("a", TOLD), want="suspend"),
        State.SUSPENDED,
        False,
    ),
    "a cancelled run rests": (world(cpu("a"), want="cancel"), State.CANCELLED, True),
    "a failed run rests": (world(cpu("a", over(1, Ending.CONFIGURATION)), cpu("b")), State.FAILED, True),
    "a failed run lets what lives go on": (
        world(cpu("a", over(1, Ending.CONFIGURATION)), cpu("b", attempt(1))),
        State.FAILED,
        False,
    ),
    "a run with a live attempt runs": (world(cpu("a", attempt(1, first_step=NOW)), cpu("b")), State.RUNNING, False),
    "a run whose stage begins is starting": (world(cpu("a")), State.STARTING, False),
    "a run that has nothing to do yet waits": (
        world(cpu("a", over(1, Ending.FAILED, ago=1))),
        State.WAITING,
        False,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_state_of_the_run(name: str) -> None:
    seen, state, resting = RUNS[name]
    decision = decided(seen)
    assert (decision.state, decision.resting) == (state, resting)


ENDINGS = {
    "an ending with the marker is done": (attempt(1, Process.EXITED, exit_code=0), DIGEST, Ending.DONE),
    "an ending with the marker is done whatever the code": (
        attempt(1, Process.EXITED, exit_code=1),
        DIGEST,
        Ending.DONE,
    ),
    "the marker of other inputs proves nothing": (attempt(1, Process.EXITED, exit_code=0), OLD, Ending.FAILED),
    "exit 0 without a marker is a failure": (attempt(1, Process.EXITED, exit_code=0), None, Ending.FAILED),
    "exit 75 is a preemption": (attempt(1, Process.EXITED, exit_code=75), None, Ending.PREEMPTED),
    "SIGTERM that nobody heeded is a preemption": (attempt(1, Process.EXITED, exit_code=-15), None, Ending.PREEMPTED),
    "exit 78 is a configuration error": (attempt(1, Process.EXITED, exit_code=78), None, Ending.CONFIGURATION),
    "exit 2 is a configuration error": (attempt(1, Process.EXITED, exit_code=2), None, Ending.CONFIGURATION),
    "any other code is a failure": (attempt(1, Process.EXITED, exit_code=139), None, Ending.FAILED),
    "SIGKILL from nowhere is a failure": (attempt(1, Process.EXITED, exit_code=-9), None, Ending.FAILED),
    "a failure beside a disruption is a preemption": (
        attempt(1, Process.EXITED, exit_code=1, disrupted=True),
        None,
        Ending.PREEMPTED,
    ),
    "a host that vanished is a preemption": (attempt(1, Process.LOST), None, Ending.PREEMPTED),
    "what we stopped was stopped": (attempt(1, Process.EXITED, exit_code=75, stop=stop()), None, Ending.STOPPED),
    "what we stopped and lost was stopped": (attempt(1, Process.LOST, stop=stop()), None, Ending.STOPPED),
    "what never started and was told to leave was stopped": (
        attempt(1, Process.ABSENT, stop=stop()),
        None,
        Ending.STOPPED,
    ),
    "what hung is a failure": (attempt(1, Process.EXITED, exit_code=75, stop=stop(hung=True)), None, Ending.FAILED),
    "what was claimed long ago and never started is a preemption": (
        attempt(1, Process.ABSENT, ago=POLICY.admission_minutes * 60 + 1),
        None,
        Ending.PREEMPTED,
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_what_an_ending_counts_as(name: str) -> None:
    one, marked, ending = ENDINGS[name]
    (close, *_) = acts(world(cpu("a", one, marked=marked, progress=7)))
    assert isinstance(close, Close)
    assert (close.stage, close.attempt, close.ending, close.progress) == ("a", 1, ending, 7)


REASONS = {
    "it ended with exit code 0 and left no marker": attempt(1, Process.EXITED, exit_code=0),
    "told to leave": attempt(1, Process.EXITED, exit_code=75),
    "exit code 78": attempt(1, Process.EXITED, exit_code=78),
    "no such preset": attempt(1, Process.EXITED, exit_code=78, said="no such preset"),
    "exit code 3": attempt(1, Process.EXITED, exit_code=3),
    "exit code 3: out of memory": attempt(1, Process.EXITED, exit_code=3, said="out of memory"),
    "signal 9": attempt(1, Process.EXITED, exit_code=-9),
    "it was killed": attempt(1, Process.EXITED),
    "spot": attempt(1, Process.EXITED, exit_code=1, disrupted=True, said="spot"),
    "it vanished with its host": attempt(1, Process.LOST),
    "node-7 is gone": attempt(1, Process.LOST, said="node-7 is gone"),
    "told so": attempt(1, Process.EXITED, exit_code=75, stop=stop()),
}


@pytest.mark.parametrize("reason", REASONS)
def test_an_ending_says_why(reason: str) -> None:
    (close, *_) = acts(world(cpu("a", REASONS[reason])))
    assert isinstance(close, Close)
    assert close.reason == reason


LEAVES = {
    "of a suspended run": world(cpu("a", attempt(1)), want="suspend"),
    "of a cancelled run": world(cpu("a", attempt(1)), want="cancel"),
    "with another digest": world(cpu("a", attempt(1, digest=OLD))),
    "with another digest, though the stage is done": world(
        cpu("a", attempt(1, digest=OLD, last_sign=NOW - 1), marked=DIGEST)
    ),
    "of a stage that was done a while ago": world(
        cpu("a", attempt(1, last_sign=NOW - POLICY.termination_seconds - 1), marked=DIGEST)
    ),
    "of a stage that was done while it started": world(
        cpu("a", attempt(1, ago=POLICY.termination_seconds + 1), marked=DIGEST)
    ),
    "that hangs": world(cpu("a", attempt(1, ago=9999, first_step=NOW - 9000, last_sign=NOW - 601))),
    "that does no step": world(cpu("a", attempt(1, ago=POLICY.start_minutes * 60 + 1))),
    "that no machine takes": world(cpu("a", attempt(1, Process.PENDING, ago=601))),
    "that was told before": world(cpu("a", attempt(1, stop=stop(ago=5)))),
    "of a stage that failed": world(cpu("a", over(1, Ending.CONFIGURATION), attempt(2))),
}


@pytest.mark.parametrize("name", LEAVES)
def test_an_attempt_is_told_to_leave(name: str) -> None:
    (leave, *_) = acts(LEAVES[name])
    assert isinstance(leave, Leave)
    assert leave.reason


STAYS = {
    "that just started": world(cpu("a", attempt(1))),
    "that was claimed a moment ago": world(cpu("a", attempt(1, Process.ABSENT, ago=5))),
    "that has to wait for a machine for a while": world(cpu("a", attempt(1, Process.PENDING, ago=599))),
    "that compiles for long": world(cpu("a", attempt(1, ago=POLICY.start_minutes * 60 - 1))),
    "that gave a sign lately": world(cpu("a", attempt(1, ago=9999, first_step=NOW - 9000, last_sign=NOW - 599))),
    "that has just published its marker": world(cpu("a", attempt(1, last_sign=NOW - 5), marked=DIGEST)),
    "on a laptop that has slept": world(
        cpu("a", attempt(1, ago=9999, first_step=NOW - 9000, last_sign=NOW - 8000)), stepped=NOW - 10
    ),
    "whose backend gives no answer": world(
        cpu("a", attempt(1, Process.ABSENT, ago=9999, first_step=NOW - 9000)), unknown=frozenset({"backend"})
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_an_attempt_is_left_alone(name: str) -> None:
    assert acts(STAYS[name]) == []


def test_only_what_hung_counts_as_a_failure() -> None:
    hung = [action.hung for seen in LEAVES.values() for action in acts(seen) if isinstance(action, Leave)]
    assert hung == ["hangs" in name or "no step" in name for name in LEAVES]


def test_what_does_not_leave_within_its_grace_is_killed() -> None:
    patient = attempt(1, stop=stop(ago=POLICY.termination_seconds - 1))
    late = attempt(1, stop=stop(ago=POLICY.termination_seconds + 1))
    assert [type(action) for action in acts(world(cpu("a", patient)))] == [Leave]
    assert acts(world(cpu("a", late))) == [Kill("a", 1)]


def test_a_stray_process_is_killed() -> None:
    assert acts(world(cpu("a", marked=DIGEST), strays=(("a", 3),))) == [Kill("a", 3)]


def test_a_stage_begins_once_what_it_reads_is_done() -> None:
    reading = cpu("b", reads=("a",))
    assert acts(world(cpu("a", marked=DIGEST), reading)) == [Begin("b", 1, DIGEST)]
    assert acts(world(cpu("a", attempt(1)), reading)) == []
    only = Intent(stages=("b",))
    assert acts(world(cpu("a", marked=DIGEST), reading, intent=only)) == [Begin("b", 1, DIGEST)]
    assert acts(world(cpu("a"), cpu("b"), intent=only)) == [Begin("b", 1, DIGEST)]


def test_a_stage_begins_with_the_next_number() -> None:
    assert acts(world(cpu("a"))) == [Begin("a", 1, DIGEST)]
    assert acts(world(cpu("a", over(1, Ending.PREEMPTED), over(4, Ending.PREEMPTED)))) == [Begin("a", 5, DIGEST)]


def test_stages_begin_in_order_within_the_machines_allowed() -> None:
    stages = [cpu(name) for name in "abc"]
    assert [action.stage for action in acts(world(*stages))] == ["a", "b"]
    assert [action.stage for action in acts(world(cpu("a", attempt(1)), *stages[1:]))] == ["b"]
    assert acts(world(cpu("a", attempt(1)), cpu("b", attempt(1)), cpu("c"))) == []


def test_an_accelerator_stage_begins_on_a_free_slice() -> None:
    assert acts(world(accelerator("a"))) == [Begin("a", 1, DIGEST, HERE.name)]
    busy = world(accelerator("a", attempt(1, slice=HERE.name)), accelerator("b"), cpu("c"))
    assert acts(busy) == [Begin("c", 1, DIGEST)]


def test_after_a_failure_nothing_new_begins() -> None:
    assert acts(world(cpu("a", over(1, Ending.CONFIGURATION)), cpu("b"))) == []


def test_what_failed_before_the_user_ran_it_again_is_forgiven() -> None:
    seen = world(cpu("a", over(1, Ending.CONFIGURATION)), intent=Intent(forgiven={"a": 1}))
    assert acts(seen) == [Begin("a", 2, DIGEST)]


def test_a_failure_is_tried_again_after_a_while_and_a_preemption_at_once() -> None:
    assert acts(world(cpu("a", over(1, Ending.FAILED, ago=POLICY.retry_seconds - 1)))) == []
    assert acts(world(cpu("a", over(1, Ending.FAILED, ago=POLICY.retry_seconds + 1)))) == [Begin("a", 2, DIGEST)]
    assert acts(world(cpu("a", over(1, Ending.PREEMPTED)))) == [Begin("a", 2, DIGEST)]


def test_no_attempt_begins_beside_one_with_another_digest() -> None:
    (leave,) = acts(world(cpu("a", attempt(1, digest=OLD))))
    assert isinstance(leave, Leave)


def test_what_nobody_accepted_begins_nothing_stops_nothing_and_keeps_no_slice() -> None:
    held = accelerator("a", marked=OLD, held="its inputs have changed")
    assert acts(world(held)) == []
    assert decided(world(held)).stages["a"].reason == "its inputs have changed"
    assert not decided(world(held)).resting, "it goes on once somebody accepts it"
    assert acts(world(replace(held, attempts=(attempt(1, digest=OLD),)))) == []
    assert acts(world(held, slices=(slice_(1),))) == [Release("slice-1", "nothing will need it")]
    (leave,) = acts(world(replace(held, attempts=(attempt(1, digest=OLD),)), want="suspend"))
    assert isinstance(leave, Leave), "a wish of the user is heard all the same"


def test_the_report_takes_what_is_there() -> None:
    report = cpu("report", reads=("a", "b"), reads_what_is_there=True)
    waiting = world(cpu("a", marked=DIGEST), cpu("b", attempt(1)), report)
    assert acts(waiting) == []
    only = Intent(stages=("report",))
    assert acts(world(cpu("a"), cpu("b"), report, intent=only)) == [Begin("report", 1, DIGEST)]


def test_without_an_answer_from_the_backend_nothing_begins() -> None:
    assert acts(world(cpu("a"), unknown=frozenset({"backend"}))) == []


# -- slices ------------------------------------------------------------------------------------------------------------

ASKS = accelerator("a")
BUSY = accelerator("a", attempt(1, slice="slice-1"))

SLICES = {
    "the first slice is asked for where it is cheapest": (world(ASKS, slices=()), [Request("slice-1", "east", 4.0)]),
    "names are never used twice": (
        world(ASKS, slices=tuple(slice_(n, released=NOW - 99, gone=NOW - 99, present=False) for n in (2, 7))),
        [Request("slice-8", "east", 4.0)],
    ),
    "a request that was lost is made again": (
        world(ASKS, slices=(slice_(1, "west", ready=None, present=False),)),
        [Request("slice-1", "west", 4.0)],
    ),
    "a slice that is coming is waited for": (world(ASKS, slices=(slice_(1, ready=None),)), []),
    "a slice that came is noted and used": (
        world(ASKS, slices=(slice_(1, ready=None, usable=True),)),
        [Begin("a", 1, DIGEST, "slice-1"), Note("slice-1", "ready")],
    ),
    "when it came is what the cloud says": (
        world(ASKS, slices=(slice_(1, ready=None, usable=True, since=NOW - 42),), looked=NOW - 5),
        [Begin("a", 1, DIGEST, "slice-1"), Note("slice-1", "ready", at=NOW - 42)],
    ),
    "a slice that came and went between two looks has cost something": (
        world(BUSY, slices=(slice_(2, ready=None, released=NOW - 9, since=NOW - 6),)),
        [Note("slice-2", "ready", at=NOW - 6), Release("slice-2", "it is not needed")],
    ),
    "a slice that was taken away before anybody saw it has cost something": (
        world(BUSY, slices=(slice_(2, ready=None, trouble=Trouble.PREEMPTED),), looked=NOW - 5),
        [
            Note("slice-2", "ready", at=NOW - 5),
            Note("slice-2", "preempted", ""),
            Release("slice-2", "preempted"),
        ],
    ),
    "when it went is what the cloud says": (
        world(BUSY, slices=(slice_(1, present=False, usable=False, until=NOW - 33),)),
        [Note("slice-1", "gone", at=NOW - 33)],
    ),
    "a slice that we read nothing of is left alone": (
        world(BUSY, slices=(slice_(1), Slice("slice-2", "east", usable=True))),
        [],
    ),
    "a slice with a live attempt is kept": (world(BUSY, slices=(slice_(1),)), []),
    "a slice that vanished is noted as gone": (
        world(BUSY, slices=(slice_(1, present=False, usable=False),)),
        [Note("slice-1", "gone")],
    ),
    "a slice that was taken away is given back": (
        world(BUSY, slices=(slice_(1, trouble=Trouble.PREEMPTED, usable=False),)),
        [Note("slice-1", "preempted"), Release("slice-1", "preempted")],
    ),
    "a slice that an autoscaler fills is used before its machines are there, and has not come yet": (
        world(ASKS, slices=(slice_(1, ready=None, usable=True, machines=False),)),
        [Begin("a", 1, DIGEST, "slice-1")],
    ),
    "a slice whose machines are there costs from then on, and is used once they are ready": (
        world(ASKS, slices=(slice_(1, ready=None, machines=True),)),
        [Note("slice-1", "ready")],
    ),
    "a slice whose machines are never ready is given back": (
        world(
            accelerator("a", attempt(1, Process.PENDING, slice="slice-1")),
            slices=(slice_(1, ready=61 * MINUTE, machines=True, usable=False),),
        ),
        [Release("slice-1", "its machines were not ready within 60 minutes")],
    ),
    "a slice whose machines may still be ready is waited for": (
        world(
            accelerator("a", attempt(1, Process.PENDING, slice="slice-1")),
            slices=(slice_(1, ready=59 * MINUTE, machines=True, usable=False),),
        ),
        [],
    ),
    "a slice that is ready is kept though its attempt waits": (
        world(accelerator("a", attempt(1, Process.PENDING, slice="slice-1")), slices=(slice_(1, ready=61 * MINUTE),)),
        [],
    ),
    "a slice with a running attempt is kept though it takes no other": (
        world(accelerator("a", attempt(1, slice="slice-1")), slices=(slice_(1, ready=61 * MINUTE, usable=False),)),
        [],
    ),
    "what a slice came to is written down in words": (
        world(ASKS, slices=(slice_(1, ready=None, trouble=Trouble.QUOTA, reason="ask for more"),)),
        [Note("slice-1", "quota", "ask for more"), Release("slice-1", "quota: ask for more")],
    ),
    "an attempt that waits for a slice that has come to nothing leaves": (
        world(
            accelerator("a", attempt(1, Process.PENDING, slice="slice-1")),
            slices=(slice_(1, ready=None, trouble=Trouble.STOCKOUT),),
        ),
        [
            Leave("a", 1, "slice-1 came to nothing, stockout"),
            Note("slice-1", "stockout"),
            Release("slice-1", "stockout"),
        ],
    ),
    "an attempt that waits for a slice that is given back leaves": (
        world(
            accelerator("a", attempt(1, Process.PENDING, slice="slice-1")),
            slices=(slice_(1, released=NOW - 9, gone=NOW - 5, present=False, usable=False),),
        ),
        [Leave("a", 1, "slice-1 is given back")],
    ),
    "an attempt that waits for its machine on a slice that may bring it goes on waiting": (
        world(
            accelerator("a", attempt(1, Process.PENDING, slice="slice-1")),
            slices=(slice_(1, ready=None, usable=True, machines=False),),
        ),
        [],
    ),
    "a released slice is given back until it is gone": (
        world(BUSY, slices=(slice_(1), slice_(2, released=NOW - 9))),
        [Release("slice-2", "it is not needed")],
    ),
    "a released slice that is not there any more is gone": (
        world(BUSY, slices=(slice_(1), slice_(2, released=NOW - 9, present=False, usable=False))),
        [Note("slice-2", "gone")],
    ),
    "a slice that comes back from the dead is given back": (
        world(BUSY, slices=(slice_(1), slice_(2, released=NOW - 99, gone=NOW - 50))),
        [Release("slice-2", "it is not needed")],
    ),
    "a slice that vanished and comes back is given back": (
        world(BUSY, slices=(slice_(1), slice_(2, gone=NOW - 50))),
        [Release("slice-2", "it is not needed")],
    ),
    "a slice that comes after it was given back is given back": (
        world(BUSY, slices=(slice_(1), slice_(2, ready=None, usable=True, released=NOW - 9))),
        [Release("slice-2", "it is not needed")],
    ),
    "a slice that was given back before it came is gone": (
        world(BUSY, slices=(slice_(1), slice_(2, ready=None, released=NOW - 9, present=False))),
        [Note("slice-2", "gone")],
    ),
    "a slice is not held for a stage that nobody asked for": (
        world(cpu("b", attempt(1)), ASKS, slices=(slice_(1),), intent=Intent(stages=("b",))),
        [Release("slice-1", "nothing will need it")],
    ),
    "a slice is asked for beside a machine that is there anyway": (
        world(accelerator("b", attempt(1, slice=HERE.name)), ASKS),
        [Request("slice-1", "east", 4.0)],
    ),
    "nothing is asked for while the provisioner gives no answer": (
        world(ASKS, slices=(), unknown=frozenset({"provisioner"})),
        [],
    ),
    "a slice that nothing will need is given back": (
        world(accelerator("a", marked=DIGEST), cpu("b", attempt(1)), slices=(slice_(1),)),
        [Release("slice-1", "nothing will need it")],
    ),
    "a slice is held for a stage that will need it": (
        world(cpu("b", attempt(1)), accelerator("a", reads=("b",)), slices=(slice_(1, ready=9 * MINUTE),)),
        [],
    ),
    "a slice is not held for longer than allowed": (
        world(cpu("b", attempt(1)), accelerator("a", reads=("b",)), slices=(slice_(1, ready=10.1 * MINUTE),)),
        [Release("slice-1", "nothing has needed it for 10 minutes")],
    ),
    "a slice that a stage begins on is kept however long nothing needed it": (
        world(ASKS, slices=(slice_(1, ready=11 * MINUTE),)),
        [Begin("a", 1, DIGEST, "slice-1")],
    ),
    "a slice whose attempt has just ended is held": (
        world(
            accelerator("a", over(1, Ending.DONE, ago=MINUTE, slice="slice-1"), marked=DIGEST),
            cpu("b", attempt(1)),
            accelerator("c", reads=("b",)),
            slices=(slice_(1, ready=60 * MINUTE),),
        ),
        [],
    ),
    "no second slice beyond those allowed": (
        world(BUSY, accelerator("b"), slices=(slice_(1),)),
        [],
    ),
    "a suspended run gives its slices back": (
        world(ASKS, slices=(slice_(1),), want="suspend"),
        [Release("slice-1", "nothing will need it")],
    ),
    "a failed run gives its slices back": (
        world(accelerator("a", over(1, Ending.CONFIGURATION)), slices=(slice_(1),)),
        [Release("slice-1", "nothing will need it")],
    ),
    "a failed run holds no slice for the stages that it will not come to": (
        world(cpu("b", over(1, Ending.CONFIGURATION)), ASKS, slices=(slice_(1),)),
        [Release("slice-1", "nothing will need it")],
    ),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices(name: str) -> None:
    seen, actions = SLICES[name]
    assert acts(seen) == actions


def test_a_slice_that_does_not_come_is_asked_for_elsewhere() -> None:
    late = replace(slice_(1, ready=None), requested=NOW - POLICY.provision_minutes * 60 - 1)
    assert acts(world(ASKS, slices=(late,))) == [Release("slice-1", "it did not come within 60 minutes")]


def test_the_machines_allowed_bound_the_slices_that_are_asked_for() -> None:
    policy = POLICY.model_copy(update={"slices_at_once": 3})
    stages = [accelerator(name) for name in "abc"]
    assert [action.name for action in acts(world(*stages, slices=()), policy)] == ["slice-1", "slice-2"]
    one = world(cpu("x", attempt(1)), *stages, slices=(slice_(1, ready=None),))
    assert acts(one, policy) == []
    two = POLICY.model_copy(update={"slices_at_once": 2, "attempts_at_once": 3})
    assert [action.name for action in acts(world(*stages, slices=()), two)] == ["slice-1", "slice-2"]


def test_a_stage_waits_for_a_zone_that_may_have_a_slice() -> None:
    refused = [
        slice_(n, zone, ready=None, trouble=Trouble.STOCKOUT, released=NOW, gone=NOW, present=False)
        for n, zone in enumerate(POLICY.zones)
    ]
    seen = world(ASKS, slices=tuple(refused))
    assert acts(seen) == []
    assert decided(seen).stages["a"].state is State.PROVISIONING
    assert decided(seen).stages["a"].reason == "no slice lately in east, west, north"
    nowhere = POLICY.model_copy(update={"zones": ()})
    assert decided(world(ASKS, slices=()), nowhere).stages["a"].state is State.WAITING


def test_a_zone_whose_price_nobody_has_said_is_asked_where_there_is_no_budget() -> None:
    policy = POLICY.model_copy(update={"zones": ("south",)})
    assert acts(world(ASKS, slices=()), policy) == [Request("slice-1", "south", None)]
    refused = decided(world(ASKS, slices=()), policy, budget=40.0)
    assert (refused.state, refused.resting) == (State.OVER_BUDGET, True)
    assert "a slice in south" in refused.reason


# -- money -------------------------------------------------------------------------------------------------------------


def test_stopping_begins_at_the_budget_less_what_stopping_costs() -> None:
    """A slice of $4 an hour that came an hour ago; stopping takes 30 s + 60 s + 5 looks of 5 s."""
    stopping = 4.0 * (30 + 60 + 25) / 3600
    seen = world(accelerator("a", attempt(1, first_step=NOW, slice="slice-1")), slices=(slice_(1, ready=60 * MINUTE),))
    assert acts(seen, budget=4.0 + stopping + 0.001) == []
    (leave,) = acts(seen, budget=4.0 + stopping - 0.001)
    assert isinstance(leave, Leave)
    decision = decided(seen, budget=4.0 + stopping - 0.001)
    assert decision.state is State.OVER_BUDGET
    assert decision.spent_dollars == pytest.approx(4.0)


def test_with_the_budget_used_up_nothing_is_asked_for_and_the_run_rests() -> None:
    gone = slice_(1, ready=60 * MINUTE, released=NOW, gone=NOW, present=False)
    decision = decided(world(ASKS, slices=(gone,)), budget=4.1)
    assert (decision.state, decision.resting) == (State.OVER_BUDGET, True)
    assert acts(world(ASKS, slices=(gone,)), budget=40.0) == [Request("slice-2", "east", 4.0)]


def test_a_slice_is_given_back_although_nobody_says_that_its_attempt_has_ended() -> None:
    seen = world(
        accelerator("a", attempt(1, slice="slice-1", stop=stop(ago=31))),
        slices=(slice_(1, ready=60 * MINUTE),),
        unknown=frozenset({"backend"}),
    )
    assert acts(seen, budget=4.0) == [
        Leave("a", 1, "told so"),
        Release("slice-1", "its attempt was told to leave, and nobody says whether it did"),
    ]
    assert acts(seen) == [Leave("a", 1, "told so")]
    assert acts(replace(seen, unknown=frozenset()), budget=4.0) == [Kill("a", 1)], "its end will be seen"
    patient = replace(seen, stages=(accelerator("a", attempt(1, slice="slice-1", stop=stop(ago=29))),))
    assert acts(patient, budget=4.0) == [Leave("a", 1, "told so")]


def test_a_machine_that_costs_nothing_is_never_over_budget() -> None:
    policy = POLICY.model_copy(update={"zones": ()})
    assert acts(world(ASKS), policy, budget=0.01) == [Begin("a", 1, DIGEST, HERE.name)]


def test_a_permanent_slice_with_a_price_is_left_in_time_and_not_taken_up_again() -> None:
    pool = replace(HERE, dollars_per_hour=4.0)
    stopping = 4.0 * (30 + 60 + 25) / 3600
    going = world(accelerator("a", attempt(1, ago=60 * MINUTE, first_step=NOW, slice=HERE.name)), slices=(pool,))
    assert acts(going, budget=4.0 + stopping + 0.001) == []
    (leave,) = acts(going, budget=4.0 + stopping - 0.001)
    assert isinstance(leave, Leave)
    left = world(accelerator("a", over(1, Ending.STOPPED, ago=60 * MINUTE, slice=HERE.name)), slices=(pool,))
    assert acts(left, budget=stopping + 0.1) == []
    assert decided(left, budget=stopping + 0.1).state is State.OVER_BUDGET
    assert acts(left, budget=40.0) == [Begin("a", 2, DIGEST, HERE.name)]


# -- news --------------------------------------------------------------------------------------------------------------


def news(seen: Observed, budget: float | None = None) -> list[str]:
    return [action.text for action in decided(seen, budget=budget).actions if isinstance(action, Tell)]


def test_the_user_is_told_what_matters() -> None:
    assert news(world(cpu("a", marked=DIGEST))) == ["the run is done"]
    assert news(world(cpu("a", over(1, Ending.CONFIGURATION)))) == ["the run has stopped: stage a: because"]
    assert news(world(cpu("a", attempt(1, stop=stop(hung=True))))) == ["a: told so"]
    assert news(world(cpu("a", attempt(1, stop=stop())))) == []
    assert news(world(cpu("a", over(1, Ending.FAILED, stop=stop(hung=True))))) == []
    paid = world(accelerator("a", attempt(1, slice="slice-1")), slices=(slice_(1, ready=60 * MINUTE),))
    assert news(paid, budget=5.0) == ["$4.00 of the budget of $5.00 are spent"]
    assert news(paid, budget=5.01) == []


def test_another_failure_is_news_again_and_the_same_one_is_not() -> None:
    def keys(*attempts: Attempt) -> list[str]:
        seen = world(cpu("a", *attempts))
        return [action.key for action in decided(seen).actions if isinstance(action, Tell)]

    first, second = over(1, Ending.CONFIGURATION), over(2, Ending.CONFIGURATION)
    assert keys(first) == keys(first) != keys(first, second)
