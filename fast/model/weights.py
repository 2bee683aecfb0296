"""The reference's weights as JAX pytrees, on the device, mapped from the file where possible.

Float and INT8 tensors are passed to XLA as they are stored in the file: a float32 or int8 tensor at
a 64-byte offset is not copied and costs no resident memory until it is read. INT4 weights are
unpacked once, at load, to one int8 per weight with the zero point already subtracted:

    packed nibbles, unpacked in the graph    2.1 ms      (5632 x 2048, 2 rows, g = 128, 4 cores)
    int8 q - z, grouped dot                  0.6 ms

Twice the memory of the file, but XLA's integer dots read bytes and nothing smaller. For the
native kernels a weight stays as it is in the file, in tiles, and is neither copied nor read.

Layouts of a QuantizedWeight that are XLA's own, without zero points:

    grouped   INT4, integer dots   codes q - z int8 [G, N, g], padded with 0; scale float32 [G, N]
    centred   weight-only          codes q - z int8 [N, K]; scale float32 [N, G], INT8: G = 1

With an offset, which other programs write, centred codes are q, uint8; it is float32 [N, G].
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np

from planish.fast.placement import put
from planish.reference.grids import to_groups
from planish.reference.linear import Linear
from planish.reference.model.attention import AttentionScales
from planish.reference.model.experts import ARRAYS, BESIDE, linear_of, stack_experts
from planish.reference.model.layers import Norm
from planish.reference.model.weights import NORMS, Block, Experts, Mlp, Weights
from planish.reference.quantized import QuantizedWeight, centred_codes

Array = np.ndarray | jax.Array  # on the host while it is converted, on the device afterwards


@dataclass(frozen=True)
class PlacedExperts:
    """A mixture's router, and its experts' linears as stacks.

    Each array of a stack has a leading axis of experts (reference/model/experts.py).
    """

    router: Linear
    gate: Linear | None
    up: Linear
    down: Linear


def _register(cls: type, data: tuple[str, ...], meta: tuple[str, ...] = ()) -> None:
    jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta)


_register(Norm, ("weight", "bias"), ("kind", "eps"))
_register(QuantizedWeight, ARRAYS, ("scheme", "shape", "layout"))
_register(Linear, ("weight", *BESIDE))
_register(PlacedExperts, ("router", "gate", "up", "down"))
_register(Mlp, ("gate", "up", "down"))
_register(AttentionScales, ("q", "k", "v"))
_register(Block, (*NORMS, "q", "k", "v", "o", "mlp", "attention_scales"), ("kind",))
_register(Weights, tuple(field.name for field in fields(Weights)))


def device_weights(weights: Weights) -> Weights:
    """Read, convert and place every block, one at a time. Tied tensors stay one array."""
    placed: dict[int, jax.Array] = {}

    def put_once(array: np.ndarray) -> jax.Array:
        if id(array) not in placed:
            placed[id(array)] = put(array)
        return placed[id(array)]

    outer = replace(weights, blocks=())
    blocks = tuple(put(place_block(block)) for block in weights.blocks)
    return replace(jax.tree.map(put_once, place_block(outer)), blocks=blocks)


def place_block(tree: Any) -> Any:
    """Each linear of a block (or of any tree) in the layout that runs."""

    def place(leaf: Any) -> Any:
        if isinstance(leaf, Experts):
            return place_experts(leaf)
        return place_linear(leaf) if isinstance(leaf, Linear) else leaf

    return jax.tree.map(place, tree, is_leaf=lambda leaf: isinstance(leaf, Linear | Experts))


def place_experts(experts: Experts) -> PlacedExperts:
    """All experts' linears in the layout that runs, stacked.

    A file that already has this layout (tiles, INT8 codes) is neither copied nor read.
    """
    whole = stack_experts(experts.experts)
    gate = None if whole.gate is None else place_stack(whole.gate)
    return PlacedExperts(
        place_linear(experts.router), gate, place_stack(whole.up), place_stack(whole.down)
    )


def place_stack(stack: Linear) -> Linear:
    """place_linear of every expert."""
    weight: Any = stack.weight
    if not isinstance(weight, QuantizedWeight) or is_placed(weight):
        return stack
    each = [place_linear(linear_of(stack, index)) for index in range(len(weight.codes))]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *each)


def place_linear(layer: Linear) -> Linear:
    """One linear in the layout that runs, still as NumPy arrays."""
    weight = layer.weight
    if not isinstance(weight, QuantizedWeight) or is_placed(weight):
        return layer
    to_xla = to_centred if weight.scheme.activation == "float" else to_grouped
    return replace(layer, weight=to_xla(weight))


def is_placed(weight: QuantizedWeight) -> bool:
    """Whether a weight has the layout that runs: tiles, or INT8 codes for INT8 activations."""
    integer = weight.scheme.bits == 8 and weight.scheme.activation != "float"
    return integer or weight.layout != "canonical"


def to_grouped(weight: QuantizedWeight) -> QuantizedWeight:
    """Canonical INT4 for integer dots: the layout `grouped`."""
    codes = to_groups(centred_codes(weight), weight.scheme.group_size).transpose(1, 0, 2)
    scale = np.ascontiguousarray(weight.scale.astype(np.float32).T)
    codes = np.ascontiguousarray(codes)
    return replace(weight, codes=codes, scale=scale, zero_point=None, layout="grouped")


def to_centred(weight: QuantizedWeight) -> QuantizedWeight:
    """Canonical codes for weight-only products: the layout `centred`."""
    scale = weight.scale.astype(np.float32)
    offset = None if weight.offset is None else weight.offset.astype(np.float32)
    if weight.scheme.bits == 8 and weight.scheme.granularity != "per_group":
        scale = np.broadcast_to(scale, (weight.shape[0], 1)).copy()
    codes = centred_codes(weight)
    placed = replace(weight, codes=codes, scale=scale, offset=offset)
    return replace(placed, zero_point=None, layout="centred")
