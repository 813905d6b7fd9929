"""What calls of a paid endpoint cost, and a cap on it.

Before a call its worst case is set aside (the prompt by its bytes, the answer by its limit); afterwards what the
endpoint says it counted is booked instead. So the cap holds with any number of calls in flight, up to the error of the
guess about their prompts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import NamedTuple

from nanocode.config.settings import Endpoint
from nanocode.run.exits import ConfigurationError

# Code and English take 3 to 5 bytes a token; what is set aside should rather be too much.
BYTES_PER_TOKEN = 3


class SpendingCapReached(ConfigurationError):
    """The next call could pass the cap, so it was not made."""


class Spending(NamedTuple):
    """Calls that were answered or may have been billed, and their tokens."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float


@dataclass
class Bill:
    """What one call is charged: its worst case, until somebody knows better."""

    prompt_tokens: int
    completion_tokens: int
    counted: bool = True

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """The endpoint counted this."""
        self.prompt_tokens, self.completion_tokens = prompt_tokens, completion_tokens

    def waive(self) -> None:
        """The endpoint did no work."""
        self.settle(0, 0)
        self.counted = False


class CostMeter:
    """Counts tokens and dollars (prices are per million tokens) for any number of threads."""

    def __init__(self, prompt_dollars: float = 0.0, completion_dollars: float = 0.0, cap: float | None = None) -> None:
        self._prices, self.cap = (prompt_dollars, completion_dollars), cap
        self._changed = Condition()
        self._total = Spending(0, 0, 0, 0.0)
        self._held: list[float] = []

    def dollars(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The price of so many tokens."""
        return (prompt_tokens * self._prices[0] + completion_tokens * self._prices[1]) / 1e6

    @property
    def spent(self) -> Spending:
        """What was booked so far."""
        with self._changed:
            return self._total

    @contextmanager
    def call(self, prompt_tokens: int, completion_tokens: int) -> Iterator[Bill]:
        """Sets the worst case aside and books the bill at the end.

        Waits while only calls in flight stand between this one and the cap; `SpendingCapReached` when none is left.
        """
        worst = self.dollars(prompt_tokens, completion_tokens)
        with self._changed:
            while self.cap is not None and self._total.dollars + sum(self._held) + worst > self.cap:
                if not self._held:
                    raise SpendingCapReached(
                        f"${self._total.dollars:.4f} of ${self.cap:g} are spent and the next call may cost "
                        f"${worst:.4f}: raise the cap to go on"
                    )
                self._changed.wait()
            self._held.append(worst)
        bill = Bill(prompt_tokens, completion_tokens)
        try:
            yield bill
        finally:
            cost = self.dollars(bill.prompt_tokens, bill.completion_tokens)
            with self._changed:
                self._held.remove(worst)
                new = (int(bill.counted), bill.prompt_tokens, bill.completion_tokens, cost)
                calls, prompt, completion, dollars = (old + more for old, more in zip(self._total, new, strict=True))
                self._total = Spending(int(calls), int(prompt), int(completion), dollars)
                self._changed.notify_all()


def meter_of(endpoint: Endpoint) -> CostMeter:
    """A meter with the endpoint's prices and cap; policies may share it."""
    return CostMeter(endpoint.prompt_dollars, endpoint.completion_dollars, endpoint.cap_dollars)


def estimate(
    meter: CostMeter,
    prompts: Sequence[str],
    system: str,
    steps: int = 6,
    step_tokens: int = 100,
    result_tokens: int = 300,
) -> Spending:
    """What episodes that begin with these prompts will roughly cost, without a call: every step sends all before it."""
    calls = len(prompts) * steps
    grown = (step_tokens + result_tokens) * steps * (steps - 1) // 2
    begun = sum(tokens_of(system) + tokens_of(prompt) for prompt in prompts)
    prompt_tokens = begun * steps + grown * len(prompts)
    completion_tokens = calls * step_tokens
    return Spending(calls, prompt_tokens, completion_tokens, meter.dollars(prompt_tokens, completion_tokens))


def tokens_of(text: str) -> int:
    """A guess, rather too high, at the tokens of a text."""
    return len(text.encode(errors="replace")) // BYTES_PER_TOKEN + 1
