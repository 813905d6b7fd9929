"""What the controller does next. Pure: no cluster, no clock, no storage, no logging.

The state of a stage, and what is done in it; the first line that holds counts:

| state        | holds when                                           | and then                               |
|--------------|------------------------------------------------------|----------------------------------------|
| done         | its marker has the digest                            | an attempt that still lives is stopped |
| cancelled    | the user cancelled the run                           | the same                               |
| suspended    | the user suspended it                                | the same                               |
| over budget  | going on would cost more than the budget             | the same                               |
| running      | an attempt lives and has done its first step         | deadline: heartbeat                    |
| starting     | an attempt lives                                     | deadlines: admission, first step       |
| failed       | configuration, too many failures, or no progress     | nothing, until the user runs it again  |
| provisioning | it could run, and a slice for it is asked for        | deadline: provision                    |
| preempted    | it could run, and was taken away before              | begin, once a machine is free          |
| stale        | its marker has another digest                        | begin, once it could run               |
| waiting      | none of these                                        | begin, once it could run               |

It could run when it is asked for, what it reads is done, no other stage has failed, and it need not wait to try again.
An attempt with another digest is stopped before a new one begins. A stage that is held (nobody has accepted what it
would read) is never ready, and what lives of it is left alone. A slice is given back when it is of no use, when
nothing will need it, or when nothing has needed it for `hold_minutes`.
"""

from collections.abc import Iterator

from deploy.controller.actions import Action, Begin, Kill, Tell
from deploy.controller.decision import RESTS, Decision, StageState, State
from deploy.controller.observed import Observed
from deploy.controller.policies import over_budget, spent
from deploy.controller.slices import slice_actions
from deploy.controller.stages import asked_for, beginnings, live_actions, state_at_rest, state_of_live
from nanocode.config.settings import Budget, Controller


def decide(seen: Observed, policy: Controller, budget: Budget) -> Decision:
    """What to do next, and the state of every stage and of the run."""
    stopped = _stopped(seen, policy, budget)
    actions: list[Action] = []
    states: dict[str, StageState] = {}
    for stage in seen.stages:
        verdict = state_at_rest(stage, seen, policy, stopped)
        for attempt in stage.attempts:
            if attempt.live:
                actions += live_actions(stage, attempt, seen, policy, verdict)
        states[stage.name] = state_of_live(stage) or verdict
    begun: list[Begin] = []
    if "backend" not in seen.unknown:
        actions += [Kill(name, number) for name, number in seen.strays]
        begun = list(beginnings(seen, policy, states))
        actions += begun
        states |= {one.stage: StageState(State.STARTING, f"attempt {one.attempt} begins") for one in begun}
    if "provisioner" not in seen.unknown:
        actions += slice_actions(seen, policy, states, begun, stopped)
    state, reason = _of_the_run(seen, states, stopped)
    lives = any(stage.lives for stage in seen.stages) or bool(seen.strays)
    holds = any(not one.permanent and (one.gone is None or one.present) for one in seen.slices)
    actions += _news(seen, policy, budget, state, reason)
    return Decision(tuple(actions), states, state, reason, spent(seen), state in RESTS and not lives and not holds)


def _stopped(seen: Observed, policy: Controller, budget: Budget) -> StageState | None:
    """What stops the whole run, if anything does."""
    if seen.intent.want == "cancel":
        return StageState(State.CANCELLED, "the user cancelled the run")
    if seen.intent.want == "suspend":
        return StageState(State.SUSPENDED, "the user suspended the run")
    reason = over_budget(seen, policy, budget)
    return StageState(State.OVER_BUDGET, reason) if reason else None


def _of_the_run(seen: Observed, states: dict[str, StageState], stopped: StageState | None) -> tuple[State, str]:
    asked = {name: state for name, state in states.items() if asked_for(seen, name)}
    if all(state.state is State.DONE for state in asked.values()):
        return State.DONE, ""
    if stopped is not None:
        return stopped.state, stopped.reason
    for name, one in asked.items():
        if one.state is State.FAILED:
            return State.FAILED, f"stage {name}: {one.reason}"
    for state in (State.RUNNING, State.STARTING, State.PROVISIONING, State.PREEMPTED):
        if names := [name for name, one in asked.items() if one.state is state]:
            return state, ", ".join(names)
    return State.WAITING, ""


def _news(seen: Observed, policy: Controller, budget: Budget, state: State, reason: str) -> Iterator[Tell]:
    """What the user is told, once for each key."""
    digest = "".join(stage.digest[:4] for stage in seen.stages)
    if state is State.DONE:
        yield Tell(f"done-{digest}", "the run is done")
    if state in (State.FAILED, State.OVER_BUDGET):
        numbers = "".join(f"-{len(stage.attempts)}" for stage in seen.stages)
        yield Tell(f"{state.value.replace(' ', '-')}-{digest}{numbers}", f"the run has stopped: {reason}")
    if budget.dollars is not None and spent(seen) >= policy.warn_share * budget.dollars:
        yield Tell(f"budget-{budget.dollars:g}", f"${spent(seen):.2f} of the budget of ${budget.dollars:.2f} are spent")
    for stage in seen.stages:
        for attempt in stage.attempts:
            if attempt.live and attempt.stop is not None and attempt.stop.hung:
                yield Tell(f"stalled-{stage.name}-{attempt.number}", f"{stage.name}: {attempt.stop.reason}")
