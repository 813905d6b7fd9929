"""Byte-level BPE with a GPT-4-style split, trained and run by `tokenizers`, saved as one `tokenizer.json`.

Any bytes round-trip: `encode(data.decode("utf-8", "surrogateescape"))` turns each byte that is no UTF-8 into that
byte's own token, and `decode_bytes` gives `data` back. Text without lone surrogates also survives `decode`.
Special tokens are never produced by `encode`: their ids come from `special`, and only whoever renders a
conversation puts them there.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from nanocode.text.special import BOS, SPECIAL_TOKENS

LONE_SURROGATES = re.compile("([\ud800-\udfff]+)")
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)


def split_pattern(digits: int, split_underscore: bool) -> str:
    """The regular expression of the pieces that no merge crosses.

    GPT-4's, with numbers cut into at most `digits` digits (a small vocabulary cannot afford a thousand numbers), and
    with runs of `_` on their own when asked, so that a word is the same token inside an identifier and outside.
    """
    apart = "_" if split_underscore else ""
    return "|".join(
        [
            r"'(?i:[sdmt]|ll|ve|re)",
            rf"[^\r\n\p{{L}}\p{{N}}{apart}]?\p{{L}}+",
            rf"\p{{N}}{{1,{digits}}}",
            *(["_+"] if split_underscore else []),
            rf" ?[^\s\p{{L}}\p{{N}}{apart}]+[\r\n]*",
            r"\s*[\r\n]",
            r"\s+(?!\S)",
            r"\s+",
        ]
    )


def train(texts: Iterable[str], vocab_size: int, digits: int, split_underscore: bool) -> "Tokenizer":
    """A tokenizer of exactly `vocab_size` tokens, the special ones included; fewer if the texts run out of pairs.

    Holds the distinct pieces of the texts and their counts in memory, not the texts. Lone surrogates are left out of
    the counts. Raises `ValueError` when `vocab_size` leaves no room for the 256 bytes and the special tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"vocab_size {vocab_size} is too small: at least {SMALLEST_VOCABULARY} for bytes and specials")
    if digits < 1:
        raise ValueError(f"digits {digits} is too small: a number is split into groups of at least 1 digit")
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern(digits, split_underscore)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.encode_special_tokens = True
    inner.train_from_iterator((LONE_SURROGATES.sub("", text) for text in texts), trainer)
    return Tokenizer(inner)


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        absent = [name for name in SPECIAL_TOKENS if inner.token_to_id(name) is None]
        if absent:
            raise ValueError(f"the tokenizer lacks the special token {absent[0]}: train one with `nanocode run`")
        self._inner = inner
        self._inner.encode_special_tokens = True  # not part of tokenizer.json
        self.special: dict[str, int] = {name: inner.token_to_id(name) or 0 for name in SPECIAL_TOKENS}
        """Id of every special token."""
        self.bos: int = self.special[BOS]
        self.vocab_size: int = inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without BOS."""
        if LONE_SURROGATES.search(text):
            return self._encode_surrogates(text)
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each, on all cores unless `TOKENIZERS_PARALLELISM=false`."""
        clean = ["" if LONE_SURROGATES.search(text) else text for text in texts]
        encodings = self._inner.encode_batch_fast(clean, add_special_tokens=False)
        return [
            encoding.ids if text is kept else self._encode_surrogates(text)
            for text, kept, encoding in zip(texts, clean, encodings, strict=True)
        ]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes the ids stand for; special tokens give their names. `ValueError` for an id that is none."""
        table = self.bytes_of
        try:
            return b"".join([table[index] for index in ids])
        except IndexError:
            raise ValueError(
                f"a token id is outside the vocabulary of {self.vocab_size}: another tokenizer's?"
            ) from None

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text; bytes that are no UTF-8 become U+FFFD, or lone surrogates with `errors="surrogateescape"`."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    @cached_property
    def bytes_of(self) -> tuple[bytes, ...]:
        """The bytes of every token, by id."""
        names = {index: name for name, index in self._inner.get_vocab(with_added_tokens=True).items()}
        table = byte_of_character()
        return tuple(
            names[index].encode() if names[index] in self.special else bytes(table[c] for c in names.get(index, ""))
            for index in range(self.vocab_size)
        )

    def to_bytes(self) -> bytes:
        """The content of `tokenizer.json`."""
        text: str = self._inner.to_str(pretty=True)
        return text.encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Tokenizer":
        """Read the content of a `tokenizer.json`; `ValueError` if it is none, or lacks a special token."""
        try:
            json.loads(data)  # `tokenizers` raises a bare Exception; a damaged file should say where it is damaged
            inner = tokenizers.Tokenizer.from_str(data.decode())
        except ValueError as error:
            raise ValueError(f"not a tokenizer.json ({error}): train the tokenizer again") from error
        except Exception as error:
            raise ValueError(f"not a tokenizer.json that `tokenizers` reads ({error}): train it again") from error
        return cls(inner)

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        path.write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read `tokenizer.json`."""
        return cls.from_bytes(path.read_bytes())

    def _encode_surrogates(self, text: str) -> list[int]:
        """Lone surrogates as the tokens of their single bytes (U+DC80..U+DCFF stand for the bytes 0x80..0xFF)."""
        ids: list[int] = []
        for place, part in enumerate(LONE_SURROGATES.split(text)):
            if place % 2 == 0:
                ids += self._inner.encode(part, add_special_tokens=False).ids
                continue
            for char in part:
                escaped = 0xDC80 <= ord(char) <= 0xDCFF
                data = char.encode("utf-8", "surrogateescape" if escaped else "surrogatepass")
                ids += [self._byte_ids[byte] for byte in data]
        return ids

    @cached_property
    def _byte_ids(self) -> dict[int, int]:
        vocabulary = self._inner.get_vocab()
        return {byte: vocabulary[char] for char, byte in byte_of_character().items()}


def byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-in characters, each with its byte: what a byte-level vocabulary is spelled in."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def bytes_per_token(encode: Callable[[str], Sequence[int]], texts: Iterable[str]) -> float:
    """UTF-8 bytes per token over the texts: how far a tokenizer compresses them; 0 for no text."""
    size = tokens = 0
    for text in texts:
        size += len(text.encode("utf-8", "surrogatepass"))
        tokens += len(encode(text))
    return size / tokens if tokens else 0.0
