"""Qwen2 and Qwen2.5: Llama's graph with biases on queries, keys and values.

Read this one as the example of an entry. It has two pieces:

    config    config.json -> ModelConfig. A feature that the transformer knows is switched on by
              name (here qkv_bias and windows); the defaults are those of transformers'
              configuration_qwen2, for keys that a checkpoint leaves out
    tensors   under which names our parts lie: embed, q, gate, ... -> model.embed_tokens, ...

What it shares with others is read by the functions of read/. Source:
transformers' modeling_qwen2; Yang et al. 2024.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.read.attention import (
    attention_heads,
    layers_with,
    sliding_types,
    switched_window,
    windows_of_types,
)
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    GATED_MLP,
    OLD_BUFFERS,
    TENSORS,
    decoder,
)
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import rope_from
from planish.reference.model.config import ModelConfig


def config(keys: Keys) -> ModelConfig:
    heads = attention_heads(keys, kv_heads=32)
    return ModelConfig(
        model_type="qwen2",
        **heads,
        **decoder(keys, max_positions=32768),
        layers=layers_with(windows(keys), heads["head_dim"]),
        ropes=(rope_from(keys, heads["head_dim"]),),
        qkv_bias=True,
    )


def windows(keys: Keys) -> tuple[int | None, ...]:
    """The window of each layer: none up to max_window_layers, unless layer_types says otherwise."""
    window, layers = switched_window(keys, 4096), keys.count("num_hidden_layers")
    first = keys.count("max_window_layers", 28, least=0)
    slides = sliding_types(window is not None and layer >= first for layer in range(layers))
    return windows_of_types(keys, window, slides)


QWEN2 = Architecture(
    model_type="qwen2",
    config=config,
    tensors=TENSORS,
    block=ATTENTION | GATED_MLP,
    examples=("Qwen/Qwen2-7B", "Qwen/Qwen2.5-0.5B-Instruct"),
    ignored=OLD_BUFFERS,
)
