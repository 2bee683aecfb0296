"""A quantized weight: codes, scales and zero points, and the order in which they are stored.

It is data: one class for every scheme and every layout. Methods (quantize/methods/) produce it,
file formats (files/formats/) read and write it, `linear` and the engine consume it.

N outputs, K inputs, G groups of inputs that share a scale:

    layout               INT8                          INT4
    canonical  codes     int8 [N, K]                   uint8 [N, ceil(K / 2)], two codes a byte
               scale     float32 [N, 1] or [1, 1]      float16 or float32 [N, G]
               zero_point  none                        uint8 [N, G], none where symmetric
    tiles      codes     int8 [ceil(N/16), ceil(K/4), 16, 4]    uint8 [ceil(N/16), ceil(K/8), 16, 4]
               scale     as canonical                  [ceil(N/16), G, 16], so is zero_point

What only other programs make (SPEC 4) is canonical in files, and tiled when it is loaded:

    INT8 in groups       scale float16 or float32 [N, G]; in tiles [ceil(N/16), G, 16]
    offset               float16 or float32, the shape of the scale [N, G], which is tiled too; the
                         codes of INT8 are then uint8
    act_order            permutation int32 [K]: column k of the codes is input permutation[k]
    input_zero_point     in tiles also code_sums int32 [ceil(N/16), 16]: the sum of each output's
                         codes, which the zero point multiplies

packing.py has the permutations. A backend may add layouts (fast/model/weights.py). The experts of
a layer are stacked: every array has a leading axis of experts (model/experts.py); scheme, shape and
layout are those of each expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planish.reference.grids import SYMMETRIC_ZERO, expand_groups
from planish.reference.packing import (
    pack_nibbles,
    tile_groups,
    tile_int4,
    tile_int8,
    unpack_nibbles,
    untile_groups,
    untile_int4,
    untile_int8,
)
from planish.reference.scheme import Scheme

LAYOUTS = ("tiles", "canonical")  # of quantized weights in files


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """W [N, K] on the grid of its scheme: w = (code - zero_point) * scale.

    The arrays are those of the table above. A zero point that is not stored is 8 everywhere in
    INT4, and 0 in INT8. With an offset w = code * scale + offset.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None = None
    scheme: Scheme
    shape: tuple[int, int]  # N, K
    layout: str = "canonical"
    offset: np.ndarray | None = None
    permutation: np.ndarray | None = None
    code_sums: np.ndarray | None = None


def from_codes(
    codes: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, scheme: Scheme
) -> QuantizedWeight:
    """The weight of codes [N, K]: int8, or uint8 0..15, which are packed two a byte.

    A symmetric scheme's zero points are 8 everywhere and are left out.
    """
    return QuantizedWeight(
        codes=codes if scheme.bits == 8 else pack_nibbles(codes),
        scale=scale,
        zero_point=None if scheme.symmetric else zero_point,
        scheme=scheme,
        shape=(codes.shape[0], codes.shape[1]),
    )


def to_layout(weight: QuantizedWeight, layout: str) -> QuantizedWeight:
    """The same weight in a layout, `canonical` or `tiles`; itself if it has that layout."""
    if weight.layout == layout:
        return weight
    known = {("canonical", "tiles"): _tile, ("tiles", "canonical"): _untile}
    if (weight.layout, layout) not in known:
        raise ValueError(f"no way from the layout {weight.layout} to {layout}")
    return known[weight.layout, layout](weight)


def _tile(weight: QuantizedWeight) -> QuantizedWeight:
    int8, cols = weight.scheme.bits == 8, weight.shape[1]
    codes = tile_int8(weight.codes) if int8 else tile_int4(weight.codes, cols)
    beside = _change_groups(weight, tile_groups)
    if weight.scheme.input_zero_point:
        sums = weight.codes.sum(axis=1, keepdims=True, dtype=np.int32)
        beside["code_sums"] = tile_groups(sums)[:, 0]
    return replace(weight, codes=codes, layout="tiles", **beside)


def _untile(weight: QuantizedWeight) -> QuantizedWeight:
    untile = untile_int8 if weight.scheme.bits == 8 else untile_int4
    beside = _change_groups(weight, lambda tiled: untile_groups(tiled, weight.shape[0]))
    codes = untile(weight.codes, *weight.shape)
    return replace(weight, codes=codes, code_sums=None, layout="canonical", **beside)


def _change_groups(
    weight: QuantizedWeight, change: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """Scale, zero point and offset [N, G] after `change`; nothing if scales are those of rows."""
    if not weight.scheme.has_group_scales:
        return {}
    arrays = {name: getattr(weight, name) for name in ("scale", "zero_point", "offset")}
    return {name: change(array) for name, array in arrays.items() if array is not None}


def dequantize(weight: QuantizedWeight) -> np.ndarray:
    """w = (q - z) * scale, or q * scale + offset, float32 [N, K], inputs in the model's order.

    The product and the sum are rounded one by one.
    """
    weight = to_layout(weight, "canonical")
    codes = centred_codes(weight).astype(np.float32)
    w: np.ndarray = codes * expand_scales(weight, weight.scale)
    if weight.offset is not None:
        w = w + expand_scales(weight, weight.offset)
    return w if weight.permutation is None else w[:, np.argsort(weight.permutation)]


def expand_scales(weight: QuantizedWeight, scale: np.ndarray) -> np.ndarray:
    """Scales or offsets as float32, one for each code: [N, K], or [N, 1] or [1, 1] for whole rows.

    The columns are in the order of the codes.
    """
    if weight.scheme.granularity != "per_group":
        return scale.astype(np.float32)
    return expand_groups(scale.astype(np.float32), weight.shape[1], weight.scheme.group_size)


def centred_codes(weight: QuantizedWeight) -> np.ndarray:
    """q - z, int8 [N, K]: -15..15 for INT4; INT8 codes have no zero point.

    With an offset it is q, uint8 [N, K]. The columns are in the order of the codes.
    """
    weight = to_layout(weight, "canonical")
    if weight.scheme.bits == 8:
        return weight.codes
    cols = weight.shape[1]
    if weight.offset is not None:
        return unpack_nibbles(weight.codes, cols)
    codes = unpack_nibbles(weight.codes, cols).astype(np.int8)
    if weight.zero_point is None:
        return codes - np.int8(SYMMETRIC_ZERO)
    zero = expand_groups(weight.zero_point.astype(np.int8), cols, weight.scheme.group_size)
    centred: np.ndarray = codes - zero
    return centred
