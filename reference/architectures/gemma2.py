"""Gemma 2: norms before and after attention and MLP, soft caps, a window in every other layer.

Norms multiply by 1 + weight; embeddings are multiplied by sqrt(hidden_size).
Source: transformers' modeling_gemma2; Gemma team 2024, arXiv 2408.00118.
"""

from __future__ import annotations

import math
from typing import Any

from planish.reference.architectures.entry import Architecture, Tensor
from planish.reference.architectures.read.attention import (
    attention_heads,
    sliding_types,
    sliding_window,
    windows_of_types,
)
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    GATED_MLP,
    LAYER,
    TENSORS,
    Defaults,
    read_biases,
    read_decoder,
)
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import read_rope
from planish.reference.model.config import LayerKind, ModelConfig


def config(keys: Keys) -> ModelConfig:
    count, divisor = keys.count("num_hidden_layers"), score_divisor(keys)
    slides = sliding_types(layer % 2 == 0 for layer in range(count))
    windows = windows_of_types(keys, sliding_window(keys, 4096), slides)
    features = gemma(keys, max_positions=8192)
    return ModelConfig(
        model_type="gemma2",
        **features,
        layers=tuple(LayerKind(score_divisor=divisor, rope=0, window=w) for w in windows),
        ropes=(read_rope(keys, features["head_dim"]),),
        score_cap=read_soft_cap(keys, "attn_logit_softcapping", 50.0),
        logit_cap=read_soft_cap(keys, "final_logit_softcapping", 30.0),
    )


def gemma(keys: Keys, max_positions: int) -> dict[str, Any]:
    """The features that Gemma 2 and 3 share."""
    keys.only("use_bidirectional_attention", False, False)
    activation = ("hidden_activation", "gelu_pytorch_tanh")
    return {
        **attention_heads(keys, kv_heads=4, head_dim=256),
        **read_decoder(
            keys,
            Defaults(
                max_positions=max_positions, activation=activation, tied=True, bos=(2,), eos=(1,)
            ),
        ),
        **read_biases(keys, "attention_bias", False, "qkv", "o"),
        "embed_scale": math.sqrt(keys.count("hidden_size")),
        "norm_plus_one": True,
        "norm_placement": "sandwich",
    }


def score_divisor(keys: Keys) -> float:
    """sqrt(query_pre_attn_scalar), by which attention scores are divided."""
    return math.sqrt(keys.number("query_pre_attn_scalar", 256))


def read_soft_cap(keys: Keys, name: str, default: float | None) -> float | None:
    """A soft cap; null means none."""
    if keys.values.get(name, default) is None:
        return None
    return keys.number(name, default)


SANDWICH: dict[str, str | Tensor] = {
    "attention_output_norm": LAYER + "post_attention_layernorm",
    "mlp_norm": LAYER + "pre_feedforward_layernorm",
    "mlp_output_norm": LAYER + "post_feedforward_layernorm",
}

GEMMA2 = Architecture(
    model_type="gemma2",
    config=config,
    tensors=TENSORS,
    block=ATTENTION | SANDWICH | GATED_MLP,
    examples=("google/gemma-2-2b", "google/gemma-2-9b-it"),
)
