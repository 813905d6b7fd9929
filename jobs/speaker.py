"""Who speaks in a chat: our engine or an endpoint. The chat knows only this seam."""

from collections.abc import Iterator
from typing import Protocol

from nanocode.agent.conversation import Conversation, Step


class Speaker(Protocol):
    """One who continues a conversation."""

    label: str
    """Who it is, for the first line of a chat."""
    context: int
    """Tokens of the longest conversation, answer included."""

    def count(self, conversation: Conversation) -> int:
        """Its tokens."""
        ...

    def stream(self, conversation: Conversation) -> Iterator[str | Step]:
        """The text of the next step as it comes, and at last the step; without a step the room was used up."""
        ...
