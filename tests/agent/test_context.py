"""What is dropped from a conversation that is too long, and what never is."""

import pytest

from nanocode.agent.context import DROPPED, fit, output_bytes, room_for_conversation
from nanocode.agent.conversation import Conversation, Result, Step, User
from nanocode.agent.tools import Call

READ = Step("", Call("Read", {"path": "a.py"}))
LONG = Result("x" * 100)
TURN = [User("look"), READ, LONG, READ, LONG, Step("Seen.")]


def characters(conversation: Conversation) -> int:
    return sum(len(message.text) for message in conversation)


def test_what_fits_is_left_alone() -> None:
    assert fit(TURN, characters(TURN), characters) == (tuple(TURN), 0)


def test_the_oldest_results_go_first_and_no_more_than_needed() -> None:
    kept, dropped = fit([*TURN, User("again")], characters(TURN), characters)
    assert dropped == 1
    assert kept == (User("look"), READ, DROPPED, READ, LONG, Step("Seen."), User("again"))


def test_the_result_that_was_just_asked_for_stays() -> None:
    conversation = [User("look"), READ, LONG, READ, LONG]
    kept, dropped = fit(conversation, 1, characters)
    assert (kept[-1], dropped) == (LONG, 1)


def test_then_whole_turns_go_but_never_the_last() -> None:
    conversation = [*TURN, *TURN, User("third"), READ, LONG]
    kept, dropped = fit(conversation, 110, characters)
    assert kept == (User("third"), READ, LONG)
    assert dropped == 2 * len(TURN)


def test_a_short_result_is_worth_more_than_the_note() -> None:
    conversation = [User("look"), READ, Result("3 lines"), READ, LONG, READ, Result("ok")]
    kept, dropped = fit(conversation, 60, characters)
    assert (kept[2], kept[4], dropped) == (Result("3 lines"), DROPPED, 1)


def test_the_same_conversation_one_step_longer_keeps_the_same_prefix() -> None:
    """A cached prefix stays valid for as long as nothing more has to go."""
    before, _ = fit([*TURN, User("again")], characters(TURN), characters)
    after, _ = fit([*TURN, User("again"), READ], characters(TURN), characters)
    assert after[: len(before)] == before


@pytest.mark.parametrize("context", [256, 384, 4096, 32_000])
def test_room_and_results_leave_place_for_the_answer(context: int) -> None:
    assert context / 2 < room_for_conversation(context) < context
    assert 400 <= output_bytes(context) <= 16_000
