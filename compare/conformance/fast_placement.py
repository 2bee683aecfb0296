"""Weights and caches on their way into planish's engine and back.

Weights go in as the reference's types and are placed on the device in the form that runs: for XLA,
or in the native kernels' tiles. Weights and cache slots come back as NumPy arrays in canonical
order, so that the checks need not know in which order an engine stores them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from planish.fast.model import weights as fast_weights
from planish.fast.model.cache import LayerCache
from planish.fast.native import linear as native_linear
from planish.fast.native.cache import KEY_SLOTS, CodedSlots, TiledSlots
from planish.reference.linear import Linear
from planish.reference.model.attention import AttentionScales
from planish.reference.model.weights import Experts
from planish.reference.quantized import QuantizedWeight, centred_codes, to_layout

CACHED_WEIGHTS = 16  # enough for the linears of one block


class Placer:
    """Places weights on the device as the engine does; `native`: quantized ones in tiles.

    It caches the last few, because the checks ask several questions about each weight.
    """

    def __init__(self, native: bool):
        self.native = native
        self._cached: OrderedDict[int, tuple[Any, Any]] = OrderedDict()

    def __call__(self, tree: Any) -> Any:
        """Place a linear, a norm, a block or all outer weights."""
        return jax.tree.map(self._place, tree, is_leaf=lambda x: isinstance(x, Linear | Experts))

    def _place(self, leaf: Any) -> Any:
        if not isinstance(leaf, Linear | Experts):
            return jax.device_put(leaf)
        if id(leaf) not in self._cached:
            layout = convert_to_tiles(leaf) if self.native else leaf
            self._cached[id(leaf)] = leaf, jax.device_put(fast_weights.place_block(layout))
        while len(self._cached) > CACHED_WEIGHTS:
            self._cached.popitem(last=False)
        return self._cached[id(leaf)][1]

    def fuses(self, linears: Sequence[Linear]) -> bool:
        """Whether one native call computes them all."""
        return self.native and native_linear.can_fuse([self(linear) for linear in linears])


def convert_to_tiles(tree: Any) -> Any:
    """Convert every quantized weight of a tree to the layout that the kernels read."""

    def is_leaf(leaf: Any) -> bool:
        return isinstance(leaf, QuantizedWeight | Experts)

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Experts):
            return Experts(leaf.router, [convert_to_tiles(expert) for expert in leaf.experts])
        return to_layout(leaf, "tiles") if isinstance(leaf, QuantizedWeight) else leaf

    return jax.tree.map(convert, tree, is_leaf=is_leaf)


def is_native(placed: Linear) -> bool:
    """Whether a native kernel computes this placed linear; XLA computes float ones in any case."""
    return native_linear.is_tiled(placed)


def read_weight(placed: Linear) -> dict[str, Any]:
    """Read a placed weight back: its values, or its codes q - z and scales."""
    weight: Any = placed.weight
    if not isinstance(weight, QuantizedWeight):
        return {"values": weight}
    if weight.layout == "grouped":  # [G, N, g] and [G, N]
        codes = np.asarray(weight.codes).transpose(1, 0, 2)
        return {"codes": codes.reshape(len(codes), -1), "scale": np.asarray(weight.scale).T}
    if weight.layout == "tiles":
        weight = to_layout(jax.tree.map(np.asarray, weight), "canonical")
        weight = replace(weight, codes=centred_codes(weight))
    more = {"offset": weight.offset, "permutation": weight.permutation}
    found = {"codes": weight.codes, "scale": weight.scale}
    return found | {name: array for name, array in more.items() if array is not None}


def tile_keys(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[B, G, S, Hd] each -> keys [B, G, S / 16, Hd, 16], and values, as TiledSlots holds them."""
    batch, heads, slots, width = keys.shape
    split = keys.reshape(batch, heads, slots // KEY_SLOTS, KEY_SLOTS, width)
    return np.ascontiguousarray(split.swapaxes(3, 4)), values


def tile_codes(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [B, G, S, Hd] each -> tiles as CodedSlots holds them, for Hd a multiple of 16."""
    batch, heads, slots, width = keys.shape
    keys = keys.reshape(batch, heads, slots // KEY_SLOTS, KEY_SLOTS, width // 4, 4)
    values = values.reshape(batch, heads, slots // 4, 4, width // KEY_SLOTS, KEY_SLOTS)
    tiles = keys.swapaxes(3, 4), values.transpose(0, 1, 4, 2, 5, 3)
    return np.ascontiguousarray(tiles[0]), np.ascontiguousarray(tiles[1])


def read_slots(
    layer: LayerCache, head_dim: int, static: AttentionScales | None = None
) -> list[np.ndarray]:
    """Read one layer's slots: keys and values [B, G, S, Hd], INT8 ones with scales [B, G, S].

    Undoes the tiles of 16 slots and drops the zeros that pad a narrow head. static: the calibrated
    scales of codes that have no others; each slot gets them.
    """
    arrays = [np.asarray(array) for array in layer.arrays]
    if isinstance(layer, TiledSlots):
        batch, heads, tiles, width, slots = arrays[0].shape
        keys = arrays[0].transpose(0, 1, 2, 4, 3)
        arrays[0] = keys.reshape(batch, heads, tiles * slots, width)[..., :head_dim]
        arrays[1] = arrays[1][..., :head_dim]
    if isinstance(layer, CodedSlots):
        keys, values = arrays[0].swapaxes(3, 4), arrays[1].transpose(0, 1, 3, 5, 2, 4)
        shape = *keys.shape[:2], keys.shape[2] * KEY_SLOTS, layer.width
        arrays[:2] = (x.reshape(shape)[..., :head_dim] for x in (keys, values))
    if static is not None:
        both = (np.asarray(scale).reshape(1, 1, 1) for scale in (static.k, static.v))
        arrays += [np.broadcast_to(scale, arrays[0].shape[:3]) for scale in both]
    return arrays
