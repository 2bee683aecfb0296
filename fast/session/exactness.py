"""Whether a token's bits are the same in every batch, and why not.

Native linears and attention compute each row by itself, in an order that does not depend on the
others. These models differ, and are answered one request at a time, without shared prefixes:

* activations with one scale for all tokens of a chunk (O2);
* rotary angles that depend on the length of the prompt;
* mixtures of experts with float weights, which are left to XLA;
* weight-only linears by matrix tiles, which add floats in another order than up to 8 rows do.
"""

from __future__ import annotations

from typing import Any

import jax

from planish.fast.model.weights import PlacedExperts
from planish.fast.native.instruction_sets import BY_NAME, available
from planish.fast.native.library import preferred_set
from planish.fast.native.linear import is_tiled
from planish.reference.errors import notice
from planish.reference.files.load import Checkpoint
from planish.reference.linear import Linear
from planish.reference.model.config import ModelConfig
from planish.reference.model.shapes import block_kinds, outer_kinds
from planish.reference.model.weights import Mlp, Weights


def why_alone(weights: Weights, config: ModelConfig) -> str:
    """Why requests of this model are answered one at a time; empty if they need not be."""
    linears = [leaf for leaf in leaves_of(weights) if isinstance(leaf, Linear)]
    if any(linear.activation == "per_tensor" for linear in linears):
        return "its activations have one scale for all tokens of a chunk"
    if any(rope.by_length for rope in config.ropes):
        return "its rotary angles depend on the length of a prompt"
    if uses_xla_experts(weights):
        return "XLA computes its experts, which have float weights"
    if uses_matrix_tiles() and any(map(is_weight_only, linears)):
        return "matrix tiles compute its weight-only linears"
    return ""


def leaves_of(weights: Weights) -> list[object]:
    return jax.tree.leaves(weights, is_leaf=lambda leaf: isinstance(leaf, Linear))


def uses_matrix_tiles() -> bool:
    """Whether the loaded kernels multiply by matrix tiles."""
    name = preferred_set()
    return name is not None and BY_NAME[name].matmul == "amx"


def is_weight_only(linear: Linear) -> bool:
    """Whether kernels multiply a linear's quantized weight with float activations."""
    return is_tiled(linear) and linear.activation == "float"


def uses_xla_experts(weights: Weights) -> bool:
    """Whether XLA computes experts, whose sums depend on how many rows chose each of them: those
    with float weights."""
    mixtures = (block.mlp for block in weights.blocks if not isinstance(block.mlp, Mlp))
    placed: list[Any] = [one.up for one in mixtures if isinstance(one, PlacedExperts)]
    return any(not is_tiled(getattr(up, "layer", up)) for up in placed)  # a Shard has a layer


def exact_kernels(checkpoint: Checkpoint, choice: str) -> str:
    """The choice of kernels (native/library.py: choose_kernels) that serves many requests at once.

    Where `auto` or `native` would mean matrix tiles and the checkpoint has weight-only linears, the
    best set without tiles, with a notice; otherwise the choice as it is. Names insist.
    """
    sets = available()
    if choice not in ("auto", "native") or sets[0].matmul != "amx":
        return choice
    if not has_weight_only(checkpoint):
        return choice
    name = next(one.name for one in sets if one.matmul != "amx")
    notice(
        f"kernels: {name}, since with matrix tiles ({sets[0].name}) the bits of weight-only linears"
        " depend on the batch"
    )
    return name


def has_weight_only(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has quantized weights that multiply float activations."""
    config = checkpoint.config
    places: list[tuple[str, int | None]] = [(part, None) for part in outer_kinds(config)]
    for layer in range(config.num_layers):
        places += [(part, layer) for part in block_kinds(config, layer)]
    schemes = (checkpoint.scheme(part, layer) for part, layer in places)
    return any(scheme is not None and scheme.activation == "float" for scheme in schemes)
