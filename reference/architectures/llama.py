"""Llama 1, 2 and 3: RMSNorm, rotary positions (scaled from 3.1 on), grouped queries, a gated MLP.

Source: transformers' modeling_llama; Touvron et al. 2023, arXiv 2302.13971 and 2307.09288;
Dubey et al. 2024, arXiv 2407.21783.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.read.attention import attention_heads
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    GATED_MLP,
    OLD_BUFFERS,
    TENSORS,
    Defaults,
    read_biases,
    read_decoder,
)
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import read_rope
from planish.reference.model.config import ModelConfig, repeat_layer


def config(keys: Keys) -> ModelConfig:
    keys.only("rope_condense_ratio", 1, 1)  # how the first LongChat scaled positions
    heads = attention_heads(keys)
    return ModelConfig(
        model_type="llama",
        **heads,
        **read_decoder(keys, Defaults(max_positions=2048, bos=(1,), eos=(2,))),
        layers=repeat_layer(keys.count("num_hidden_layers"), heads["head_dim"], rope=0),
        ropes=(read_rope(keys, heads["head_dim"]),),
        **read_biases(keys, "attention_bias", False, "qkv", "o"),
        **read_biases(keys, "mlp_bias", False, "mlp"),
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
