"""The model in NumPy and float64, token by token and head by head, written from the formulas of its docstring."""

import numpy as np

from nanocode.config.shape import ModelShape


def norm(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def turned(x: np.ndarray, position: int, theta: float, channels: int) -> np.ndarray:
    """RoPE of one head's vector: channel pair (i, i + channels/2) turned by -position / theta^(2i/channels)."""
    out = x.copy()
    half = channels // 2
    for i in range(half):
        angle = position / theta ** (2 * i / channels)
        a, b = x[i], x[i + half]
        out[i], out[i + half] = a * np.cos(angle) + b * np.sin(angle), b * np.cos(angle) - a * np.sin(angle)
    return out


def logits(shape: ModelShape, weights: dict, tokens: list[int], starts: list[int]) -> np.ndarray:
    """[T, V] for one row; `starts` are the positions at which documents begin."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items() if name != "layers"}
    layers = {name: np.asarray(value, np.float64) for name, value in weights["layers"].items()}
    begin = [max(s for s in starts if s <= t) for t in range(len(tokens))]
    embedded = norm(w["embed"][tokens])
    x, h, groups = embedded, shape.head_width, shape.heads // shape.key_heads
    for n in range(shape.layers):
        if shape.residual_scalars:
            x = layers["residual_scale"][n] * x + layers["embedding_scale"][n] * embedded
        inner = norm(x)
        q = (inner @ layers["query"][n]).reshape(len(tokens), shape.heads, h)
        k = (inner @ layers["key"][n]).reshape(len(tokens), shape.key_heads, h)
        v = (inner @ layers["value"][n]).reshape(len(tokens), shape.key_heads, h)
        if shape.value_embeddings:
            extra = w["value_embed"][tokens].reshape(len(tokens), shape.key_heads, h)
            v = v + layers["value_gain"][n][:, None] * extra
        keys = k.copy()
        for head in range(round(shape.previous_token_keys * shape.key_heads)):
            for t in range(len(tokens)):
                keys[t, head] = k[t - 1, head] if t > begin[t] else 0
        channels = round(shape.rope_share * h)
        mixed = np.zeros_like(q)
        for head in range(shape.heads):
            for t in range(len(tokens)):
                seen = range(begin[t], t + 1)
                query = norm(turned(q[t, head], t - begin[t], shape.rope_theta, channels))
                scores = np.array(
                    [
                        query @ norm(turned(keys[s, head // groups], s - begin[s], shape.rope_theta, channels))
                        for s in seen
                    ]
                ) / np.sqrt(h)
                share = np.exp(scores - scores.max())
                share /= share.sum()
                mixed[t, head] = sum(a * v[s, head // groups] for a, s in zip(share, seen, strict=True))
        x = x + mixed.reshape(len(tokens), -1) @ layers["out"][n]
        x = x + np.maximum(norm(x) @ layers["up"][n], 0) ** 2 @ layers["down"][n]
    head_matrix = w["embed"].T if shape.tied_embeddings else w["head"]
    return 15 * np.tanh(norm(x) @ head_matrix / 15)
