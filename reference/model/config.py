"""The features of a model: one frozen record, filled from its config.json.

The transformer (reference/model/transformer.py) reads only these features. Only the entries of
reference/architectures/ know a model by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from planish.reference.errors import RecipeError
from planish.reference.model.rope import Rope

ATTENTIONS = ("float", "int8")
KV_CACHES = ("float32", "int8", "int8_static")


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """The features that may differ between layers of one model."""

    score_divisor: float  # scores are q kt / score_divisor, usually sqrt(head_dim)
    rope: int | None = None  # index in ModelConfig.ropes; None: queries and keys are not rotated
    window: int | None = None  # a token attends to itself and the window - 1 tokens before it
    experts: bool = False  # the MLP is a mixture of experts


@dataclass(frozen=True, kw_only=True)
class Alibi:
    """Attention with linear biases: slopes[h] * (slot - position) is added to head h's scores.

    Source: Press et al. 2022, arXiv 2108.12409. `divided`: the bias is added before the scores are
    divided, not after. `bfloat16`: slope, slot and product are rounded to bfloat16, and the bias
    is slope * slot, not relative to the token's position (the softmax is the same, the rounding
    is not).
    """

    slopes: tuple[float, ...]
    divided: bool = False
    bfloat16: bool = False


@dataclass(frozen=True, kw_only=True)
class Moe:
    """A mixture of experts: each token goes through the top_k experts with the largest logits.

    Routing weights are a softmax over all experts. `normalized`: those of the top_k experts are
    divided by their sum (norm_topk_prob in Hugging Face's configs).
    """

    num_experts: int
    top_k: int
    intermediate_size: int  # of one expert
    normalized: bool


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The features that drive the transformer; sizes count channels, tokens, heads or experts."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int  # the longest sequence: the prompt and the new tokens
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
    shared_norm: bool = False  # attention and MLP of a parallel block both read attention_norm
    embed_norm: bool = False
    final_norm: bool = True
    qk_norm: str | None = None  # head: per head, one weight | each_head: a weight per head | width

    # Positions: rotary (each layer chooses one of `ropes`), learned, linear biases, or none.
    ropes: tuple[Rope, ...] = ()
    position_offset: int | None = None  # learned positions: token t uses row t + offset
    alibi: Alibi | None = None

    activation: str
    gated_mlp: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    qkv_clip: float | None = None  # queries, keys and values are clipped to -clip .. clip
    score_cap: float | None = None  # attention scores become cap * tanh(scores / cap)
    logit_cap: float | None = None  # logits become cap * tanh(logits / cap)

    embedding_size: int  # differs from hidden_size in models that project in and out
    embed_scale: float = 1.0
    tie_embeddings: bool
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    # The user's choice (SPEC 3). int8: a scale per token and head; int8_static: calibrated scales.
    kv_cache: str = "float32"  # | int8 | int8_static
    attention: str = "float"  # | int8: both products on the codes of an INT8 cache

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def projects(self) -> bool:
        """Whether linears project between the width of the embedding and that of the blocks."""
        return self.embedding_size != self.hidden_size

    @property
    def norms_before(self) -> bool:
        """Whether attention and MLP read the normalized residual stream."""
        return self.norm_placement in ("pre", "sandwich")

    @property
    def norms_output(self) -> bool:
        """Whether the outputs of attention and MLP are normalized before they are added."""
        return self.norm_placement in ("output", "sandwich")


def repeat_layer(count: int, head_dim: int, **features: Any) -> tuple[LayerKind, ...]:
    """`count` identical layers whose scores are divided by sqrt(head_dim)."""
    return (LayerKind(score_divisor=math.sqrt(head_dim), **features),) * count


def choose_kv_cache(attention: str, given: str | None, static: bool) -> str:
    """The cache of this attention, if none is given; static: whether it has calibrated scales.

    INT8 attention needs an INT8 cache. Raises RecipeError if the cache given contradicts it.
    """
    if given is None:
        return "float32" if attention == "float" else "int8_static" if static else "int8"
    if attention == "int8" and given == "float32":
        problem, expected = "contradicts INT8 attention", "int8, int8_static, or no kv_cache"
        raise RecipeError(problem, name="kv_cache", expected=expected, found=given)
    return given
