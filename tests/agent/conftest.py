"""A tokenizer small enough to train in a moment, with merges inside the words of the tools."""

import inspect

import pytest

from nanocode.agent import conversation, tools
from nanocode.text.tokenizer import Tokenizer, train


@pytest.fixture(scope="session", params=[(1, True), (3, False)], ids=["single digits", "groups of digits"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    digits, split_underscore = request.param
    texts = [inspect.getsource(module) for module in (conversation, tools)]
    return train([*texts, "123 456 789 100 2024 " * 9], 380, digits, split_underscore)
