"""A quantized weight in the order in which the native kernels read it, and back.

The kernels know no canonical packing and the definition knows no tiles: `tile` and `untile` are
the only bridge, and they are inverses of each other.
"""

from __future__ import annotations

from planish.reference.linear import QuantizedWeight, TiledWeight
from planish.reference.packing import (
    tile_groups,
    tile_int4,
    tile_int8,
    untile_groups,
    untile_int4,
    untile_int8,
)

__all__ = ["TiledWeight", "tile", "untile"]


def tile(weight: QuantizedWeight) -> TiledWeight:
    """The same weight in tiles; inverse: untile."""
    rows, cols = weight.shape
    if weight.bits == 8:
        return TiledWeight(tile_int8(weight.codes), weight.scale, None, 8, rows, cols)
    zero = None if weight.zero_point is None else tile_groups(weight.zero_point)
    codes, scale = tile_int4(weight.codes, cols), tile_groups(weight.scale)
    return TiledWeight(codes, scale, zero, 4, rows, cols, weight.group_size)


def untile(weight: TiledWeight) -> QuantizedWeight:
    """The same weight in the canonical packing; inverse: tile."""
    rows, cols = weight.shape
    if weight.bits == 8:
        return QuantizedWeight(untile_int8(weight.codes, rows, cols), weight.scale, None, 8, cols)
    zero = None if weight.zero_point is None else untile_groups(weight.zero_point, rows)
    codes, scale = untile_int4(weight.codes, rows, cols), untile_groups(weight.scale, rows)
    return QuantizedWeight(codes, scale, zero, 4, cols, weight.group_size)
