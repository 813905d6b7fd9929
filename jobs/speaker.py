"""Who speaks in a chat: our engine or an endpoint. The chat knows only this seam."""

import sys
from collections.abc import Iterator
from typing import Protocol

import structlog
from rich.console import Console

from nanocode.agent.conversation import Conversation, Step
from nanocode.run.exits import UsageError


class SpeakerError(Exception):
    """It cannot go on; one line for the user."""


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


def open_speaker(
    run: str | None, stage: str | None, endpoint: str | None, model: str | None, temperature: float | None
) -> Speaker:
    """What the command line asks for: an endpoint, or the newest weights of a run."""
    # Retries are logged: not where an answer, or JSON, goes.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if temperature is not None and temperature < 0:
        raise UsageError(f"--temperature {temperature} is negative: 0 takes the likeliest token, 1 samples")
    if endpoint is not None:
        if model is None:
            raise UsageError("--endpoint needs --model NAME: which of the endpoint's models should answer?")
        from jobs.endpoint_speaker import EndpointSpeaker

        return EndpointSpeaker(endpoint, model, temperature)
    if run is None:
        raise UsageError("whom do you want to talk to? give a run directory, or --endpoint URL --model NAME")
    with Console(stderr=True).status("[dim]loading the model …[/dim]"):
        from jobs.agent_model import load_agent
        from jobs.engine_speaker import EngineSpeaker

        return EngineSpeaker(load_agent(run, stage), temperature or 0.0)
