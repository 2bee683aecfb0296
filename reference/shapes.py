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


def outer_kinds(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """The tensors (weight, bias) of each part outside the blocks, for the parts it has."""
    kinds: dict[str, tuple[str, ...]] = dict.fromkeys(outer_shapes(config), ("weight",))
    return kinds | ({"final_norm": norm_kinds(config)} if config.final_norm else {})


def block_kinds(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """The tensors (weight, bias) of each part of a block."""
    norms = dict.fromkeys(("attention_norm", "mlp_norm"), norm_kinds(config))
    linears = block_shapes(config).items()
    return norms | {part: ("weight", "bias")[: 1 + bias] for part, (_, bias) in linears}


def norm_kinds(config: ModelConfig) -> tuple[str, ...]:
    """The tensors of a norm: an rms_norm has no bias, and without affine there is none at all."""
    if not config.norm_affine:
        return ()
    return ("weight", "bias") if config.norm == "layer_norm" else ("weight",)


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
