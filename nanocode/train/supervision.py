"""Which tokens of a conversation are learned from, read off the rows themselves, as segments are.

The assistant writes from <|assistant_start|> or <|tool_result_end|> up to and with <|assistant_end|> or
<|tool_call_end|>. No text can spell these tokens, so neither a user nor a file can claim to be the assistant.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nanocode.text import special

Weigh = Callable[[Int[Array, "B T1"]], Float[Array, "B T"]]
"""From rows to the weight of every target."""

OPENS = (special.ASSISTANT_START, special.TOOL_RESULT_END)
CLOSES = (special.ASSISTANT_END, special.TOOL_CALL_END)


def assistant_targets(ids: Mapping[str, int], elsewhere: float = 0.0) -> Weigh:
    """Weight 1 for what the assistant writes, `elsewhere` for all other tokens, 0 for BOS."""

    def weigh(rows: Int[Array, "B T1"]) -> Float[Array, "B T"]:
        opens = sum(rows == ids[name] for name in OPENS)
        closes = sum(rows == ids[name] for name in CLOSES)
        # A conversation that fits its row opens as often as it closes: the count is 1 inside and 0 outside.
        inside = jnp.cumsum(opens - closes, axis=1)[:, :-1] > 0
        weights = jnp.where(inside, 1.0, elsewhere)
        return jnp.where(rows[:, 1:] == ids[special.BOS], 0.0, weights)

    return weigh
