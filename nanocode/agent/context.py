"""Making a conversation fit: the oldest results of tools go first, then the oldest turns. Pure.

A model works from what it saw last; what a tool said long ago can be asked for again.
"""

from collections.abc import Callable

from nanocode.agent.conversation import Conversation, Message, Result, User

DROPPED = Result("[dropped to save room]")
# In characters: a shorter result costs less than the note.
WORTH_DROPPING = 2 * len(DROPPED.text)
# A model needs room for its own words. The rest of the context is shared by some results and what was said.
ANSWER_SHARE = 6
RESULT_SHARE = 3
# English and code take 3 to 4 bytes a token with a large vocabulary, 2 to 3 with a tiny one.
BYTES_PER_TOKEN = 3
LEAST_OUTPUT_BYTES, MOST_OUTPUT_BYTES = 400, 16_000


def fit(
    conversation: Conversation, limit: int, count: Callable[[Conversation], int]
) -> tuple[tuple[Message, ...], int]:
    """The conversation in at most `limit` tokens, and how many of its messages were dropped for that.

    Results are replaced by a note, oldest first; then whole turns go, oldest first. The last message and the turn it
    belongs to stay: if they alone do not fit, what comes back is too long.
    """
    kept, dropped = list(conversation), 0
    if count(kept) <= limit:
        return tuple(kept), 0
    for place, message in enumerate(kept[:-1]):
        if isinstance(message, Result) and len(message.text) > WORTH_DROPPING:
            kept[place], dropped = DROPPED, dropped + 1
            if count(kept) <= limit:
                return tuple(kept), dropped
    while (turns := [place for place, message in enumerate(kept) if isinstance(message, User)])[1:]:
        gone = kept[: turns[1]]
        dropped += sum(message is not DROPPED for message in gone)
        del kept[: turns[1]]
        if count(kept) <= limit:
            break
    return tuple(kept), dropped


def room_for_conversation(context: int) -> int:
    """The tokens of a context that may be taken before the model begins to write."""
    return context - context // ANSWER_SHARE


def output_bytes(context: int) -> int:
    """The longest result of a tool that leaves room for the rest in a context of so many tokens."""
    return max(LEAST_OUTPUT_BYTES, min(MOST_OUTPUT_BYTES, context * BYTES_PER_TOKEN // RESULT_SHARE))
