"""The shape that every tensor must have, from the config alone."""

from __future__ import annotations

from reference.config import ModelConfig

Shape = tuple[int, ...]


def outer_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shapes of the weights outside the blocks, for the parts that this config has."""
    width, narrow = config.hidden_size, config.embedding_size
    shapes: dict[str, Shape] = {
        "embed": (config.vocab_size, narrow),
        "head": (config.vocab_size, narrow),
    }
    if config.position_offset is not None:
        shapes["positions"] = (config.max_positions + config.position_offset, width)
    if config.projects:
        shapes |= {"project_in": (width, narrow), "project_out": (narrow, width)}
    return shapes


def block_shapes(config: ModelConfig) -> dict[str, tuple[Shape, bool]]:
    """Shape [N, K] of a block's linears and whether each has a bias, in the order of execution."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[Shape, bool]] = {
        "q": ((queries, width), config.qkv_bias),
        "k": ((keys, width), config.qkv_bias),
        "v": ((keys, width), config.qkv_bias),
        "o": ((width, queries), config.o_bias),
        "gate": ((inner, width), config.mlp_bias),
        "up": ((inner, width), config.mlp_bias),
        "down": ((width, inner), config.mlp_bias),
    }
    return shapes if config.gated_mlp else {k: v for k, v in shapes.items() if k != "gate"}
