"""Some outputs of a linear: rows of its weight, bias and scales, without a copy where possible.

A quantized weight in tiles is stored 16 outputs at a time, so a cut at a multiple of 16 is a view
of the mapped file, and a process reads only its bytes. Another cut copies. Rows beyond the last one
are zeros: every process then has equally many.

N outputs, K inputs, G groups of inputs; experts have a leading axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planish.reference.linear import Linear
from planish.reference.quantized import QuantizedWeight, to_layout

TILE = 16  # outputs of one tile (reference/quantized.py)


@dataclass(frozen=True)
class Rows:
    """`count` outputs from `start` on; those from N on are zeros."""

    start: int
    count: int

    @property
    def fit_tiles(self) -> bool:
        """Whether the cut is between tiles."""
        return self.start % TILE == 0 and self.count % TILE == 0

    def of_tiles(self) -> Rows:
        """The tiles that hold these rows."""
        return Rows(self.start // TILE, self.count // TILE)


def share_rows(outputs: int, index: int, parts: int) -> Rows:
    """The rows of one of `parts` processes: whole tiles, equally many for each."""
    tiles = -(-outputs // TILE)
    count = -(-tiles // parts) * TILE
    return Rows(index * count, count)


def cut_linear(layer: Linear, rows: Rows, axis: int = 0) -> Linear:
    """A linear with some of its outputs; axis: of N, 1 in a stack of experts."""
    weight: Any = layer.weight
    if isinstance(weight, QuantizedWeight):
        weight = cut_weight(weight, rows, axis)
    else:
        weight = cut_array(weight, rows, axis)
    bias = None if layer.bias is None else cut_array(layer.bias, rows, axis)
    return replace(layer, weight=weight, bias=bias)


def cut_weight(weight: QuantizedWeight, rows: Rows, axis: int = 0) -> QuantizedWeight:
    """A quantized weight with some of its outputs, in the same layout."""
    layout = weight.layout
    if layout == "tiles" and not rows.fit_tiles:
        return to_layout(cut_weight(to_layout(weight, "canonical"), rows, axis), layout)
    tiled = rows.of_tiles() if layout == "tiles" else rows
    beside = tiled if weight.scheme.has_group_scales else rows
    arrays: dict[str, Any] = {"codes": cut_array(weight.codes, tiled, axis)}
    for name in ("scale", "zero_point", "offset"):
        array = getattr(weight, name)
        one_for_all = array is None or (weight.scheme.granularity == "per_tensor")
        arrays[name] = array if one_for_all else cut_array(array, beside, axis)
    if weight.code_sums is not None:
        arrays["code_sums"] = cut_array(weight.code_sums, tiled, axis)
    return replace(weight, shape=(rows.count, weight.shape[1]), **arrays)


def cut_array(array: np.ndarray, rows: Rows, axis: int = 0) -> np.ndarray:
    """Some entries of an axis: a view, or a copy with zeros where entries are missing."""
    before = (slice(None),) * axis
    part: np.ndarray = array[(*before, slice(rows.start, rows.start + rows.count))]
    missing = rows.count - part.shape[axis]
    if missing == 0:
        return part
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, missing)
    return np.pad(part, padding)
