"""SmolLM3: Llama's graph; every fourth layer has no rotary positions.

Source: transformers' modeling_smollm3; Bakouch et al. 2025.
"""

from __future__ import annotations

import math

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.read.attention import (
    attention_heads,
    optional_window,
    sliding_types,
    windows_of_types,
)
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    GATED_MLP,
    TENSORS,
    Defaults,
    read_biases,
    read_decoder,
)
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import read_rope
from planish.reference.model.config import LayerKind, ModelConfig


def config(keys: Keys) -> ModelConfig:
    heads = attention_heads(keys, kv_heads=4)
    return ModelConfig(
        model_type="smollm3",
        **heads,
        **read_decoder(
            keys, Defaults(max_positions=32768, tied=True, bos=(128000,), eos=(128001,))
        ),
        layers=layers(keys, heads["head_dim"]),
        ropes=(read_rope(keys, heads["head_dim"], theta=2e6),),
        **read_biases(keys, "attention_bias", False, "qkv", "o"),
        **read_biases(keys, "mlp_bias", False, "mlp"),
    )


def layers(keys: Keys, head_dim: int) -> tuple[LayerKind, ...]:
    """Layers with rotary positions, and layers without, which may have a window."""
    rotary, window = rotary_layers(keys), optional_window(keys)
    slides = sliding_types(window is not None and not rotates for rotates in rotary)
    return tuple(
        LayerKind(score_divisor=math.sqrt(head_dim), rope=0 if rotates else None, window=own)
        for rotates, own in zip(rotary, windows_of_types(keys, window, slides), strict=True)
    )


def rotary_layers(keys: Keys) -> list[bool]:
    """no_rope_layers has, despite its name, a 1 for each layer with rotary positions."""
    count, every = keys.count("num_hidden_layers"), keys.count("no_rope_layer_interval", 4)
    if keys.get("no_rope_layers") is None:
        return [(layer + 1) % every != 0 for layer in range(count)]
    rotary = keys.integers("no_rope_layers")
    if len(rotary) != count or not set(rotary) <= {0, 1}:
        raise keys.fail("no_rope_layers", f"{count} of 0 or 1, one for each layer", rotary)
    return [bool(each) for each in rotary]


SMOLLM3 = Architecture(
    model_type="smollm3",
    config=config,
    tensors=TENSORS,
    block=ATTENTION | GATED_MLP,
    examples=("HuggingFaceTB/SmolLM3-3B",),
)
