"""SmolLM3: Llama's graph, without any positions in every fourth layer.

Source: transformers' modeling_smollm3; Bakouch et al. 2025.
"""

from __future__ import annotations

import math

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.read.attention import (
    attention_heads,
    sliding_types,
    switched_window,
    windows_of_types,
)
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    GATED_MLP,
    TENSORS,
    decoder,
    one_bias,
)
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import rope_from
from planish.reference.model.config import LayerKind, ModelConfig


def config(keys: Keys) -> ModelConfig:
    heads = attention_heads(keys, kv_heads=4)
    return ModelConfig(
        model_type="smollm3",
        **heads,
        **decoder(keys, max_positions=32768, tied=True, bos=(128000,), eos=(128001,)),
        layers=layers(keys, heads["head_dim"]),
        ropes=(rope_from(keys, heads["head_dim"], theta=2e6),),
        **one_bias(keys, "attention_bias", False, "qkv", "o"),
        **one_bias(keys, "mlp_bias", False, "mlp"),
    )


def layers(keys: Keys, head_dim: int) -> tuple[LayerKind, ...]:
    """Layers that turn, and layers that do not, which may have a window."""
    turned, window = turned_layers(keys), switched_window(keys)
    slides = sliding_types(window is not None and not turns for turns in turned)
    return tuple(
        LayerKind(score_divisor=math.sqrt(head_dim), rope=0 if turns else None, window=own)
        for turns, own in zip(turned, windows_of_types(keys, window, slides), strict=True)
    )


def turned_layers(keys: Keys) -> list[bool]:
    """no_rope_layers has, its name notwithstanding, a 1 for each layer that has positions."""
    count, every = keys.count("num_hidden_layers"), keys.count("no_rope_layer_interval", 4)
    if keys.get("no_rope_layers") is None:
        return [(layer + 1) % every != 0 for layer in range(count)]
    turned = keys.integers("no_rope_layers")
    if len(turned) != count or not set(turned) <= {0, 1}:
        raise keys.fail("no_rope_layers", f"{count} of 0 or 1, one for each layer", turned)
    return [bool(each) for each in turned]


SMOLLM3 = Architecture(
    model_type="smollm3",
    config=config,
    tensors=TENSORS,
    block=ATTENTION | GATED_MLP,
    examples=("HuggingFaceTB/SmolLM3-3B",),
)
