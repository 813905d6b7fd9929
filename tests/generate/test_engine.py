"""The engine against decoding without a cache, one by one, and against transformers' own greedy tokens."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nanocode.generate.automaton import Automaton
from nanocode.generate.engine import Engine, Generated, Request, Sampling
from nanocode.model import huggingface
from nanocode.model.transformer import Transformer, whole_rows
from nanocode.train.step import abstract_model, with_weights
from tests.model.test_transformer import SHAPES, random_weights, shape_of

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "hf-nanochat"
CONTEXT = 160
"""More than two prefill calls, so that prefixes, blocks and the edge of the context are all met."""
DICE = Sampling(temperature=1.0)


@cache
def model_of(name: str) -> tuple[Transformer, dict]:
    shape = shape_of(name).model_copy(update={"context": CONTEXT})
    return abstract_model(shape, "float32"), random_weights(shape)


@cache
def logits_of(name: str):
    model, weights = model_of(name)

    @jax.jit
    def logits(tokens: jax.Array) -> jax.Array:
        filled = with_weights(model, weights)
        return filled.logits(filled.hidden(tokens, *whole_rows(tokens)))

    return logits


def greedy(name: str, prompt: list[int], count: int) -> list[int]:
    """By whole forward passes."""
    tokens = np.zeros((1, CONTEXT), np.int32)
    tokens[0, : len(prompt)] = prompt
    for end in range(len(prompt), len(prompt) + count):
        tokens[0, end] = np.argmax(logits_of(name)(tokens)[0, end - 1])
    return tokens[0, len(prompt) : len(prompt) + count].tolist()


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [0, *np.random.default_rng([seed, length]).integers(1, 24, length - 1).tolist()]


def tokens_of(results: list[Generated]) -> list[list[int]]:
    return [result.tokens for result in results]


@pytest.mark.parametrize("name", SHAPES)
def test_two_turns_give_the_tokens_of_whole_forward_passes_and_prefill_only_what_is_new(name: str) -> None:
    engine = Engine(*model_of(name), 3)
    prompts = [prompt_of(length) for length in (3, 40, 1)]
    first = engine.generate([Request(prompt, 6) for prompt in prompts])
    assert tokens_of(first) == [greedy(name, prompt, 6) for prompt in prompts]
    assert [result.prefilled for result in first] == [3, 40, 1]
    turns = [
        prompt + result.tokens + prompt_of(length, 1)
        for prompt, result, length in zip(prompts, first, (3, 9, 2), strict=True)
    ]
    second = engine.generate([Request(turn, 5) for turn in turns])
    assert tokens_of(second) == [greedy(name, turn, 5) for turn in turns]
    # The last token of an answer was drawn, but nothing has read it yet.
    assert [result.prefilled for result in second] == [1 + 3, 1 + 9, 1 + 2]


@pytest.mark.parametrize("keep", [0, 1, 5, 30, 31])
def test_a_conversation_may_go_on_from_any_point_of_an_earlier_one(keep: int) -> None:
    engine = Engine(*model_of("all"), 1)
    earlier = prompt_of(32)
    engine.generate([Request(earlier, 4)])
    other = [*earlier[:keep], 1 + earlier[keep] % 23, 5]
    (found,) = engine.generate([Request(other, 4)])
    assert found.tokens == greedy("all", other, 4)
    assert found.prefilled == len(other) - keep


def test_a_long_prompt_comes_in_several_pieces() -> None:
    engine = Engine(*model_of("all"), 1)
    first, second = prompt_of(100), prompt_of(100) + prompt_of(40, 1)
    for tokens, prefilled in ((first, 100), (second, 40)):
        (found,) = engine.generate([Request(tokens, 3)])
        assert (found.tokens, found.prefilled) == (greedy("all", tokens, 3), prefilled)


def test_asking_again_prefills_one_token() -> None:
    engine = Engine(*model_of("all"), 1)
    request = Request(prompt_of(20), 4)
    first, second = (engine.generate([request])[0] for _ in range(2))
    assert (second.tokens, second.prefilled) == (first.tokens, 1)


def test_each_request_takes_the_slot_with_its_own_conversation() -> None:
    engine = Engine(*model_of("all"), 3)
    prompts = [[0, 1, 2, 3, *prompt_of(10, seed)] for seed in range(3)]
    first = engine.generate([Request(prompt, 3) for prompt in prompts])
    again = [Request(prompt + result.tokens, 3) for prompt, result in zip(prompts, first, strict=True)]
    assert [result.prefilled for result in engine.generate(again[::-1])] == [1, 1, 1]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, top_k=9, top_p=0.9)], ids=str)
def test_who_else_is_in_the_batch_changes_no_token(sampling: Sampling) -> None:
    """Three slots that are used again and again, one by one, and one by one in an engine that has only one slot."""
    stop = frozenset({5, 11})  # so that requests end at different times
    requests = [Request(prompt_of(3 + 4 * n, n), 25, seed=n) for n in range(9)]
    together, single = (Engine(*model_of("all"), slots, stop_tokens=stop) for slots in (3, 1))
    found = together.generate(requests, sampling)
    assert tokens_of(found) == [together.generate([request], sampling)[0].tokens for request in requests]
    assert tokens_of(found) == [single.generate([request], sampling)[0].tokens for request in requests]
    assert len({len(result.tokens) for result in found}) > 2
    for result in found:
        assert result.stopped == (result.tokens[-1] in stop)
        assert not stop & set(result.tokens[:-1])
        assert result.stopped or len(result.tokens) == 25


def test_few_shapes_change_no_token() -> None:
    model, weights = model_of(next(iter(SHAPES)))
    requests = [Request(prompt_of(length, length), 40, seed=length) for length in (5, 30, 61, 100, 3)]
    few = Engine(model, weights, slots=3, few_shapes=True)
    many = Engine(model, weights, slots=3)
    assert tokens_of(few.generate(requests)) == tokens_of(many.generate(requests))
    again = [
        Request([*one.tokens, *done], 12) for one, done in zip(requests, tokens_of(few.generate(requests)), strict=True)
    ]
    assert tokens_of(few.generate(again)) == tokens_of(many.generate(again))


def test_the_seed_and_nothing_else_decides() -> None:
    requests = [Request(prompt_of(8), 20, seed=seed) for seed in (1, 2, 1)]
    one, other, same = tokens_of(Engine(*model_of("all"), 3).generate(requests, DICE))
    assert one == same != other
    assert tokens_of(Engine(*model_of("all"), 3).generate(requests, DICE)) == [one, other, same]


def test_streaming_gives_the_same_tokens_beside_other_work() -> None:
    engine, request = Engine(*model_of("all"), 3), Request(prompt_of(8), 23, seed=3)
    (whole,) = engine.generate([request], DICE)
    tokens = []
    for token in engine.stream(request, DICE):
        tokens.append(token)
        if len(tokens) == 6:
            engine.generate([Request(prompt_of(9, seed), 5) for seed in range(4)], DICE)
    assert tokens == whole.tokens


def test_it_goes_on_to_the_end_of_the_context_and_says_so() -> None:
    prompt = prompt_of(CONTEXT - 7)
    (result,) = Engine(*model_of("all"), 1).generate([Request(prompt, 50)])
    assert result.tokens[:6] == greedy("all", prompt, 7)[:6]
    assert (len(result.tokens), result.stopped) == (7, False)


def test_other_weights_empty_the_cache() -> None:
    model, weights = model_of("plain")
    engine = Engine(model, weights, 1)
    request = Request(prompt_of(20), 6)
    (before,) = engine.generate([request])
    other = jax.tree.map(lambda x: x[::-1], weights)
    (after,) = engine.with_weights(other).generate([request])
    assert after.prefilled == 20
    assert after.tokens != before.tokens
    assert engine.generate([request])[0].tokens == before.tokens


def numbers_in_brackets() -> Automaton:
    """1, then any of 4..23 and nested brackets three deep (1 opens, 2 closes), and the last 2 stops: depth + 2 of 3."""
    table = np.full((5, 24), -1)
    table[0, 1] = 1
    for depth in (1, 2, 3):
        table[depth, 4:] = depth
        table[depth, 2] = depth - 1 if depth > 1 else 4
        if depth < 3:
            table[depth, 1] = depth + 1
    return Automaton.build(table, 0, [4])


def test_the_automaton_is_obeyed_and_closes_in_time() -> None:
    automaton = numbers_in_brackets()
    engine = Engine(*model_of("all"), 3, automaton=automaton)
    requests = [Request(prompt_of(1 + n % 30, n), 2 + n % 40, seed=n) for n in range(200)]
    lengths = set()
    for request, result in zip(requests, engine.generate(requests, DICE), strict=True):
        assert automaton.walk(result.tokens) == 4
        assert automaton.walk(result.tokens[:-1]) != 4
        assert result.stopped
        assert len(result.tokens) <= request.max_new
        lengths.add((len(result.tokens), request.max_new))
    assert any(used == most for used, most in lengths), "some were closed by the limit"
    assert any(used < most for used, most in lengths), "some closed before it"


def test_an_automaton_that_cannot_close_in_time_is_still_obeyed() -> None:
    automaton = numbers_in_brackets()
    (result,) = Engine(*model_of("all"), 1, automaton=automaton).generate([Request([0], 1)])
    assert (result.tokens, result.stopped) == ([1], False)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_greedy_tokens_equal_those_of_transformers(row: int) -> None:
    """`generate` took token 0 for padding when the file was made: tests/model/test_huggingface.py has the details."""
    expected = np.load(GOLDEN / "greedy.npz")
    prompt = [token for token in expected["prompt"][row].tolist() if token != 0]
    wanted = expected["out"][row, expected["prompt"].shape[1] :].tolist()
    (result,) = golden_engine().generate([Request(prompt, len(wanted))])
    assert result.tokens == wanted


@cache
def golden_engine() -> Engine:
    shape, weights = huggingface.load(GOLDEN)
    return Engine(nnx.eval_shape(lambda: Transformer(shape, nnx.Rngs(0))), weights, 1)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request(prompt_of(CONTEXT), 1), f"a prompt of {CONTEXT} tokens does not fit into context {CONTEXT}"),
        (Request([], 1), "has no tokens"),
        (Request([0], 0), "max_new 0"),
        (Request([0, 24], 5), "tokens 0 to 24 are not all in the vocabulary of 24"),
    ],
)
def test_an_impossible_request_is_refused_with_the_next_move(request_: Request, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Engine(*model_of("plain"), 3).generate([request_])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"slots": 0}, "0 slots"),
        ({"context": CONTEXT + 1}, f"context {CONTEXT + 1} is longer than the model's {CONTEXT}"),
        ({"stop_tokens": frozenset({24})}, "stop token 24"),
        ({"automaton": Automaton.build(np.array([[1, 1], [-1, -1]]), 0, [1])}, "over 2 tokens, the model over 24"),
    ],
)
def test_an_impossible_engine_is_refused_with_the_next_move(change: dict, told: str) -> None:
    model, weights = model_of("plain")
    with pytest.raises(ValueError, match=told):
        Engine(model, weights, **{"slots": 1, **change})


def test_bfloat16_caches_are_close() -> None:
    model, weights = model_of("plain")
    narrow = Engine(model, weights, 1, cache_dtype=jnp.dtype("bfloat16"))
    prompt = prompt_of(12)
    (found,) = narrow.generate([Request(prompt, 3)])
    assert found.tokens[0] in np.argsort(logits_of("plain")(jnp.asarray([prompt + [0] * (CONTEXT - 12)]))[0, 11])[-3:]
