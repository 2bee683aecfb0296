"""The reference's weights as JAX pytrees, on the device, mapped from the file where possible.

Float and INT8 tensors are handed to XLA as they lie in the file: a float32 or int8 tensor at a
64-byte offset is not copied and costs no resident memory until it is read. INT4 weights are
unpacked once, at load, into one int8 per weight with the zero point already subtracted:

    packed nibbles, unpacked in the graph    2.1 ms      (5632 x 2048, 2 rows, g = 128, 4 cores)
    int8 q - z, grouped dot                  0.6 ms

Twice the memory of the file, but XLA's integer dots read bytes and nothing smaller. For the
native kernels a weight stays as it lies in the file, in tiles, and is neither copied nor read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from reference.block import Block, Weights
from reference.grids import grouped
from reference.layers import Norm
from reference.linear import Linear, QuantizedWeight, centred_codes
from reference.tiles import TiledWeight

Array = np.ndarray | jax.Array  # on the host while it is converted, on the device afterwards


@dataclass(frozen=True)
class GroupedWeight:
    """INT4 for integer dots: codes q - z, int8 [G, N, g] (padded with 0), scale float32 [G, N]."""

    codes: Array
    scale: Array


@dataclass(frozen=True)
class ScaledWeight:
    """Weight-only: codes (INT4: q - z) int8 [N, K], scale float32 [N, G].

    group_size is the number of inputs that share a scale; INT8 has one group a row.
    """

    codes: Array
    scale: Array
    group_size: int


def _register(cls: type, data: tuple[str, ...], meta: tuple[str, ...] = ()) -> None:
    jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta)


_register(Norm, ("weight", "bias"))
_register(QuantizedWeight, ("codes", "scale", "zero_point"), ("bits", "in_features", "group_size"))
_register(
    TiledWeight,
    ("codes", "scale", "zero_point"),
    ("bits", "out_features", "in_features", "group_size"),
)
_register(GroupedWeight, ("codes", "scale"))
_register(ScaledWeight, ("codes", "scale"), ("group_size",))
_register(Linear, ("weight", "bias", "activation_scale"), ("activation",))
_register(Block, ("attention_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down"))
_register(
    Weights,
    ("embed", "positions", "project_in", "blocks", "final_norm", "project_out", "head"),
)


def device_weights(weights: Weights) -> Weights:
    """Every block read, converted and placed, one at a time. Tied tensors stay one array."""
    placed: dict[int, jax.Array] = {}

    def put(array: np.ndarray) -> jax.Array:
        if id(array) not in placed:
            placed[id(array)] = _put(array)
        return placed[id(array)]

    outer = replace(weights, blocks=())
    blocks = tuple(jax.tree.map(_put, place_block(block)) for block in weights.blocks)
    return replace(jax.tree.map(put, place_block(outer)), blocks=blocks)


def _put(array: np.ndarray) -> jax.Array:
    return jax.device_put(array, may_alias=True)


def place_block(tree: Any) -> Any:
    """Each linear of a block (or of any tree) in the form that its activations want."""

    def place(leaf: Any) -> Any:
        return place_linear(leaf) if isinstance(leaf, Linear) else leaf

    return jax.tree.map(place, tree, is_leaf=lambda leaf: isinstance(leaf, Linear))


def place_linear(layer: Linear) -> Linear:
    """The portable form of one linear's weight, still as NumPy arrays."""
    weight = layer.weight
    placed: Any = weight
    if isinstance(weight, QuantizedWeight) and layer.activation == "float":
        placed = _scaled(weight)
    elif isinstance(weight, QuantizedWeight) and weight.bits == 4:
        placed = _grouped(weight)
    return replace(layer, weight=placed)


def _grouped(weight: QuantizedWeight) -> GroupedWeight:
    codes = grouped(centred_codes(weight), weight.group_size).transpose(1, 0, 2)
    scale = weight.scale.astype(np.float32).T
    return GroupedWeight(np.ascontiguousarray(codes), np.ascontiguousarray(scale))


def _scaled(weight: QuantizedWeight) -> ScaledWeight:
    """INT8 codes as they are; INT4 codes with their zero point subtracted."""
    rows, cols = weight.shape
    if weight.bits == 8:
        return ScaledWeight(weight.codes, np.broadcast_to(weight.scale, (rows, 1)).copy(), cols)
    size = cols if weight.group_size == -1 else weight.group_size
    return ScaledWeight(centred_codes(weight), weight.scale.astype(np.float32), size)
