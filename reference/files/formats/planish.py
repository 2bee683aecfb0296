"""Reading a quantized linear: its codes, scales and zero points as they lie in the file, checked.

    layout      what the file holds                            what comes out
    canonical   QuantizedWeight's arrays (linear.py)           the same, or tiles made from it
    tiles       TiledWeight's arrays (packing.py)              the same, or the canonical form

Whatever comes out in the layout of the file is a view of it: nothing is copied, and INT4 codes
are not even read, as each of their bytes is good. Scales, zero points and INT8 codes are looked
at once. What lies in tiles beyond N and K is never looked at.

The experts of a layer lie in one tensor for each of their parts, an axis of experts in front:
`stack` is its length, (E,), and () for a linear that stands alone.
"""

from __future__ import annotations

import numpy as np

from planish.reference.files.checkpoint import Checkpoint, bad_value, checked_entry, named_entry
from planish.reference.files.formats.quantization_config import weight_bits
from planish.reference.grids import INT4_MAX, num_groups
from planish.reference.linear import QuantizedWeight, TiledWeight
from planish.reference.packing import TILE_OUTPUTS, tile_shape, untile_int8
from planish.reference.tiles import tile, untile

Shape = tuple[int, ...]
Quantized = QuantizedWeight | TiledWeight


def load_quantized(
    checkpoint: Checkpoint, prefix: str, shape: Shape, tiled: bool = False
) -> Quantized:
    """The weight [N, K] of the linear `prefix`, in tiles or not, whatever its layout on disk.

    Raises CheckpointError naming the tensor for a wrong type, shape or value.
    """
    return in_form(load_as_it_lies(checkpoint, prefix, shape), tiled)


def in_form(weight: Quantized, tiled: bool) -> Quantized:
    """A weight in tiles or in the canonical form, converted if need be."""
    if isinstance(weight, TiledWeight):
        return weight if tiled else untile(weight)
    return tile(weight) if tiled else weight


def load_as_it_lies(
    checkpoint: Checkpoint, prefix: str, shape: Shape, stack: Shape = ()
) -> Quantized:
    """The weight [N, K], or experts' weights, in the layout that they have on disk."""
    quantization, (rows, cols) = checkpoint.quantization or {}, shape
    if weight_bits(quantization, checkpoint.is_head(prefix)) == 8:
        return _load_int8(checkpoint, prefix, rows, cols, stack)
    return _load_int4(checkpoint, prefix, rows, cols, quantization["group_size"], stack)


def _load_int8(
    checkpoint: Checkpoint, prefix: str, rows: int, cols: int, stack: Shape
) -> Quantized:
    name, in_tiles = f"{prefix}.weight", checkpoint.layout == "tiles"
    shape = tile_shape(rows, cols, 8) if in_tiles else (rows, cols)
    codes = checked_entry(checkpoint, name, ("I8",), (*stack, *shape)).map()
    if codes.min() == -128:  # the grid is symmetric, and kernels may rely on it
        each = codes.reshape(-1, *shape)
        if not in_tiles or min(untile_int8(one, rows, cols).min() for one in each) == -128:
            raise bad_value(checkpoint, name, "codes -127..127", -128)
    scale = _load_int8_scale(checkpoint, f"{prefix}.weight_scale", rows, stack)
    if in_tiles:
        return TiledWeight(codes, scale, None, 8, rows, cols)
    return QuantizedWeight(codes, scale, None, 8, cols)


def _load_int8_scale(checkpoint: Checkpoint, name: str, rows: int, stack: Shape) -> np.ndarray:
    per_tensor = named_entry(checkpoint, name).shape == (*stack, 1, 1)
    shape = (*stack, 1 if per_tensor else rows, 1)
    scale = checked_entry(checkpoint, name, ("F32",), shape).map()
    require_positive(checkpoint, name, scale)
    return scale


def require_positive(checkpoint: Checkpoint, name: str, scale: np.ndarray) -> None:
    """Raise CheckpointError unless every scale is finite and above 0."""
    good = np.isfinite(scale) & (scale > 0)
    if not good.all():
        raise bad_value(checkpoint, name, "positive finite scales", scale[~good][0])


def _load_int4(
    checkpoint: Checkpoint, prefix: str, rows: int, cols: int, group_size: int, stack: Shape
) -> Quantized:
    groups, in_tiles = num_groups(cols, group_size), checkpoint.layout == "tiles"
    shape: Shape = tile_shape(rows, cols, 4) if in_tiles else (rows, -(-cols // 2))
    beside: Shape = (shape[0], groups, TILE_OUTPUTS) if in_tiles else (rows, groups)
    shape, beside = (*stack, *shape), (*stack, *beside)
    codes = checked_entry(checkpoint, f"{prefix}.weight", ("U8",), shape).map()
    scale = _load_int4_scale(checkpoint, f"{prefix}.weight_scale", beside, rows)
    zero = _load_zero_point(checkpoint, f"{prefix}.weight_zero_point", beside, rows)
    if in_tiles:
        return TiledWeight(codes, scale, zero, 4, rows, cols, group_size)
    return QuantizedWeight(codes, scale, zero, 4, cols, group_size)


def _load_int4_scale(checkpoint: Checkpoint, name: str, shape: Shape, rows: int) -> np.ndarray:
    scale = checked_entry(checkpoint, name, ("F16", "F32"), shape).map()
    for part in _without_padding(scale, rows, checkpoint.layout == "tiles"):
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
    parts = _without_padding(zero, rows, checkpoint.layout == "tiles")
    largest = max(part.max() for part in parts)
    if largest > INT4_MAX:
        raise bad_value(checkpoint, name, "0..15", largest)
    return zero


def _without_padding(values: np.ndarray, rows: int, in_tiles: bool) -> list[np.ndarray]:
    """Views of the entries of [N, G] or tiles [ceil(N/16), G, 16] that belong to an output."""
    if not in_tiles or rows % TILE_OUTPUTS == 0:
        return [values]
    whole, last = values[..., :-1, :, :], values[..., -1:, :, : rows % TILE_OUTPUTS]
    return [whole, last] if whole.size else [last]


def unusable_scales(scale: np.ndarray) -> np.ndarray:
    """Which scales are 0, Inf or NaN, judged by their bits: NumPy's float16 isfinite is slow.

    Without its sign, and read as an integer, a float is 0 for 0, grows with its magnitude and
    is that of Inf or more for Inf and NaN. One less makes 0 the largest of all.
    """
    word = np.dtype(f"u{scale.dtype.itemsize}")
    infinity, sign = np.array([np.inf, -0.0], scale.dtype).view(word)
    one = word.type(1)
    return (scale.view(word) & ~sign) - one >= infinity - one
