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

from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np

from planish.reference.grids import grouped
from planish.reference.linear import Linear, QuantizedWeight, centred_codes
from planish.reference.model.experts import linear_of, together
from planish.reference.model.layers import Norm
from planish.reference.model.weights import NORMS, Block, Experts, Mlp, Weights
from planish.reference.tiles import TiledWeight

Array = np.ndarray | jax.Array  # on the host while it is converted, on the device afterwards


@dataclass(frozen=True)
class GroupedWeight:
    """INT4 for integer dots: codes q - z, int8 [G, N, g] (padded with 0), scale float32 [G, N]."""

    codes: Array
    scale: Array


@dataclass(frozen=True)
class PlacedExperts:
    """A mixture's router, and its experts' linears as stacks: an axis of experts in front of each
    array (reference/stack.py)."""

    router: Linear
    gate: Linear | None
    up: Linear
    down: Linear


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


_register(Norm, ("weight", "bias"), ("kind", "eps"))
_register(QuantizedWeight, ("codes", "scale", "zero_point"), ("bits", "in_features", "group_size"))
_register(
    TiledWeight,
    ("codes", "scale", "zero_point"),
    ("bits", "out_features", "in_features", "group_size"),
)
_register(GroupedWeight, ("codes", "scale"))
_register(ScaledWeight, ("codes", "scale"), ("group_size",))
_register(Linear, ("weight", "bias", "activation_scale"), ("activation",))
_register(PlacedExperts, ("router", "gate", "up", "down"))
_register(Mlp, ("gate", "up", "down"))
_register(Block, (*NORMS, "q", "k", "v", "o", "mlp"), ("kind",))
_register(Weights, tuple(field.name for field in fields(Weights)))


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
        if isinstance(leaf, Experts):
            return place_experts(leaf)
        return place_linear(leaf) if isinstance(leaf, Linear) else leaf

    return jax.tree.map(place, tree, is_leaf=lambda leaf: isinstance(leaf, Linear | Experts))


def place_experts(experts: Experts) -> PlacedExperts:
    """All experts' linears in the form that their activations want, one behind the other.

    What lies so in the file, in tiles or as INT8 codes, is neither copied nor read.
    """
    whole = together(experts.experts)
    gate = None if whole.gate is None else place_stack(whole.gate)
    return PlacedExperts(
        place_linear(experts.router), gate, place_stack(whole.up), place_stack(whole.down)
    )


def place_stack(stack: Linear) -> Linear:
    """place_linear of every expert."""
    weight: Any = stack.weight
    if not isinstance(weight, QuantizedWeight) or is_placed(stack):
        return stack
    each = [place_linear(linear_of(stack, index)) for index in range(len(weight.codes))]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *each)


def place_linear(layer: Linear) -> Linear:
    """The portable form of one linear's weight, still as NumPy arrays."""
    weight = layer.weight
    if not isinstance(weight, QuantizedWeight) or is_placed(layer):
        return layer
    scaled = layer.activation == "float"
    placed: Any = _scaled(weight) if scaled else _grouped(weight)
    return replace(layer, weight=placed)


def is_placed(layer: Linear) -> bool:
    """Whether a QuantizedWeight is what XLA works on: INT8 codes for INT8 activations."""
    weight: Any = layer.weight
    return weight.bits == 8 and layer.activation != "float"


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
