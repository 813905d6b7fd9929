"""The episode loop: where it ends, what a rejection says, and that side by side is the same as one by one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nanocode.agent.conversation import Conversation, Message, Result, Step, User
from nanocode.agent.episode import Episode, Limits, always, episode, play, silent
from nanocode.agent.tools import REJECTED, Call
from nanocode.agent.workspace import Workspace

LOOK = Step("", Call("Read", {"path": "a.txt"}))
WRITE = Step("Writing.", Call("Edit", {"path": "b.txt", "old": "", "new": "two"}))
DONE = Step("Done.")
SHOWN = Result("    1→one")


class Script:
    """By request, the steps it takes; None is no room left."""

    def __init__(self, **steps: Sequence[Step | None]) -> None:
        self._steps = steps
        self.seen: list[list[Conversation]] = []

    def __call__(self, conversations: Sequence[Conversation]) -> list[Step | None]:
        self.seen.append(list(conversations))
        return [self._steps[_request(one)][sum(isinstance(m, Step) for m in one)] for one in conversations]


def _request(conversation: Conversation) -> str:
    assert isinstance(conversation[0], User)
    return conversation[0].text


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "a.txt").write_text("one\n")
    return Workspace(tmp_path)


def run(
    workspace: Workspace,
    *steps: Step | None,
    approve: Callable[[Call], bool] = always,
    reply: Callable[[Conversation], str | None] = silent,
    limits: Limits = Limits(),  # noqa: B008
    history: Sequence[Message] = (),
) -> Episode:
    """The episode of a policy that takes these steps."""
    policy = Script(**{_request([*history, User("go")]): steps})
    return play(policy, [episode(workspace, "go", approve, reply, limits, history)])[0]


def test_tools_are_executed_until_the_assistant_has_spoken(workspace: Workspace) -> None:
    found = run(workspace, LOOK, WRITE, DONE)
    assert found == Episode([User("go"), LOOK, SHOWN, WRITE, Result("    1→two"), DONE], "done")
    assert workspace.files() == {"a.txt": "one\n", "b.txt": "two"}


def test_a_rejected_call_is_answered_in_these_words_and_not_executed(workspace: Workspace) -> None:
    found = run(workspace, LOOK, WRITE, DONE, approve=lambda call: call.tool != "Edit")
    assert found.messages[2:] == [SHOWN, WRITE, Result("rejected by user"), DONE]
    assert REJECTED == "rejected by user"
    assert workspace.files() == {"a.txt": "one\n"}


def test_an_error_is_a_result_and_the_episode_goes_on(workspace: Workspace) -> None:
    found = run(workspace, Step("", Call("Read", {"path": "/etc/passwd"})), DONE)
    assert found.messages[2] == Result("error: outside the workspace: /etc/passwd")
    assert found.ended == "done"


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_whoever_goes_on_for_ever_is_out_of_steps(workspace: Workspace, steps: int) -> None:
    found = run(workspace, *[LOOK] * 9, limits=Limits(steps=steps))
    assert found == Episode([User("go"), *[LOOK, SHOWN] * steps], "out of steps")


def test_the_last_step_may_be_the_last_word(workspace: Workspace) -> None:
    assert run(workspace, LOOK, DONE, limits=Limits(steps=2)).ended == "done"


def test_without_room_for_a_step_the_episode_ends(workspace: Workspace) -> None:
    assert run(workspace, LOOK, None) == Episode([User("go"), LOOK, SHOWN], "out of context")
    assert run(workspace, None) == Episode([User("go")], "out of context")


def test_a_user_who_answers_begins_a_turn_and_turns_have_an_end(workspace: Workspace) -> None:
    ask = Step("May I?")
    found = run(workspace, ask, ask, ask, ask, reply=lambda said: f"Yes {len(said)}.", limits=Limits(turns=3))
    assert found == Episode([User("go"), ask, User("Yes 2."), ask, User("Yes 4."), ask], "done")


def test_a_user_who_says_nothing_ends_it(workspace: Workspace) -> None:
    replies = iter(["Yes.", None])
    found = run(workspace, Step("May I?"), DONE, reply=lambda said: next(replies))
    assert found == Episode([User("go"), Step("May I?"), User("Yes."), DONE], "done")


def test_history_comes_before_the_request(workspace: Workspace) -> None:
    history = (User("before"), DONE)
    found = run(workspace, Step("not asked for"), LOOK, DONE, history=history)
    assert found.messages == [*history, User("go"), LOOK, SHOWN, DONE]


def test_what_a_policy_saw_does_not_change_later(workspace: Workspace) -> None:
    policy = Script(go=[LOOK, DONE])
    play(policy, [episode(workspace, "go")])
    assert policy.seen == [[(User("go"),)], [(User("go"), LOOK, SHOWN)]]


def test_side_by_side_is_the_same_as_one_by_one(tmp_path: Path) -> None:
    scripts: dict[str, list[Step | None]] = {
        "short": [DONE],
        "long": [LOOK, WRITE, LOOK, DONE],
        "full": [LOOK, None],
        "endless": [LOOK] * 16,
    }

    def episodes(folder: str) -> dict[str, object]:
        found: dict[str, object] = {}
        for name in scripts:
            root = tmp_path / folder / name
            root.mkdir(parents=True)
            (root / "a.txt").write_text("one\n")
            found[name] = episode(Workspace(root), name)
        return found

    together = Script(**scripts)
    side_by_side = play(together, list(episodes("together").values()))  # type: ignore[arg-type]
    one_by_one = [play(Script(**scripts), [one])[0] for one in episodes("apart").values()]  # type: ignore[list-item]
    assert side_by_side == one_by_one
    assert [one.ended for one in side_by_side] == ["done", "done", "out of context", "out of steps"]
    assert [len(batch) for batch in together.seen] == [4, 3, 2, 2, *[1] * 12]


def test_no_episodes_ask_nobody() -> None:
    policy = Script()
    assert play(policy, []) == []
    assert policy.seen == []


def test_a_policy_that_answers_for_fewer_is_a_mistake(workspace: Workspace) -> None:
    with pytest.raises(ValueError):
        play(lambda conversations: [], [episode(workspace, "go")])
