"""Llama 1, 2 and 3: RMSNorm, rotary positions (3.1 and later stretch them), grouped queries, a
gated MLP.

Source: transformers' modeling_llama; Touvron et al. 2023, Dubey et al. 2024.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.read.attention import attention_heads
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    GATED_MLP,
    OLD_BUFFERS,
    TENSORS,
    decoder,
    one_bias,
)
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import rope_from
from planish.reference.model.config import ModelConfig, same_layers


def config(keys: Keys) -> ModelConfig:
    keys.only("rope_condense_ratio", 1, 1)  # LongChat's first way to stretch positions
    heads = attention_heads(keys)
    return ModelConfig(
        model_type="llama",
        **heads,
        **decoder(keys, max_positions=2048, bos=(1,), eos=(2,)),
        layers=same_layers(keys.count("num_hidden_layers"), heads["head_dim"], rope=0),
        ropes=(rope_from(keys, heads["head_dim"]),),
        **one_bias(keys, "attention_bias", False, "qkv", "o"),
        **one_bias(keys, "mlp_bias", False, "mlp"),
    )


LLAMA = Architecture(
    model_type="llama",
    config=config,
    tensors=TENSORS,
    block=ATTENTION | GATED_MLP,
    examples=(
        "meta-llama/Llama-2-7b-hf",
        "meta-llama/Llama-3.1-8B",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    ),
    ignored=OLD_BUFFERS,
)
