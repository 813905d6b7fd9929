"""Our own engine as a speaker."""

import codecs
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs.agent_model import AgentModel
from nanocode.agent.conversation import Conversation, Step, parse_step, render
from nanocode.agent.policies import LEAST_ROOM
from nanocode.generate.engine import Request, Sampling
from nanocode.text import special


class EngineSpeaker:
    """Speaks with the weights of a run; the cache of one turn is there for the next."""

    def __init__(self, model: AgentModel, temperature: float = 0.0, seed: int = 0) -> None:
        self._engine, self._tokenizer = model.engine, model.tokenizer
        self._sampling, self._seed = Sampling(temperature), seed
        millions = model.settings.model.parameters() / 1e6
        untaught = " (a base model: it continues text, and has not learned to act)" if model.stage == "pretrain" else ""
        self.label = f"stage {model.stage}{untaught}, {millions:.1f}M parameters"
        self.context = model.engine.context

    def count(self, conversation: Conversation) -> int:
        return len(render(conversation, self._tokenizer).tokens)

    def stream(self, conversation: Conversation) -> Iterator[str | Step]:
        tokens = render(conversation, self._tokenizer).tokens
        room = self.context - len(tokens)
        if room < LEAST_ROOM:
            return
        self._seed += 1  # who asks again may get another answer
        structure = set(self._tokenizer.special.values())
        ends = {self._tokenizer.special[name] for name in (special.ASSISTANT_END, special.TOOL_CALL_END)}
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        written: list[int] = []
        is_text = True
        coming = self._engine.stream(Request(tokens, room, self._seed), self._sampling)
        try:
            while (token := _next(coming)) is not None:
                written.append(token)
                if not is_text:
                    continue
                is_text = token not in structure
                if text := decoder.decode(self._tokenizer.bytes_of[token] if is_text else b"", final=not is_text):
                    yield text
        finally:
            coming.close()  # type: ignore[attr-defined]
        if written and written[-1] in ends:
            yield parse_step(written, self._tokenizer)


def _next(tokens: Iterator[int]) -> int | None:
    with _uninterrupted():
        return next(tokens, None)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C back until the end: between a device call and its result the engine has no cache."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *_: held.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt
