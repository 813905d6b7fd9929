"""The shape of a model: everything that decides which tensors it has and what a token costs.

No jax here: the controller and the command line read it too. With every switch off this is the layout of
Hugging Face's `NanoChatForCausalLM`.
"""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MLP_RATIO = 4
"""F / D. The layout allows others; every published NanoChat model has 4."""


class ModelShape(BaseModel):
    """Sizes and switches of one transformer. Frozen: it is part of a run's identity."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    layers: int = Field(gt=0)
    """Blocks of attention and feed-forward, one on top of the other."""
    width: int = Field(gt=0)
    """Numbers that stand for a token between the layers; feed-forward is four times as wide."""
    heads: int = Field(gt=0)
    """Query heads of a layer's attention; each has width / heads channels."""
    kv_heads: int | None = Field(default=None, gt=0)
    """Key/value heads, each shared by heads / kv_heads query heads. None: as many as `heads`."""
    vocab_size: int = Field(gt=0)
    """Tokens that the tokenizer knows, the special ones among them."""
    context: int = Field(gt=0)
    """Longest row in tokens."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotations that tell positions apart (RoPE): larger for longer contexts."""

    previous_token_keys: float = Field(default=0.0, ge=0, le=1)
    """Share of the key/value heads whose key at position s is made from the token at s - 1: copying then needs one
    layer instead of two, so that a tiny model learns it in seconds."""
    tied_embeddings: bool = False
    """One table for reading tokens and for guessing them: a small vocabulary's words are learned from both."""
    rope_share: float = Field(default=1.0, ge=0, le=1)
    """Share of a head's channels that rotate (partial RoPE); the rest sees content only."""
    residual_scalars: bool = False
    """Before each layer x becomes a·x + b·x0, with x0 the normed embedding and a, b learned per layer (nanochat)."""
    value_embeddings: bool = False
    """A second embedding table, added to the values of every layer with a learned gain per key/value head."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}: change one of them")
        if self.head_width % 2:
            raise ValueError(
                f"head width {self.head_width} (width {self.width} / heads {self.heads}) is odd, RoPE rotates pairs: "
                "change width or heads"
            )
        if self.heads % self.key_heads:
            raise ValueError(
                f"heads {self.heads} is not divisible by kv_heads {self.key_heads}: change one of them or leave "
                "kv_heads out"
            )
        shifted = self.previous_token_keys * self.key_heads
        if abs(shifted - round(shifted)) > 1e-6:
            raise ValueError(
                f"previous_token_keys {self.previous_token_keys} of {self.key_heads} key/value heads is {shifted:g} "
                f"heads: set a multiple of 1/{self.key_heads}"
            )
        rotated = self.rope_share * self.head_width
        if abs(rotated - round(rotated)) > 1e-6 or round(rotated) % 2:
            raise ValueError(
                f"rope_share {self.rope_share} of head width {self.head_width} is {rotated:g} channels, RoPE rotates "
                f"pairs: set a multiple of {2 / self.head_width:g}"
            )
        return self

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def mlp_width(self) -> int:
        return MLP_RATIO * self.width

    @property
    def shifted_key_heads(self) -> int:
        """How many key/value heads (the first ones) take their keys from the previous token."""
        return round(self.previous_token_keys * self.key_heads)

    @property
    def rope_channels(self) -> int:
        """How many channels of a head (the first ones) rotate; even."""
        return round(self.rope_share * self.head_width)

    @property
    def extras(self) -> list[str]:
        """The switches that are on, as `name=value`: what Hugging Face's layout has no place for."""
        return [
            f"{name}={getattr(self, name)}"
            for name in ("previous_token_keys", "tied_embeddings", "rope_share", "residual_scalars", "value_embeddings")
            if getattr(self, name) != type(self).model_fields[name].default
        ]

    def matmul_parameters(self) -> int:
        """Parameters that multiply every token: the layers' matrices and the head (tied or not), no lookups."""
        attention = 2 * self.width * self.width + 2 * self.width * self.key_heads * self.head_width
        return self.layers * (attention + 2 * self.width * self.mlp_width) + self.width * self.vocab_size

    def parameters(self) -> int:
        """All learned numbers."""
        lookups = 0 if self.tied_embeddings else self.vocab_size * self.width
        if self.value_embeddings:
            lookups += self.vocab_size * self.key_heads * self.head_width + self.layers * self.key_heads
        if self.residual_scalars:
            lookups += 2 * self.layers
        return self.matmul_parameters() + lookups

    def flops_per_token(self, context: int) -> float:
        """Floating-point operations to train on one token of a row of `context` tokens.

        6·N for the matrices (2 forward, 4 backward; Kaplan et al. 2020, arXiv 2001.08361, table 1) plus attention:
        12·L·D·T when every query sees all T keys (PaLM, Chowdhery et al. 2022, arXiv 2204.02311, appendix B). A causal
        query sees (T + 1) / 2 keys on average, so half of that is counted; norms, softmax and the optimizer are not.
        """
        return 6 * self.matmul_parameters() + 12 * self.layers * self.width * (context + 1) / 2
