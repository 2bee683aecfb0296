"""What a model's shape is: one frozen record of features, filled from a config.json.

The transformer in model.py looks only at these features; no file but the entries of
`architectures/` knows a model's name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from planish.reference.model.rope import Rope


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """What may differ from layer to layer of one model."""

    score_divisor: float  # attention's scores are q kt / this: sqrt(head_dim), as a rule
    rope: int | None = None  # which of ModelConfig.ropes turns this layer's queries and keys
    window: int | None = None  # a token reads itself and the window - 1 tokens before it
    experts: bool = False  # the MLP is a mixture of experts


@dataclass(frozen=True, kw_only=True)
class Alibi:
    """Attention with linear biases: slopes[h] * (slot - position) is added to head h's scores.

    Press et al. 2022. `divided`: added before the scores are divided, not after. `bfloat16`:
    slope, slot and product are rounded to bfloat16, and the product is not taken relative to
    the token's position (which a softmax does not see, but the rounding does).
    """

    slopes: tuple[float, ...]
    divided: bool = False
    bfloat16: bool = False


@dataclass(frozen=True, kw_only=True)
class Moe:
    """A mixture of experts: each token goes through the top_k experts that the router scores best.

    Their weights are the softmax over all experts; `normalized`: divided by the chosen ones' sum.
    """

    num_experts: int
    top_k: int
    intermediate_size: int  # of one expert
    normalized: bool


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The features that drive the transformer. Sizes are counts of entries."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int  # the longest sequence, prompt and new tokens together
    layers: tuple[LayerKind, ...]
    moe: Moe | None = None  # of the layers that have experts

    # Norms. placement: pre  x + f(norm(x))    post  norm(x + f(x))    output  x + norm(f(x))
    #                   sandwich  x + norm'(f(norm(x)))
    norm: str  # rms_norm | layer_norm
    norm_eps: float
    norm_affine: bool = True  # a layer_norm may have neither weight nor bias
    norm_bias: bool = True  # of a layer_norm; an rms_norm has none
    norm_plus_one: bool = False  # checkpoints store a norm's weight minus one
    norm_placement: str = "pre"
    parallel: bool = False  # x + attention(norm(x)) + mlp(norm'(x)), where norms are `pre`
    shared_norm: bool = False  # both parts of a parallel block read the one attention_norm
    embed_norm: bool = False
    final_norm: bool = True
    qk_norm: str | None = None  # over each head_dim: head (one weight) | each_head; over all: width

    # Positions: rotary (ropes, chosen by each layer), learned, linear biases, or none at all.
    ropes: tuple[Rope, ...] = ()
    position_offset: int | None = None  # learned positions: token t reads row t + offset
    alibi: Alibi | None = None

    activation: str
    gated_mlp: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    qkv_clip: float | None = None  # queries, keys and values are cut to -clip .. clip
    score_cap: float | None = None  # scores become cap * tanh(scores / cap)
    logit_cap: float | None = None  # and so do logits

    embedding_size: int  # differs from hidden_size where the model projects in and out
    embed_scale: float = 1.0
    tie_embeddings: bool
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    kv_cache: str = "float32"  # or int8, one scale per token and head; the user's choice

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def projects(self) -> bool:
        """Whether linears stand between the embedding's width and the blocks' width."""
        return self.embedding_size != self.hidden_size

    @property
    def norms_before(self) -> bool:
        """Whether attention and MLP read a norm of the residual stream."""
        return self.norm_placement in ("pre", "sandwich")

    @property
    def norms_output(self) -> bool:
        """Whether the outputs of attention and MLP are normalized before they are added."""
        return self.norm_placement in ("output", "sandwich")


def same_layers(count: int, head_dim: int, **features: Any) -> tuple[LayerKind, ...]:
    """Layers that are all alike, their scores divided by sqrt(head_dim)."""
    return (LayerKind(score_divisor=math.sqrt(head_dim), **features),) * count
