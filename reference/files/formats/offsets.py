"""Float offsets that are zero points: offset == -zero_point * scale.

Some programs store an offset for every group (MLX), where others store a zero point. An offset that
is a whole multiple of its scale, down from 0, is the same weight to the bit if the scale is short:

    scale * code + offset  ==  scale * (code - zero_point)     where no product is rounded
"""

from __future__ import annotations

import numpy as np

from planish.reference.grids import cached_rows

ROUNDED = np.uint32(0xFF)  # the bits of a float32 beyond 16 significant ones


def whole_zero_points(scale: np.ndarray, offset: np.ndarray, bits: int) -> np.ndarray | None:
    """Zero points 0 .. 2^bits - 1, uint8 [N, G], of scales and offsets [N, G]; None without them.

    The first row mostly has none where some row has none, and is looked at first.
    """
    zeros = np.empty(scale.shape, np.uint8)
    for rows in (slice(0, 1), *cached_rows(scale)):
        zero = _zero_points(scale[rows].astype(np.float32), offset[rows].astype(np.float64))
        good = (zero >= 0) & (zero < 2**bits)  # NaN is neither
        if not good.all():
            return None
        zeros[rows] = zero
    return zeros


def _zero_points(scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The zero points of some rows, float64 [R, G], NaN where there is none."""
    with np.errstate(all="ignore"):
        zero = np.rint(-offset / scale)
        whole = (-zero * scale == offset) & is_short(scale)
    return np.where(whole, zero, np.nan)


def is_short(scale: np.ndarray) -> np.ndarray:
    """Whether a scale, float32, times an 8-bit code is exact: it has 16 significant bits at most.

    So have float16 and bfloat16.
    """
    short: np.ndarray = scale.view(np.uint32) & ROUNDED == 0
    return short


def to_float16(scale: np.ndarray) -> np.ndarray | None:
    """The same scales in float16; None if one of them is no float16."""
    with np.errstate(over="ignore"):
        narrow = scale.astype(np.float16)
    return narrow if np.array_equal(narrow, scale) else None
