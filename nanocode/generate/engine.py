"""Generation with a key/value cache that outlives a call: the next turn of a conversation prefills only what is new.

The host keeps the tokens of each slot and hands requests to slots; everything per token happens on the device, in
`nanocode.generate.cached`. More requests than slots are decoded as slots become free (continuous batching).

A request's tokens follow from its own tokens and seed. Who else is in the batch changes only the rounding of sums,
which can turn a choice between two tokens that are equally likely to six digits.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from nanocode.generate.automaton import NEVER, Automaton
from nanocode.generate.cached import DECODE_STEPS, Cache, Rows, Table, decode, empty_cache, grow, prefill, prepare
from nanocode.generate.sampling import Knobs, Sampling
from nanocode.model.transformer import Transformer

__all__ = ["Engine", "Generated", "Request", "Sampling"]

STEPS_WHILE_WAITING = 16
"""Tokens of a decode call while requests wait for a slot: a freed one idles for half of that on average."""
STREAM_STEPS = 4
FEW_ROWS = 16
"""The smaller of the two batches of an engine with few shapes: what is left of a group when most have ended."""
PREFILL_LENGTHS = (64, 256)
"""Tokens that one prefill call adds to a row; few, because each is compiled for several batches and cache lengths."""
PREFILL_TOKENS = 4096
"""Tokens of one prefill call: enough for matmuls at full speed, few enough for its activations to stay small."""


# Compiled once per process and model shape, whatever engine it serves.
_prepare = jax.jit(prepare, static_argnums=(0, 1))
_grow = jax.jit(grow, static_argnames="length")
_prefill = jax.jit(prefill, static_argnums=0, static_argnames="prefix", donate_argnums=2)
_decode = jax.jit(decode, static_argnums=0, static_argnames=("prefix", "greedy", "filtered"), donate_argnums=2)


@dataclass(frozen=True)
class Request:
    tokens: Sequence[int]
    """The whole conversation so far, with its BOS."""
    max_new: int
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    tokens: list[int]
    """The new ones, with the one that stopped it."""
    stopped: bool
    """False: `max_new` or the context ran out."""
    prefilled: int
    """Tokens of the request that were not in the cache."""


@dataclass
class _Active:
    """A request in a slot."""

    number: int
    request: Request
    slot: int
    prefilled: int
    left: int
    state: int
    new: list[int] = field(default_factory=list)
    done: bool = False
    stopped: bool = False

    @property
    def newest(self) -> int:
        return self.new[-1] if self.new else self.request.tokens[-1]


class Engine:
    """Decodes requests with one set of weights. For one thread; a stream may stay open while others are served."""

    def __init__(
        self,
        model: Transformer,
        weights: PyTree,
        slots: int,
        context: int | None = None,
        automaton: Automaton | None = None,
        stop_tokens: frozenset[int] = frozenset(),
        cache_dtype: jnp.dtype | None = None,
        few_shapes: bool = False,
    ) -> None:
        """`context` defaults to the model's, `cache_dtype` to its compute dtype.

        `few_shapes`: prefill and decode in few sizes of batch, over a cache of full length from the start. A tiny model
        spends more time on compiling the others than they save.

        `ValueError` if the context is longer than the model's or the automaton has another vocabulary.
        """
        shape = model.shape
        self.shape, self.slots, self.context = shape, slots, context or shape.context
        self.few_shapes = few_shapes
        if self.context > shape.context:
            raise ValueError(f"context {self.context} is longer than the model's {shape.context}: leave it out")
        if slots < 1:
            raise ValueError(f"{slots} slots: an engine needs at least one")
        self._automaton, self._stop_tokens = automaton, stop_tokens
        outside = [token for token in stop_tokens if not 0 <= token < shape.vocab_size]
        if outside:
            raise ValueError(f"stop token {outside[0]} is not in the vocabulary of {shape.vocab_size}: use its ids")
        self._is_stop = jnp.zeros(shape.vocab_size, bool).at[jnp.asarray(sorted(stop_tokens), int)].set(True)
        self._table = None if automaton is None else _on_device(automaton, shape.vocab_size)
        self._compute_dtype, self._cache_dtype = model.compute_dtype, cache_dtype or model.compute_dtype
        self._fill(weights)

    def with_weights(self, weights: PyTree) -> Self:
        """An engine for other weights of the same model, with an empty cache. Nothing is compiled again."""
        other = copy.copy(self)
        other._fill(weights)
        return other

    def _fill(self, weights: PyTree) -> None:
        self._weights = _prepare(self.shape, self._compute_dtype, weights)
        length = self._longest if self.few_shapes else 0
        self._cache: Cache = empty_cache(self.shape, self.slots, length, self._cache_dtype)
        self._held: list[list[int]] = [[] for _ in range(self.slots)]
        self._streaming: set[int] = set()

    def generate(self, requests: Sequence[Request], sampling: Sampling = Sampling()) -> list[Generated]:  # noqa: B008
        """One result per request, in order. `ValueError` if a prompt is empty or does not leave room for a token."""
        for request in requests:
            self._check(request)
        waiting = list(enumerate(requests))[::-1]
        active: list[_Active] = []
        results: dict[int, Generated] = {}
        while waiting or active:
            admitted = self._admit(waiting, active)
            active += admitted
            if not active:
                raise RuntimeError(f"all {self.slots} slots belong to open streams: finish one, or make more slots")
            self._prefill_all(admitted)
            self._decode_some(active, sampling, STEPS_WHILE_WAITING if waiting else DECODE_STEPS)
            for one in active:
                if one.done:
                    results[one.number] = Generated(one.new, one.stopped, one.prefilled)
            active = [one for one in active if not one.done]
        return [results[number] for number in range(len(requests))]

    def stream(self, request: Request, sampling: Sampling = Sampling()) -> Iterator[int]:  # noqa: B008
        """The new tokens as they come, a few per device call."""
        self._check(request)
        active = self._admit([(0, request)], [])
        if not active:
            raise RuntimeError(f"all {self.slots} slots belong to open streams: finish one, or make more slots")
        (one,) = active
        self._streaming.add(one.slot)
        try:
            self._prefill_all(active)
            while not one.done:
                before = len(one.new)
                self._decode_some(active, sampling, STREAM_STEPS)
                yield from one.new[before:]
        finally:
            self._streaming.discard(one.slot)

    def _check(self, request: Request) -> None:
        size = len(request.tokens)
        if not size:
            raise ValueError("a request has no tokens: begin with the BOS")
        if size >= self.context:
            raise ValueError(
                f"a prompt of {size} tokens does not fit into context {self.context} with a new one: shorten it"
            )
        if not 0 <= min(request.tokens) <= max(request.tokens) < self.shape.vocab_size:
            raise ValueError(
                f"tokens {min(request.tokens)} to {max(request.tokens)} are not all in the vocabulary of "
                f"{self.shape.vocab_size}: use the model's tokenizer"
            )
        if request.max_new < 1:
            raise ValueError(f"max_new {request.max_new}: ask for at least one token")

    def _admit(self, waiting: list[tuple[int, Request]], active: list[_Active]) -> list[_Active]:
        """Move requests from the end of `waiting` to free slots, each to the one with the longest common prefix."""
        free = sorted(set(range(self.slots)) - {one.slot for one in active} - self._streaming)
        chosen = [waiting.pop() for _ in range(min(len(free), len(waiting)))]
        # The longest prefixes choose first; of equal ones the slot that loses least.
        pairs = sorted(
            (-common, len(self._held[slot]) - common, place, slot)
            for place, (_, request) in enumerate(chosen)
            for tokens in [list(request.tokens)]
            for slot in free
            for common in [_common_prefix(self._held[slot], tokens)]
        )
        taken: dict[int, int] = {}
        admitted = []
        for common, _, place, slot in pairs:
            if place in taken or slot in taken.values():
                continue
            taken[place] = slot
            number, request = chosen[place]
            size = len(request.tokens)
            common = min(-common, size - 1)
            del self._held[slot][common:]
            left = min(request.max_new, self.context - size)
            start = self._automaton.start if self._automaton else 0
            admitted.append(_Active(number, request, slot, size - common, left, start))
        return admitted

    def _prefill_all(self, admitted: list[_Active]) -> None:
        """Cache all but the last token of each request: that one is the input of the first decoding step."""
        while True:
            groups: dict[int, list[_Active]] = {}
            for one in admitted:
                start = len(self._held[one.slot])
                missing = len(one.request.tokens) - 1 - start
                if missing:
                    short, long = PREFILL_LENGTHS
                    # A long one that mostly reaches past the context would make every slot's cache longer.
                    is_short = missing <= 2 * short or start + long > self.context + short
                    groups.setdefault(short if is_short else long, []).append(one)
            if not groups:
                return
            for length, group in groups.items():
                most = max(PREFILL_TOKENS // length, 1)
                for first in range(0, len(group), most):
                    self._prefill_group(group[first : first + most], length)

    def _prefill_group(self, group: list[_Active], length: int) -> None:
        self._reserve(max(len(self._held[one.slot]) for one in group) + length + 1)
        size = min(max(PREFILL_TOKENS // length, 1), self.slots) if self.few_shapes else _power(len(group), 4)
        tokens = np.zeros((size, length), np.int32)
        starts, slots = np.zeros(size, np.int32), np.zeros(size, np.int32)
        for row, one in enumerate(group):
            held = self._held[one.slot]
            new = one.request.tokens[len(held) : min(len(held) + length, len(one.request.tokens) - 1)]
            tokens[row, : len(new)], starts[row], slots[row] = new, len(held), one.slot
        self._cache = _prefill(
            self.shape, self._weights, self._cache, tokens, slots, starts, np.int32(len(group)),
            prefix=self._length if starts.any() or self.few_shapes else 0,
        )  # fmt: skip
        for one in group:
            held = self._held[one.slot]
            held += one.request.tokens[len(held) : min(len(held) + length, len(one.request.tokens) - 1)]

    def _decode_some(self, active: list[_Active], sampling: Sampling, steps: int) -> None:
        rows, slots, prefix = self._rows(active)
        knobs = Knobs(*map(jnp.asarray, (sampling.temperature, sampling.top_k, sampling.top_p)))
        self._cache, out, states = _decode(
            self.shape, self._weights, self._cache, rows, np.int32(steps), self._is_stop, self._table, knobs,
            prefix=prefix, greedy=sampling.greedy, filtered=sampling.filtered,
        )  # fmt: skip
        out, states = jax.device_get((out, states))
        for one in active:
            row = slots.index(one.slot)
            new = [token for token in out[:, row].tolist() if token >= 0]
            self._held[one.slot] += [one.newest, *new[:-1]]
            one.new += new
            one.left -= len(new)
            one.state = int(states[row])
            one.stopped = new[-1] in self._stop_tokens or (
                self._automaton is not None and one.state in self._automaton.stops
            )
            one.done = one.stopped or one.left == 0

    def _rows(self, active: list[_Active]) -> tuple[Rows, list[int], int]:
        """The batch of a decode call, the slots of its rows, and how many columns of the cache it reads.

        Slots that generate nothing fill it up.
        """
        size = min(_power(len(active), 4), self.slots)
        if self.few_shapes:
            size = min(FEW_ROWS, self.slots) if len(active) <= FEW_ROWS else self.slots
        free = set(range(self.slots)) - {one.slot for one in active}
        filling = sorted(free, key=lambda slot: len(self._held[slot]))[: size - len(active)]
        slots = np.array(sorted([one.slot for one in active] + filling), np.int32)
        position = np.array([len(self._held[slot]) for slot in slots], np.int32)
        longest = int(position.max())
        self._reserve(longest + DECODE_STEPS + 1)
        token, left, seed, state = (np.zeros_like(slots) for _ in range(4))
        for one in active:
            row = np.searchsorted(slots, one.slot)
            token[row] = one.newest
            left[row], seed[row], state[row] = one.left, one.request.seed % 2**31, one.state
        rows = Rows(*(jnp.asarray(each) for each in (slots, token, position, left, seed, state)))
        whole = self.few_shapes or size == self.slots
        return rows, slots.tolist(), self._length if whole else min(_bucket(longest), self._length)

    @property
    def _length(self) -> int:
        return self._cache.keys[0].shape[2]

    def _reserve(self, length: int) -> None:
        if length > self._length:
            self._cache = _grow(self._cache, length=max(length, min(_bucket(length), self._longest)))

    @property
    def _longest(self) -> int:
        """No row reaches further than this: the last block of the longest one."""
        return self.context + max(PREFILL_LENGTHS[0], DECODE_STEPS) + 1


def _bucket(longest: int) -> int:
    """A length that is at least `longest`, of few: 64, 128, 192, 256, 384, 512, 768, ..."""
    if longest == 0:
        return 0
    length = _power(int(longest), 2, 64)
    shorter = length * 3 // 4
    return shorter if shorter >= longest and shorter % 64 == 0 else length


def _power(number: int, base: int, unit: int = 1) -> int:
    """The first of unit, unit·base, unit·base², ... that is at least `number`."""
    while unit < number:
        unit *= base
    return unit


def _common_prefix(held: list[int], tokens: list[int]) -> int:
    """How many tokens both begin with. Halving, because lists compare at the speed of C."""
    low, high = 0, min(len(held), len(tokens))
    while low < high:
        middle = (low + high + 1) // 2
        if held[low:middle] == tokens[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _on_device(automaton: Automaton, vocab_size: int) -> Table:
    if automaton.next.shape[1] != vocab_size:
        raise ValueError(
            f"the automaton is over {automaton.next.shape[1]} tokens, the model over {vocab_size}: "
            "build it with the model's tokenizer"
        )
    needed = np.where(automaton.next >= 0, np.minimum(automaton.distance[automaton.next], NEVER - 1) + 1, NEVER)
    return Table(*(jnp.asarray(x.astype(np.int16)) for x in (automaton.next, needed, automaton.distance)))
