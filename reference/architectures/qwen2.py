"""Qwen2 and Qwen2.5: Llama's graph with biases on queries, keys and values.

This entry is the example to read. It has two pieces:

    config    config.json -> ModelConfig. Features of the transformer are switched on by name (here
              qkv_bias and windows); for keys that a checkpoint leaves out, the defaults are those
              of transformers' configuration_qwen2
    tensors   the names of modules in a checkpoint: embed, q, gate, ... -> model.embed_tokens, ...

The functions of read/ read what several entries share. Source: transformers' modeling_qwen2;
Yang et al. 2024, arXiv 2407.10671.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.read.attention import (
    attention_heads,
    make_layers,
    optional_window,
    sliding_types,
    windows_of_types,
)
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
from planish.reference.model.config import ModelConfig


def config(keys: Keys) -> ModelConfig:
    heads = attention_heads(keys, kv_heads=32)
    return ModelConfig(
        model_type="qwen2",
        **heads,
        **read_decoder(keys, Defaults(max_positions=32768)),
        layers=make_layers(windows(keys), heads["head_dim"]),
        ropes=(read_rope(keys, heads["head_dim"]),),
        qkv_bias=True,
    )


def windows(keys: Keys) -> tuple[int | None, ...]:
    """The window of each layer: none below max_window_layers, unless layer_types differs."""
    window, layers = optional_window(keys, 4096), keys.count("num_hidden_layers")
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
