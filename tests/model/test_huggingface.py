"""Import, forward pass and export against files that Hugging Face's own implementation made."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from nanocode.config.shape import ModelShape
from nanocode.model import huggingface
from nanocode.model.transformer import Transformer, parameters, whole_rows

GOLDEN = Path(__file__).parents[1] / "golden" / "hf-nanochat"


@pytest.fixture(scope="module")
def golden() -> Transformer:
    shape, weights = huggingface.load(GOLDEN)
    model = nnx.eval_shape(lambda: Transformer(shape, nnx.Rngs(0)))
    nnx.update(model, weights)
    return model


@nnx.jit
def logits(model: Transformer, tokens: jax.Array) -> jax.Array:
    return model.logits(model.hidden(tokens, *whole_rows(tokens)))


def test_logits_agree_with_transformers(golden: Transformer) -> None:
    expected = np.load(GOLDEN / "expected.npz")
    found = logits(golden, jnp.asarray(expected["input_ids"]))
    np.testing.assert_allclose(found, expected["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_greedy_tokens_equal_those_of_transformers(golden: Transformer, row: int) -> None:
    """Every token of the file, decoded without a cache.

    `generate` took token 0 for padding when the file was made, and masked it: the prompt of row 1 holds one, at
    position 6. With rotary (relative) positions, leaving it out is the same as masking it; with it the last two
    of the row's tokens differ, by 0.17 and 0.54 in the logit.
    """
    expected = np.load(GOLDEN / "greedy.npz")
    seen = [token for token in expected["prompt"][row].tolist() if token != 0]
    wanted = expected["out"][row, expected["prompt"].shape[1] :].tolist()
    tokens = np.zeros((1, expected["out"].shape[1]), np.int32)
    tokens[0, : len(seen)] = seen
    for end in range(len(seen), len(seen) + len(wanted)):  # causal: what stands after `end` does not matter
        tokens[:, end] = np.argmax(logits(golden, jnp.asarray(tokens))[:, end - 1], axis=-1)
    assert tokens[0, len(seen) : len(seen) + len(wanted)].tolist() == wanted


def test_export_and_load_give_back_every_bit(tmp_path: Path) -> None:
    shape, weights = huggingface.load(GOLDEN)
    huggingface.export(shape, weights, tmp_path)
    again_shape, again = huggingface.load(tmp_path)
    assert again_shape == shape
    jax.tree.map(np.testing.assert_array_equal, again, weights)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, GOLDEN))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path, GOLDEN)]
    configs[1].pop("transformers_version")
    assert configs[0] == configs[1]
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(set(modes.values())) == 1, f"all as the umask says: {modes}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight is missing"),
        (lambda t: t.update({"model.extra": np.zeros(1, np.float32)}), "model.extra is not part"),
        (lambda t: t.update({"lm_head.weight": np.zeros((2, 64), np.float32)}), r"lm_head.weight has shape \[2, 64\]"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path: Path, change, message: str) -> None:
    shutil.copyfile(GOLDEN / "config.json", tmp_path / "config.json")
    tensors = load_file(GOLDEN / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        huggingface.load(tmp_path)


def test_export_names_the_extra_that_stands_in_its_way(tmp_path: Path) -> None:
    shape = ModelShape(layers=1, width=8, heads=2, vocab_size=16, context=8, previous_token_keys=0.5)
    model = nnx.eval_shape(lambda: Transformer(shape, nnx.Rngs(0)))
    with pytest.raises(ValueError, match="previous_token_keys=0.5"):
        huggingface.export(shape, parameters(model), tmp_path)
