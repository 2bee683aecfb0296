"""Mistral: Llama's graph with sliding window attention.

Source: transformers' modeling_mistral; Jiang et al. 2023, arXiv 2310.06825.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.read.attention import attention_heads, sliding_window
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    GATED_MLP,
    OLD_BUFFERS,
    TENSORS,
    Defaults,
    read_decoder,
)
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import read_rope
from planish.reference.model.config import ModelConfig, repeat_layer


def config(keys: Keys) -> ModelConfig:
    keys.only("layer_types", None)  # windows in some layers only: Ministral
    heads, window = attention_heads(keys, kv_heads=8), sliding_window(keys, 4096)
    return ModelConfig(
        model_type="mistral",
        **heads,
        **read_decoder(keys, Defaults(max_positions=131072, bos=(1,), eos=(2,))),
        layers=repeat_layer(
            keys.count("num_hidden_layers"), heads["head_dim"], rope=0, window=window
        ),
        ropes=(read_rope(keys, heads["head_dim"]),),
    )


MISTRAL = Architecture(
    model_type="mistral",
    config=config,
    tensors=TENSORS,
    block=ATTENTION | GATED_MLP,
    examples=("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.3"),
    ignored=OLD_BUFFERS,
)
