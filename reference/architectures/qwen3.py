"""Qwen3: queries and keys of each head are normalized; no biases.

Source: transformers' modeling_qwen3; Yang et al. 2025.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.qwen2 import windows
from planish.reference.architectures.read.attention import attention_heads, layers_with
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    GATED_MLP,
    QK_NORMS,
    TENSORS,
    decoder,
    one_bias,
)
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import rope_from
from planish.reference.model.config import ModelConfig


def config(keys: Keys) -> ModelConfig:
    heads = attention_heads(keys, kv_heads=32, head_dim=128)
    return ModelConfig(
        model_type="qwen3",
        **heads,
        **decoder(keys, max_positions=32768),
        layers=layers_with(windows(keys), heads["head_dim"]),
        ropes=(rope_from(keys, heads["head_dim"]),),
        qk_norm="head",
        **one_bias(keys, "attention_bias", False, "qkv", "o"),
    )


QWEN3 = Architecture(
    model_type="qwen3",
    config=config,
    tensors=TENSORS,
    block=ATTENTION | QK_NORMS | GATED_MLP,
    examples=("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"),
)
