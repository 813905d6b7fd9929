"""An OpenAI-compatible endpoint as a speaker."""

import json
from collections.abc import Iterator

from pydantic import JsonValue, ValidationError

from jobs.speaker import SpeakerError
from nanocode.agent.conversation import Conversation, Step, to_json
from nanocode.agent.endpoint import EndpointError, EndpointPolicy
from nanocode.agent.soul import read_soul
from nanocode.config.refusals import requirement
from nanocode.config.settings import Endpoint
from nanocode.run.exits import UsageError

# Endpoints do not tell what their models take: this is what nearly all of them do.
CONTEXT = 32_000
CHARACTERS_PER_TOKEN = 3  # of code and JSON, estimated low


class EndpointSpeaker:
    """Asks the endpoint for every step, with our system prompt and SOUL."""

    def __init__(self, url: str, model: str, temperature: float | None) -> None:
        options: dict[str, JsonValue] = {} if temperature is None else {"temperature": temperature}
        try:
            endpoint = Endpoint(url=url, model=model, options=options)
        except ValidationError as error:
            raise UsageError(f"--endpoint {url}: {requirement(error.errors()[0])} (here OPENAI_API_KEY)") from None
        self._policy = EndpointPolicy(endpoint, read_soul(None))
        self.label, self.context = f"{model} at {url}", CONTEXT

    def close(self) -> None:
        """Ends its connections."""
        self._policy.close()

    def count(self, conversation: Conversation) -> int:
        characters = len(self._policy.system) + len(json.dumps(to_json(conversation), ensure_ascii=False))
        return characters // CHARACTERS_PER_TOKEN

    def stream(self, conversation: Conversation) -> Iterator[str | Step]:
        try:
            yield from self._policy.stream(conversation)
        except EndpointError as error:
            raise SpeakerError(str(error)) from error
