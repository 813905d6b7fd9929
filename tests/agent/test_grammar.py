"""The grammar as an automaton: it lets every valid step through, and nothing that does not parse."""

import random
from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanocode.agent.conversation import Step, parse_step, render, step_tokens
from nanocode.agent.grammar import FORBIDDEN, STOP, TEXT, step_automaton
from nanocode.agent.tools import TOOLS, Call
from nanocode.generate.automaton import Automaton
from nanocode.text import special
from nanocode.text.tokenizer import Tokenizer
from tests.agent.strategies import STEPS

PADDING = 20  # a model's vocabulary is padded beyond the tokenizer's


@pytest.fixture(scope="session")
def automaton(tokenizer: Tokenizer) -> Automaton:
    return step_automaton(tokenizer, tokenizer.vocab_size + PADDING)


def walk_at_random(automaton: Automaton, dice: random.Random, structure: set[int]) -> list[int]:
    """Tokens chosen among those allowed until the stop; structure is preferred, so that walks end."""
    state, tokens = automaton.start, list[int]()
    while state not in automaton.stops:
        allowed = [token for token, after in enumerate(automaton.next[state]) if after != FORBIDDEN]
        favoured = [token for token in allowed if token in structure]
        token = dice.choice(favoured if favoured and dice.random() < 0.4 else allowed)
        tokens.append(token)
        state = int(automaton.next[state, token])
    return tokens


@given(step=STEPS)
def test_every_valid_step_walks_to_the_stop(tokenizer: Tokenizer, automaton: Automaton, step: Step) -> None:
    assert automaton.walk(step_tokens(step, tokenizer)) == STOP


@given(seed=st.integers(0, 2**32))
@settings(max_examples=300)
def test_every_walk_through_the_automaton_parses(tokenizer: Tokenizer, automaton: Automaton, seed: int) -> None:
    tokens = walk_at_random(automaton, random.Random(seed), set(tokenizer.special.values()))
    step = parse_step(tokens, tokenizer)
    assert render([step], tokenizer).tokens == [tokenizer.bos, *tokens]


def test_random_walks_take_every_tool_with_every_set_of_arguments(tokenizer: Tokenizer, automaton: Automaton) -> None:
    dice, structure = random.Random(0), set(tokenizer.special.values())
    taken = set()
    for _ in range(1500):
        step = parse_step(walk_at_random(automaton, dice, structure), tokenizer)
        taken.add((step.call.tool, frozenset(step.call.arguments)) if step.call else None)
    assert taken == {None, *((tool, frozenset(names)) for tool, names in legal_sets())}


def legal_sets() -> Iterator[tuple[str, list[str]]]:
    for tool in TOOLS.values():
        for kept in product([True, False], repeat=len(tool.parameters)):
            pairs = list(zip(tool.parameters, kept, strict=True))
            if all(keep or not parameter.required for parameter, keep in pairs):
                yield tool.name, [parameter.name for parameter, keep in pairs if keep]


def test_there_are_as_many_sets_of_arguments_as_one_counts_by_hand() -> None:
    """Read: start and end, each or not; Edit and Bash: all; Grep: path or not."""
    assert len(list(legal_sets())) == 4 + 1 + 2 + 1


@pytest.mark.parametrize(("tool", "names"), list(legal_sets()))
def test_every_legal_set_of_arguments_may_end_the_call_and_no_other(
    tokenizer: Tokenizer, automaton: Automaton, tool: str, names: list[str]
) -> None:
    values = {"start": "12", "end": "123456"}
    step = Step("", Call(tool, {name: values.get(name, "a") for name in names}))
    tokens = step_tokens(step, tokenizer)
    assert automaton.walk(tokens) == STOP
    for name in names:
        if next(one for one in TOOLS[tool].parameters if one.name == name).required:
            left_out = Call(
                tool, {key: value for key, value in (step.call or Call("")).arguments.items() if key != name}
            )
            assert automaton.walk(step_tokens(Step("", left_out), tokenizer)) == FORBIDDEN


@pytest.mark.parametrize(
    "arguments",
    [
        {"start": "1", "path": "a"},
        {"path": "a", "end": "2", "start": "1"},
        {"path": "a", "path2": "b"},
        {"path": "a", "start": ""},
        {"path": "a", "start": "1", "pattern": "x"},
    ],
)
def test_keys_come_in_the_tools_order_and_values_of_kind_line_are_digits(
    tokenizer: Tokenizer, automaton: Automaton, arguments: dict[str, str]
) -> None:
    assert automaton.walk(step_tokens(Step("", Call("Read", arguments)), tokenizer)) == FORBIDDEN


@pytest.mark.parametrize("value", ["-1", "1.5", " 1", "1 ", "one", "1e3", "٣", "1234567", "12345678901"])
def test_a_line_is_one_to_six_digits(tokenizer: Tokenizer, automaton: Automaton, value: str) -> None:
    for digits in range(1, 7):
        fits = Step("", Call("Read", {"path": "a", "start": "9" * digits}))
        assert automaton.walk(step_tokens(fits, tokenizer)) == STOP
    assert automaton.walk(step_tokens(Step("", Call("Read", {"path": "a", "start": value})), tokenizer)) == FORBIDDEN


def test_no_spelling_gives_a_line_of_more_than_six_digits(tokenizer: Tokenizer, automaton: Automaton) -> None:
    """Whatever tokens the digits are in: the bytes along any path sum to at most six."""
    opened = Step("", Call("Read", {"path": "a", "start": "1"}))
    before = step_tokens(opened, tokenizer)[:-2]
    longest = {automaton.walk(before): 0}
    waiting = list(longest)
    while waiting:
        state = waiting.pop()
        for token, after in enumerate(automaton.next[state]):
            if after != FORBIDDEN and token not in tokenizer.special.values():
                data = tokenizer.bytes_of[token]
                assert data.isdigit()
                if longest[state] + len(data) > longest.get(int(after), 0):
                    longest[int(after)] = longest[state] + len(data)
                    waiting.append(int(after))
    assert max(longest.values()) == 6


def test_padding_is_never_allowed_and_text_takes_every_token_of_text(
    tokenizer: Tokenizer, automaton: Automaton
) -> None:
    assert (automaton.next[:, tokenizer.vocab_size :] == FORBIDDEN).all()
    allowed = {token for token, after in enumerate(automaton.next[TEXT]) if after == TEXT}
    assert allowed == set(range(tokenizer.vocab_size)) - set(tokenizer.special.values())


def test_the_shortest_way_to_a_stop_is_one_token_from_text(tokenizer: Tokenizer, automaton: Automaton) -> None:
    assert automaton.distance[TEXT] == 1
    opened = automaton.walk([tokenizer.special[special.TOOL_CALL_START]])
    shortest = min(
        len(step_tokens(Step("", Call(tool, dict.fromkeys(names, ""))), tokenizer)) - 1
        for tool, names in legal_sets()
        if not {"start", "end"} & set(names)
    )
    assert automaton.distance[opened] == shortest
