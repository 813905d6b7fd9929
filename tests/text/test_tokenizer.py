"""The tokenizer: exact size, no loss, and no way for a text to forge structure."""

import inspect
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanocode.text.public import installed
from nanocode.text.special import SPECIAL_TOKENS
from nanocode.text.tokenizer import Tokenizer, bytes_per_token, train

TEXTS = [inspect.getsource(module) for module in (json, re, json.decoder, inspect)]
DEMO = train(TEXTS, 1024, digits=1, split_underscore=True)
LARGER = train(TEXTS, 2000, digits=2, split_underscore=False)
BOTH = pytest.mark.parametrize("tokenizer", [DEMO, LARGER], ids=["demo", "larger"])


@BOTH
def test_the_vocabulary_has_exactly_the_size_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == {id(DEMO): 1024, id(LARGER): 2000}[id(tokenizer)]
    assert [tokenizer.special[name] for name in SPECIAL_TOKENS] == list(range(11))
    assert tokenizer.bos == 0


@BOTH
@given(text=st.text())
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "x"])[0] == ids


@BOTH
@given(data=st.binary())
def test_any_bytes_round_trip(tokenizer: Tokenizer, data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == data
    assert tokenizer.encode_batch([text])[0] == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text), errors="surrogateescape") == text


@given(st.lists(st.one_of(st.sampled_from(SPECIAL_TOKENS), st.text(max_size=5)), max_size=8))
@settings(max_examples=50)
def test_the_name_of_a_special_token_in_a_text_is_only_bytes(parts: list[str]) -> None:
    text = "".join(parts)
    ids = DEMO.encode(text)
    assert not set(ids) & set(DEMO.special.values())
    assert DEMO.decode(ids) == text


def test_special_tokens_stay_names_after_saving_and_loading(tmp_path: Path) -> None:
    DEMO.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    text = "a <|bos|> b <|tool_call_start|> é\n"
    assert loaded.encode(text) == DEMO.encode(text)
    assert loaded.decode([0, 1]) == "<|bos|><|user_start|>"
    assert loaded.to_bytes() == DEMO.to_bytes()


def test_digits_and_underscores_are_kept_apart() -> None:
    def pieces(tokenizer: Tokenizer, text: str) -> list[bytes]:
        return [tokenizer.bytes_of[index] for index in tokenizer.encode(text)]

    text = "".join(f"{n:05d} _x_name__ " for n in range(3000)) + "".join(TEXTS)
    demo = train([text], 600, digits=1, split_underscore=True)
    larger = train([text], 600, digits=2, split_underscore=False)
    assert max(sum(chr(c).isdigit() for c in token) for token in demo.bytes_of) == 1
    assert max(sum(chr(c).isdigit() for c in token) for token in larger.bytes_of) == 2
    assert not [t for t in demo.bytes_of[11:] if b"_" in t and t.strip(b"_")]
    assert b"".join(pieces(demo, "self_name = 12345")) == b"self_name = 12345"


def test_training_twice_gives_the_same_tokenizer() -> None:
    assert train(iter(TEXTS), 1024, digits=1, split_underscore=True).to_bytes() == DEMO.to_bytes()


def test_bytes_per_token_measures_compression() -> None:
    assert bytes_per_token(LARGER.encode, TEXTS) > bytes_per_token(DEMO.encode, TEXTS) > 1.5
    assert bytes_per_token(DEMO.encode, []) == 0


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"\xff", b'{"version": "1.0"}'])
def test_what_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        Tokenizer.from_bytes(data)


def test_a_tokenizer_without_our_special_tokens_is_refused() -> None:
    import tokenizers

    other = tokenizers.Tokenizer(tokenizers.models.BPE()).to_str()
    with pytest.raises(ValueError, match="lacks the special token <\\|bos\\|>"):
        Tokenizer.from_bytes(other.encode())


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size 200"):
        train(TEXTS, 200, digits=1, split_underscore=True)
    with pytest.raises(ValueError, match="digits 0"):
        train(TEXTS, 1000, digits=0, split_underscore=True)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        DEMO.decode([1024])


def test_a_public_tokenizer_in_the_hub_cache_is_compared_with(tmp_path: Path) -> None:
    revision = "0" * 40
    folder = tmp_path / "models--gpt2"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(revision)
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "snapshots" / revision / "tokenizer.json").write_bytes(LARGER.to_bytes())
    found = installed(tmp_path)
    assert list(found) == ["gpt2"]
    assert bytes_per_token(found["gpt2"], TEXTS) == bytes_per_token(LARGER.encode, TEXTS)
    assert installed(tmp_path / "empty") == {}
