"""Public tokenizers that happen to be on this machine, to compare ours with; nothing is fetched."""

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer

Encode = Callable[[str], list[int]]

# Repositories whose `tokenizer.json` Hugging Face's cache may hold.
CACHED_REPOSITORIES = ("openai-community/gpt2", "gpt2", "Qwen/Qwen2.5-Coder-0.5B", "HuggingFaceTB/SmolLM2-135M")
# tiktoken's cache names a file by the SHA-1 of its address.
TIKTOKEN_FILES = {"cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"}


def installed(hub_cache: Path | None = None) -> dict[str, Encode]:
    """Name -> encode, of every public tokenizer found in a cache of `huggingface_hub` or `tiktoken`."""
    return _from_hub_cache(hub_cache) | _from_tiktoken_cache()


def _from_hub_cache(cache: Path | None) -> dict[str, Encode]:
    from huggingface_hub import try_to_load_from_cache

    found: dict[str, Encode] = {}
    for repository in CACHED_REPOSITORIES:
        path = try_to_load_from_cache(repository, "tokenizer.json", cache_dir=cache)
        if isinstance(path, str):
            found[repository] = partial(_ids, Tokenizer.from_file(path))
    return found


def _from_tiktoken_cache() -> dict[str, Encode]:
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR", "")) if "TIKTOKEN_CACHE_DIR" in os.environ else None
    if folder is None or find_spec("tiktoken") is None:
        return {}
    import tiktoken

    cached = [name for name, file in TIKTOKEN_FILES.items() if (folder / file).exists()]
    encodings = {name: tiktoken.get_encoding(name) for name in cached}
    return {name: partial(one.encode, disallowed_special=()) for name, one in encodings.items()}


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
