"""Generation with a key/value cache that outlives a call: the next turn of a conversation prefills only what is new.

The host keeps the tokens of each slot and hands requests to slots; everything per token happens on the device, in
`nanocode.generate.cached`. More requests than slots are decoded as slots become free (continuous batching).

A request's tokens follow from its own tokens and seed. Who else is in the batch changes only the rounding of sums,
which can turn a choice between two tokens that are equally likely to six digits.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
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
PREFILL_MULTIPLE = 64
PREFILL_MAX = 256
PREFILL_TOKENS = 4096
"""Tokens of one prefill call: enough for matmuls at full speed, few enough for its activations to stay small."""


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


class Engine:
    """Decodes requests with one set of weights; compiled code is shared with the engines made by `with_weights`."""

    def __init__(
        self,
        model: Transformer,
        weights: PyTree,
        slots: int,
        context: int | None = None,
        automaton: Automaton | None = None,
        stop_tokens: frozenset[int] = frozenset(),
        cache_dtype: jnp.dtype | None = None,
    ) -> None:
        """`context` defaults to the model's, `cache_dtype` to its compute dtype.

        `ValueError` if the context is longer than the model's or the automaton has another vocabulary.
        """
        shape = model.shape
        self.shape, self.slots, self.context = shape, slots, context or shape.context
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
        self._cache_dtype = cache_dtype or model.compute_dtype
        self._prepare = jax.jit(partial(prepare, shape, model.compute_dtype))
        self._grow = jax.jit(grow, static_argnames="length")
        self._prefill = jax.jit(partial(prefill, shape), static_argnames="prefix", donate_argnums=1)
        self._decode = jax.jit(
            partial(decode, shape), static_argnames=("prefix", "greedy", "filtered"), donate_argnums=1
        )
        self._fill(weights)

    def with_weights(self, weights: PyTree) -> Self:
        """An engine for other weights of the same model, with an empty cache, that compiles nothing again."""
        other = copy.copy(self)
        other._fill(weights)
        return other

    def _fill(self, weights: PyTree) -> None:
        self._weights = self._prepare(weights)
        self._cache: Cache = empty_cache(self.shape, self.slots, 0, self._cache_dtype)
        self._held: list[list[int]] = [[] for _ in range(self.slots)]

    def generate(self, requests: Sequence[Request], sampling: Sampling = Sampling()) -> list[Generated]:  # noqa: B008
        """One result per request, in order. `ValueError` if a prompt is empty or does not leave room for a token."""
        for request in requests:
            self._check(request)
        waiting = list(enumerate(requests))[::-1]
        active: list[_Active] = []
        results: dict[int, Generated] = {}
        while waiting or active:
            admitted = self._admit(waiting, active)
            self._prefill_all(admitted)
            active += admitted
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
        self._prefill_all(active)
        (one,) = active
        while not one.done:
            before = len(one.new)
            self._decode_some(active, sampling, STREAM_STEPS)
            yield from one.new[before:]

    def _check(self, request: Request) -> None:
        size = len(request.tokens)
        if not size:
            raise ValueError("a request has no tokens: begin with the BOS")
        if size >= self.context:
            raise ValueError(
                f"a prompt of {size} tokens does not fit into context {self.context} with a new one: shorten it"
            )
        if request.max_new < 1:
            raise ValueError(f"max_new {request.max_new}: ask for at least one token")

    def _admit(self, waiting: list[tuple[int, Request]], active: list[_Active]) -> list[_Active]:
        """Move requests from the end of `waiting` to free slots, each to the one with the longest common prefix."""
        free = sorted(set(range(self.slots)) - {one.slot for one in active})
        chosen = [waiting.pop() for _ in range(min(len(free), len(waiting)))]
        # The longest prefixes choose first; of equal ones the slot that loses least.
        pairs = sorted(
            (-common, len(self._held[slot]) - common, place, slot)
            for place, (_, request) in enumerate(chosen)
            for slot in free
            for common in [_common_prefix(self._held[slot], request.tokens)]
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
                missing = len(one.request.tokens) - 1 - len(self._held[one.slot])
                if missing:
                    length = min(-(-missing // PREFILL_MULTIPLE) * PREFILL_MULTIPLE, PREFILL_MAX)
                    groups.setdefault(length, []).append(one)
            if not groups:
                return
            for length, group in groups.items():
                most = max(PREFILL_TOKENS // length, 1)
                for first in range(0, len(group), most):
                    self._prefill_group(group[first : first + most], length)

    def _prefill_group(self, group: list[_Active], length: int) -> None:
        self._reserve(max(len(self._held[one.slot]) for one in group) + length + 1)
        size = _power(len(group), 4)
        tokens = np.zeros((size, length), np.int32)
        starts, slots = np.zeros(size, np.int32), np.zeros(size, np.int32)
        for row, one in enumerate(group):
            held = self._held[one.slot]
            new = one.request.tokens[len(held) : min(len(held) + length, len(one.request.tokens) - 1)]
            tokens[row, : len(new)], starts[row], slots[row] = new, len(held), one.slot
        self._cache = self._prefill(
            self._weights, self._cache, tokens, slots, starts, np.int32(len(group)), prefix=_bucket(starts.max())
        )
        for one in group:
            held = self._held[one.slot]
            held += one.request.tokens[len(held) : min(len(held) + length, len(one.request.tokens) - 1)]

    def _decode_some(self, active: list[_Active], sampling: Sampling, steps: int) -> None:
        rows, prefix = self._rows(active)
        knobs = Knobs(np.float32(sampling.temperature), np.int32(sampling.top_k), np.float32(sampling.top_p))
        self._cache, out, states = self._decode(
            self._weights, self._cache, rows, np.int32(steps), self._is_stop, self._table, knobs,
            prefix=prefix, greedy=sampling.greedy, filtered=sampling.filtered,
        )  # fmt: skip
        out, states = jax.device_get((out, states))
        row_of = {slot: row for row, slot in enumerate(rows.slot.tolist())}
        for one in active:
            row = row_of[one.slot]
            new = [token for token in out[:, row].tolist() if token >= 0]
            self._held[one.slot] += [int(rows.token[row]), *new[:-1]]
            one.new += new
            one.left -= len(new)
            one.state = int(states[row])
            one.stopped = new[-1] in self._stop_tokens or (
                self._automaton is not None and one.state in self._automaton.stops
            )
            one.done = one.stopped or one.left == 0

    def _rows(self, active: list[_Active]) -> tuple[Rows, int]:
        """The batch of a decode call, and how many columns of the cache it reads. Other slots fill it up."""
        size = min(_power(len(active), 4), self.slots)
        free = set(range(self.slots)) - {one.slot for one in active}
        filling = sorted(free, key=lambda slot: len(self._held[slot]))[: size - len(active)]
        slots = np.array(sorted([one.slot for one in active] + filling), np.int32)
        position = np.array([len(self._held[slot]) for slot in slots], np.int32)
        self._reserve(position.max() + DECODE_STEPS + 1)
        rows = Rows(slots, np.zeros_like(slots), position, *(np.zeros_like(slots) for _ in range(3)))
        for one in active:
            row = np.searchsorted(slots, one.slot)
            rows.token[row] = one.new[-1] if one.new else one.request.tokens[-1]
            rows.left[row], rows.seed[row], rows.state[row] = one.left, one.request.seed % 2**31, one.state
        return rows, self._length if size == self.slots else min(_bucket(position.max()), self._length)

    @property
    def _length(self) -> int:
        return self._cache.keys[0].shape[2]

    def _reserve(self, length: int) -> None:
        if length > self._length:
            self._cache = self._grow(self._cache, length=_bucket(length))


def _bucket(longest: int) -> int:
    """A length that is at least `longest`, of few: 64, 128, 192, 256, 384, 512, 768, ..."""
    if longest == 0:
        return 0
    length = _power(int(longest), 2, PREFILL_MULTIPLE)
    shorter = length * 3 // 4
    return shorter if shorter >= longest and shorter % PREFILL_MULTIPLE == 0 else length


def _power(number: int, base: int, unit: int = 1) -> int:
    """The first of unit, unit·base, unit·base², ... that is at least `number`."""
    while unit < number:
        unit *= base
    return unit


def _common_prefix(held: list[int], tokens: Sequence[int]) -> int:
    common = 0
    for ours, theirs in zip(held, tokens, strict=False):
        if ours != theirs:
            break
        common += 1
    return common


def _on_device(automaton: Automaton, vocab_size: int) -> Table:
    if automaton.next.shape[1] != vocab_size:
        raise ValueError(
            f"the automaton is over {automaton.next.shape[1]} tokens, the model over {vocab_size}: "
            "build it with the model's tokenizer"
        )
    needed = np.where(automaton.next >= 0, np.minimum(automaton.distance[automaton.next], NEVER - 1) + 1, NEVER)
    return Table(*(jnp.asarray(x.astype(np.int16)) for x in (automaton.next, needed, automaton.distance)))
