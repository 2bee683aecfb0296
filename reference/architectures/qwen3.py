"""Qwen3: Llama's graph; queries and keys are normalized per head.

Source: transformers' modeling_qwen3; Yang et al. 2025, arXiv 2505.09388.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.qwen2 import windows
from planish.reference.architectures.read.attention import attention_heads, make_layers
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    GATED_MLP,
    QK_NORMS,
    TENSORS,
    Defaults,
    read_biases,
    read_decoder,
)
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import read_rope
from planish.reference.model.config import ModelConfig


def config(keys: Keys) -> ModelConfig:
    heads = attention_heads(keys, kv_heads=32, head_dim=128)
    return ModelConfig(
        model_type="qwen3",
        **heads,
        **read_decoder(keys, Defaults(max_positions=32768)),
        layers=make_layers(windows(keys), heads["head_dim"]),
        ropes=(read_rope(keys, heads["head_dim"]),),
        qk_norm="head",
        **read_biases(keys, "attention_bias", False, "qkv", "o"),
    )


QWEN3 = Architecture(
    model_type="qwen3",
    config=config,
    tensors=TENSORS,
    block=ATTENTION | QK_NORMS | GATED_MLP,
    examples=("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"),
)
