"""Our own engine as a policy; `nanocode.agent.endpoint` is the other kind."""

from collections.abc import Sequence

from jaxtyping import PyTree

from nanocode.agent.conversation import Conversation, Step, parse_step, render
from nanocode.agent.grammar import step_automaton
from nanocode.generate.engine import Engine, Request, Sampling
from nanocode.model.transformer import Transformer
from nanocode.text.tokenizer import Tokenizer

TINY_PARAMETERS = 10_000_000
"""Below it, compiling the engine in many shapes takes longer than they save."""
# The shortest call takes about this many tokens: with less room than that an episode is over.
LEAST_ROOM = 8


def make_engine(model: Transformer, weights: PyTree, tokenizer: Tokenizer, slots: int) -> Engine:
    """An engine that can only write steps that parse."""
    automaton = step_automaton(tokenizer, model.shape.vocab_size)
    tiny = model.shape.parameters() < TINY_PARAMETERS
    return Engine(model, weights, slots, automaton=automaton, few_shapes=tiny)


class EnginePolicy:
    """Decodes all conversations that wait, as a batch; the grammar of the engine's automaton makes every step parse."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        sampling: Sampling = Sampling(),  # noqa: B008  (immutable)
        seed: int = 0,
        max_new: int = 256,
    ) -> None:
        self.engine, self.tokenizer, self.sampling, self.seed, self.max_new = engine, tokenizer, sampling, seed, max_new
        self.generated_tokens = 0

    def __call__(self, conversations: Sequence[Conversation]) -> list[Step | None]:
        rendered = [render(conversation, self.tokenizer).tokens for conversation in conversations]
        room = [min(self.max_new, self.engine.context - len(tokens)) for tokens in rendered]
        fitting = [place for place, left in enumerate(room) if left >= LEAST_ROOM]
        found = self.engine.generate(
            [Request(rendered[place], room[place], self.seed + place) for place in fitting], self.sampling
        )
        steps: list[Step | None] = [None] * len(conversations)
        for place, one in zip(fitting, found, strict=True):
            self.generated_tokens += len(one.tokens)
            if one.stopped:
                steps[place] = parse_step(one.tokens, self.tokenizer)
        return steps
