"""Qwen3-MoE: Qwen3 with mixtures of many small experts, in some layers or all.

Source: transformers' modeling_qwen3_moe; Yang et al. 2025, arXiv 2505.09388.
"""

from __future__ import annotations

import math

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.read.attention import attention_heads, optional_window
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    GATED_MLP,
    LAYER,
    QK_NORMS,
    TENSORS,
    Defaults,
    read_biases,
    read_decoder,
)
from planish.reference.architectures.read.experts import read_moe
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import read_rope
from planish.reference.model.config import LayerKind, ModelConfig


def config(keys: Keys) -> ModelConfig:
    keys = keys.with_aliases(num_experts="num_local_experts")
    heads = attention_heads(keys, kv_heads=4)
    return ModelConfig(
        model_type="qwen3_moe",
        **heads,
        **read_decoder(keys, Defaults(max_positions=32768)),
        layers=layers(keys, heads["head_dim"]),
        ropes=(read_rope(keys, heads["head_dim"]),),
        qk_norm="head",
        **read_biases(keys, "attention_bias", False, "qkv", "o"),
        moe=read_moe(
            keys,
            experts=("num_experts", 128),
            top_k=8,
            width=keys.count("moe_intermediate_size", 768),
            normalized=keys.flag("norm_topk_prob", False),
        ),
    )


def layers(keys: Keys, head_dim: int) -> tuple[LayerKind, ...]:
    """Experts in every decoder_sparse_step-th layer except mlp_only_layers; one window for all."""
    step, window = keys.count("decoder_sparse_step", 1), optional_window(keys, 4096)
    dense = () if keys.get("mlp_only_layers") is None else keys.integers("mlp_only_layers")
    sparse = [
        layer not in dense and (layer + 1) % step == 0
        for layer in range(keys.count("num_hidden_layers"))
    ]
    divisor = math.sqrt(head_dim)
    return tuple(
        LayerKind(score_divisor=divisor, rope=0, window=window, experts=each) for each in sparse
    )


QWEN3_MOE = Architecture(
    model_type="qwen3_moe",
    config=config,
    tensors=TENSORS,
    block=ATTENTION
    | QK_NORMS
    | GATED_MLP
    | {
        "router": LAYER + "mlp.gate",
        "experts.gate": LAYER + "mlp.experts.{e}.gate_proj",
        "experts.up": LAYER + "mlp.experts.{e}.up_proj",
        "experts.down": LAYER + "mlp.experts.{e}.down_proj",
    },
    examples=("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-235B-A22B"),
)
