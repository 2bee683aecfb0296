"""Reading a quantized linear: its codes, scales and zero points as they lie in the file, checked.

    layout      what the file holds                            what comes out
    canonical   QuantizedWeight's arrays (linear.py)           the same, or tiles made from it
    tiles       TiledWeight's arrays (packing.py)              the same, or the canonical form

Whatever comes out in the layout of the file is a view of it: nothing is copied, and INT4 codes
are not even read, as each of their bytes is good. Scales, zero points and INT8 codes are looked
at once. What lies in tiles beyond N and K is never looked at.
"""

from __future__ import annotations

import numpy as np

from reference.directory import Checkpoint, bad_value, checked_entry, named_entry
from reference.grids import INT4_MAX, num_groups
from reference.linear import QuantizedWeight, TiledWeight
from reference.packing import TILE_OUTPUTS, tile_shape, untile_int8
from reference.quantization_config import weight_bits
from reference.tiles import tile, untile

Shape = tuple[int, ...]


def load_quantized(
    checkpoint: Checkpoint, prefix: str, shape: Shape, tiled: bool = False
) -> QuantizedWeight | TiledWeight:
    """The weight [N, K] of the linear `prefix`, in tiles or not, whatever its layout on disk.

    Raises CheckpointError naming the tensor for a wrong type, shape or value.
    """
    quantization, (rows, cols) = checkpoint.quantization or {}, shape
    found: QuantizedWeight | TiledWeight
    if weight_bits(quantization, checkpoint.is_head(prefix)) == 8:
        found = _load_int8(checkpoint, prefix, rows, cols)
    else:
        found = _load_int4(checkpoint, prefix, rows, cols, quantization["group_size"])
    if isinstance(found, TiledWeight):
        return found if tiled else untile(found)
    return tile(found) if tiled else found


def _load_int8(
    checkpoint: Checkpoint, prefix: str, rows: int, cols: int
) -> QuantizedWeight | TiledWeight:
    name, in_tiles = f"{prefix}.weight", checkpoint.layout == "tiles"
    shape = tile_shape(rows, cols, 8) if in_tiles else (rows, cols)
    codes = checked_entry(checkpoint, name, ("I8",), shape).map()
    if codes.min() == -128:  # the grid is symmetric, and kernels may rely on it
        if not in_tiles or untile_int8(codes, rows, cols).min() == -128:
            raise bad_value(checkpoint, name, "codes -127..127", -128)
    scale = _load_int8_scale(checkpoint, f"{prefix}.weight_scale", rows)
    if in_tiles:
        return TiledWeight(codes, scale, None, 8, rows, cols)
    return QuantizedWeight(codes, scale, None, 8, cols)


def _load_int8_scale(checkpoint: Checkpoint, name: str, rows: int) -> np.ndarray:
    whole = named_entry(checkpoint, name).shape == (1, 1)
    scale = checked_entry(checkpoint, name, ("F32",), (1 if whole else rows, 1)).map()
    require_positive(checkpoint, name, scale)
    return scale


def require_positive(checkpoint: Checkpoint, name: str, scale: np.ndarray) -> None:
    """Raise CheckpointError unless every scale is finite and above 0."""
    good = np.isfinite(scale) & (scale > 0)
    if not good.all():
        raise bad_value(checkpoint, name, "positive finite scales", scale[~good][0])


def _load_int4(
    checkpoint: Checkpoint, prefix: str, rows: int, cols: int, group_size: int
) -> QuantizedWeight | TiledWeight:
    groups, in_tiles = num_groups(cols, group_size), checkpoint.layout == "tiles"
    shape = tile_shape(rows, cols, 4) if in_tiles else (rows, -(-cols // 2))
    beside = (shape[0], groups, TILE_OUTPUTS) if in_tiles else (rows, groups)
    codes = checked_entry(checkpoint, f"{prefix}.weight", ("U8",), shape).map()
    scale = _load_int4_scale(checkpoint, f"{prefix}.weight_scale", beside, rows)
    zero = _load_zero_point(checkpoint, f"{prefix}.weight_zero_point", beside, rows)
    if in_tiles:
        return TiledWeight(codes, scale, zero, 4, rows, cols, group_size)
    return QuantizedWeight(codes, scale, zero, 4, cols, group_size)


def _load_int4_scale(checkpoint: Checkpoint, name: str, shape: Shape, rows: int) -> np.ndarray:
    scale = checked_entry(checkpoint, name, ("F16", "F32"), shape).map()
    for part in _without_padding(scale, rows):
        unusable = unusable_scales(part)
        if unusable.any():
            raise bad_value(checkpoint, name, "finite scales other than 0", part[unusable][0])
    return scale


def _load_zero_point(
    checkpoint: Checkpoint, name: str, shape: Shape, rows: int
) -> np.ndarray | None:
    """None where it is not stored: 8 everywhere."""
    if name not in checkpoint.entries:
        return None
    zero = checked_entry(checkpoint, name, ("U8",), shape).map()
    largest = max(part.max() for part in _without_padding(zero, rows))
    if largest > INT4_MAX:
        raise bad_value(checkpoint, name, "0..15", largest)
    return zero


def _without_padding(values: np.ndarray, rows: int) -> list[np.ndarray]:
    """Views of the entries of [N, G] or tiles [ceil(N/16), G, 16] that belong to an output."""
    if values.ndim == 2 or rows % TILE_OUTPUTS == 0:
        return [values]
    whole, last = values[:-1], values[-1:, :, : rows % TILE_OUTPUTS]
    return [whole, last] if len(whole) else [last]


def unusable_scales(scale: np.ndarray) -> np.ndarray:
    """Which scales are 0, Inf or NaN, judged by their bits: NumPy's float16 isfinite is slow.

    Without its sign, and read as an integer, a float is 0 for 0, grows with its magnitude and
    is that of Inf or more for Inf and NaN. One less makes 0 the largest of all.
    """
    word = np.dtype(f"u{scale.dtype.itemsize}")
    infinity, sign = np.array([np.inf, -0.0], scale.dtype).view(word)
    one = word.type(1)
    return (scale.view(word) & ~sign) - one >= infinity - one
