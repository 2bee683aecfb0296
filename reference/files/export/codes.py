"""Codes, zero points and groups as writers need them: whole, and in finer groups.

A group of 256 inputs is two groups of 128 with the same scale and zero point, and a row with one
scale is K / 32 groups of 32, so a weight can be re-expressed in finer groups without changing a
number. A short last group, which most programs do not have, is one or more whole groups of 32 if
32 divides K.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from planish.reference.grids import SYMMETRIC_ZERO, num_groups
from planish.reference.packing import unpack_nibbles
from planish.reference.quantized import QuantizedWeight, to_layout
from planish.reference.scheme import Scheme


def regrouped(scheme: Scheme, group_size: int) -> Scheme:
    """The scheme with other groups; -1 is a row."""
    granularity = "per_channel" if group_size == -1 else "per_group"
    return replace(scheme, granularity=granularity, group_size=group_size)


def finer_size(scheme: Scheme, cols: int, sizes: tuple[int, ...]) -> int | None:
    """The coarsest of `sizes` in which K inputs can be grouped without a short last group.

    It must divide K and the scheme's own groups. -1 in sizes: whole rows are held as they are.
    None if there is no such size.
    """
    own = scheme.group_size
    if own == -1 and -1 in sizes:
        return -1
    fits = (size for size in sizes if size > 0 and cols % size == 0)
    return max((size for size in fits if own == -1 or own % size == 0), default=None)


def refine(weight: QuantizedWeight, scheme: Scheme) -> QuantizedWeight:
    """The same weight, canonical, under a scheme of finer groups; itself if it has that scheme.

    Scales, zero points and offsets are repeated: [N, G] -> [N, G'], [1, 1] -> [N, 1]. Raises
    ValueError for coarser groups.
    """
    weight = to_layout(weight, "canonical")
    old, (rows, cols) = weight.scheme, weight.shape
    if scheme == old:
        return weight
    groups = num_groups(cols, scheme.group_size)
    size = cols if scheme.group_size == -1 else scheme.group_size
    own = cols if old.group_size == -1 else old.group_size
    if own % size and groups > 1:
        raise ValueError(f"groups of {own} inputs cannot be held in groups of {size}")
    place = np.arange(groups) * size // own  # the old group of each new one

    kinds = ("scale", "zero_point", "offset")
    arrays = {kind: getattr(weight, kind) for kind in kinds}
    spread: dict[str, Any] = {
        kind: np.broadcast_to(values, (rows, values.shape[1]))[:, place]
        for kind, values in arrays.items()
        if values is not None
    }
    return replace(weight, **spread, scheme=scheme)


def unsigned_codes(weight: QuantizedWeight) -> np.ndarray:
    """Codes 0..15 of INT4, 0..255 of INT8 (a signed code + 128): uint8 [N, K].

    The columns are in the order of the codes (act order).
    """
    weight = to_layout(weight, "canonical")
    if weight.scheme.bits == 4:
        return unpack_nibbles(weight.codes, weight.shape[1])
    if weight.codes.dtype == np.uint8:  # with an offset
        return weight.codes
    return weight.codes.view(np.uint8) ^ np.uint8(128)


def signed_codes(weight: QuantizedWeight) -> np.ndarray:
    """Codes -8..7 of INT4 (a code - 8), -128..127 of INT8: int8 [N, K]."""
    weight = to_layout(weight, "canonical")
    if weight.scheme.bits == 8:
        return weight.codes.view(np.int8)
    return unpack_nibbles(weight.codes, weight.shape[1]).view(np.int8) - np.int8(SYMMETRIC_ZERO)


def zero_points(weight: QuantizedWeight) -> np.ndarray:
    """Zero points of unsigned codes, uint8 [N, G]: 8 of INT4 and 128 of INT8 if none are stored."""
    weight = to_layout(weight, "canonical")
    if weight.zero_point is not None:
        return weight.zero_point
    middle = SYMMETRIC_ZERO if weight.scheme.bits == 4 else 128
    return np.full(weight.scale.shape, middle, np.uint8)
