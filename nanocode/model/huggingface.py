"""Weights in and out of the layout of Hugging Face's `NanoChatForCausalLM`: `config.json` and `model.safetensors`.

Their linear layers are [out, in] and one tensor per layer; ours are [in, out] and stacked. Sharded checkpoints
(`model.safetensors.index.json`) are read too. No torch and no transformers are needed.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree
from safetensors import safe_open
from safetensors.numpy import save_file

from nanocode.config.shape import MLP_RATIO, ModelShape
from nanocode.model.linear import NORM_EPSILON
from nanocode.model.transformer import SOFTCAP, Transformer, parameters

LAYER_TENSORS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
FIXED = {
    "model_type": "nanochat",
    "hidden_act": "relu2",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "final_logit_softcapping": SOFTCAP,
    "rms_norm_eps": NORM_EPSILON,
}
"""What our forward pass has built in; a config that says otherwise is refused."""


def load(folder: Path) -> tuple[ModelShape, dict[str, PyTree]]:
    """Shape and float32 weights (as `transformer.parameters` nests them) of a published model.

    Raises ValueError when the config describes another architecture, or a tensor is missing, extra or misshapen.
    """
    shape = _shape_of(json.loads((folder / "config.json").read_text()), folder / "config.json")
    expected = parameters(nnx.eval_shape(lambda: Transformer(shape, nnx.Rngs(0))))
    tensors = _read_tensors(folder)

    def take(name: str, wanted: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise ValueError(f"{folder}: tensor {name} is missing: is this a complete NanoChat checkpoint?")
        found = tensors.pop(name)
        if found.shape != wanted:
            raise ValueError(
                f"{folder}: tensor {name} has shape {list(found.shape)}, config.json asks for {list(wanted)}: "
                "correct the one that is wrong"
            )
        return found.astype(np.float32)

    weights: dict[str, PyTree] = {
        "embed": take("model.embed_tokens.weight", expected["embed"].shape),
        "head": take("lm_head.weight", expected["head"].shape[::-1]).T.copy(),
        "layers": {
            ours: np.stack(
                [take(f"model.layers.{i}.{theirs}.weight", wanted.shape[:0:-1]).T for i in range(shape.layers)]
            )
            for ours, theirs in LAYER_TENSORS.items()
            for wanted in [expected["layers"][ours]]
        },
    }
    if tensors:
        raise ValueError(f"{folder}: tensor {sorted(tensors)[0]} is not part of the NanoChat layout: remove it")
    return shape, jax.tree.map(jnp.asarray, weights)


def export(
    shape: ModelShape,
    weights: dict[str, PyTree],
    folder: Path,
    tokenizer_json: bytes | None = None,
    bos_token_id: int = 0,
    eos_token_id: int = 1,
) -> None:
    """Write `weights` as a folder that `transformers` loads.

    Raises ValueError, naming the extra, when the shape has one that the layout has no place for.
    """
    if shape.extras:
        raise ValueError(
            f"cannot export: the NanoChat layout has no place for {', '.join(shape.extras)}: train without it to export"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "model.embed_tokens.weight": np.asarray(weights["embed"]),
        "lm_head.weight": np.asarray(weights["head"]).T,
    }
    for ours, theirs in LAYER_TENSORS.items():
        for i, matrix in enumerate(np.asarray(weights["layers"][ours])):
            tensors[f"model.layers.{i}.{theirs}.weight"] = matrix.T
    contiguous = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    config = FIXED | {
        "architectures": ["NanoChatForCausalLM"],
        "dtype": "float32",
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "max_position_embeddings": shape.context,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.key_heads,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "vocab_size": shape.vocab_size,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
        "use_cache": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    # safetensors makes its file readable for the owner alone, whatever the umask says.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    if tokenizer_json is not None:
        (folder / "tokenizer.json").write_bytes(tokenizer_json)


def _shape_of(config: dict[str, Any], path: Path) -> ModelShape:
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{path}: {name} is {config[name]!r}, this model has {value!r} built in: not importable")
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"{path}: rope_type is {rope['rope_type']!r}, only 'default' is supported: not importable")
    if config["intermediate_size"] != MLP_RATIO * config["hidden_size"]:
        raise ValueError(
            f"{path}: intermediate_size {config['intermediate_size']} is not {MLP_RATIO} x hidden_size "
            f"{config['hidden_size']}: not importable"
        )
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    return ModelShape(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        vocab_size=config["vocab_size"],
        context=config["max_position_embeddings"],
        rope_theta=rope.get("rope_theta", config.get("rope_theta", 10_000.0)),
    )


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    index = folder / "model.safetensors.index.json"
    names = (
        sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    )
    tensors = {}
    for name in names:
        with safe_open(folder / name, framework="flax") as file:  # numpy has no bfloat16 of its own
            tensors.update({key: np.asarray(file.get_tensor(key)) for key in file.keys()})  # noqa: SIM118  (no mapping)
    return tensors
