"""The linears of planish's own format, read and checked: types, shapes and values.

The tensors are those of the table in planish.py. Nothing is copied: arrays are views of the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from planish.reference.files.entries import Directory, bad_value, require_entry
from planish.reference.files.floats import load_float
from planish.reference.files.formats.scales import require_positive, require_usable
from planish.reference.grids import INT4_MAX, num_groups
from planish.reference.linear import Linear
from planish.reference.packing import TILE_OUTPUTS, tile_shape, untile_int8
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import Scheme

Shape = tuple[int, ...]


def read(
    directory: Directory, prefix: str, scheme: Scheme, shape: Shape, stack: Shape = ()
) -> Linear:
    """Read a linear [N, K], or stacked experts, without the bias, in the file's layout.

    Raises CheckpointError, naming the tensor, for a wrong type, shape or value.
    """
    if scheme.canonical_in_files and _in_tiles(directory):
        raise bad_value(directory, f"{prefix}.weight", "the canonical layout", f"tiles of {scheme}")
    arrays: dict[str, Any] = (_read_int8 if scheme.bits == 8 else _read_int4)(
        directory, prefix, scheme, shape, stack
    )
    if scheme.foreign:
        arrays |= _read_foreign(directory, prefix, scheme, shape, stack)
    layout = "canonical" if directory.declared is None else directory.declared.layout
    rows, cols = shape
    weight = QuantizedWeight(**arrays, scheme=scheme, shape=(rows, cols), layout=layout)
    if scheme.activation != "static":
        return Linear(weight)
    name = f"{prefix}.input_scale"
    scale = load_float(directory, name, (*stack, 1))
    require_positive(directory, name, scale)
    if not scheme.input_zero_point:
        return Linear(weight, activation_scale=scale)
    zero = require_entry(directory, f"{prefix}.input_zero_point", ("I8",), (*stack, 1)).map()
    return Linear(weight, activation_scale=scale, activation_zero_point=zero)


def _read_int8(
    directory: Directory, prefix: str, scheme: Scheme, shape: Shape, stack: Shape
) -> dict[str, np.ndarray | None]:
    if scheme.foreign and (scheme.granularity == "per_group" or scheme.offset):
        return _read_int8_groups(directory, prefix, scheme, shape, stack)
    name, (rows, cols) = f"{prefix}.weight", shape
    tiled = _in_tiles(directory)
    stored = tile_shape(rows, cols, 8) if tiled else shape
    codes = require_entry(directory, name, ("I8",), (*stack, *stored)).map()
    if (
        not scheme.full_range and codes.min() == -128
    ):  # the grid is symmetric, and kernels may rely on it
        each = codes.reshape(-1, *stored)
        if not tiled or min(untile_int8(one, rows, cols).min() for one in each) == -128:
            raise bad_value(directory, name, "codes -127..127", -128)
    name, count = f"{prefix}.weight_scale", 1 if scheme.granularity == "per_tensor" else rows
    scale = require_entry(directory, name, ("F32",), (*stack, count, 1)).map()
    if scheme.full_range:  # not a grid of ours: a scale may be negative
        require_usable(directory, name, scale)
    else:
        require_positive(directory, name, scale)
    return {"codes": codes, "scale": scale}


def _read_int8_groups(
    directory: Directory, prefix: str, scheme: Scheme, shape: Shape, stack: Shape
) -> dict[str, np.ndarray | None]:
    """INT8 codes with a scale for each group, or with offsets: of other programs."""
    rows, cols = shape
    dtypes = ("U8",) if scheme.offset else ("I8",)
    beside = (*stack, rows, num_groups(cols, scheme.group_size))
    return {
        "codes": require_entry(directory, f"{prefix}.weight", dtypes, (*stack, *shape)).map(),
        "scale": _read_int4_scale(directory, f"{prefix}.weight_scale", beside, rows, scheme),
    }


def _read_foreign(
    directory: Directory, prefix: str, scheme: Scheme, shape: Shape, stack: Shape
) -> dict[str, np.ndarray | None]:
    """The offset and the permutation, where the scheme has them."""
    (rows, cols), found = shape, dict[str, np.ndarray | None]()
    if scheme.offset:
        name, beside = f"{prefix}.weight_offset", (rows, num_groups(cols, scheme.group_size))
        offset = require_entry(directory, name, ("F16", "F32"), (*stack, *beside)).map()
        if not np.isfinite(offset).all():
            raise bad_value(directory, name, "finite offsets", offset[~np.isfinite(offset)][0])
        found["offset"] = offset
    if scheme.act_order:
        name = f"{prefix}.weight_permutation"
        order = require_entry(directory, name, ("I32",), (*stack, cols)).map()
        if not (np.sort(order, axis=-1) == np.arange(cols)).all():
            raise bad_value(directory, name, f"a permutation of 0..{cols - 1}", "another order")
        found["permutation"] = order
    return found


def _in_tiles(directory: Directory) -> bool:
    return directory.declared is not None and directory.declared.layout == "tiles"


def _read_int4(
    directory: Directory, prefix: str, scheme: Scheme, shape: Shape, stack: Shape
) -> dict[str, np.ndarray | None]:
    (rows, cols), tiled = shape, _in_tiles(directory)
    groups = num_groups(cols, scheme.group_size)
    stored: Shape = tile_shape(rows, cols, 4) if tiled else (rows, -(-cols // 2))
    beside: Shape = (stored[0], groups, TILE_OUTPUTS) if tiled else (rows, groups)
    stored, beside = (*stack, *stored), (*stack, *beside)
    return {
        "codes": require_entry(directory, f"{prefix}.weight", ("U8",), stored).map(),
        "scale": _read_int4_scale(directory, f"{prefix}.weight_scale", beside, rows, scheme),
        "zero_point": None
        if scheme.offset
        else _read_zero_point(directory, f"{prefix}.weight_zero_point", beside, rows),
    }


def _read_int4_scale(
    directory: Directory, name: str, shape: Shape, rows: int, scheme: Scheme
) -> np.ndarray:
    dtypes = ("F32",) if scheme.scale_dtype == "float32" else ("F16", "F32")
    scale = require_entry(directory, name, dtypes, shape).map()
    for part in _without_padding(scale, rows, _in_tiles(directory)):
        require_usable(directory, name, part)
    return scale


def _read_zero_point(directory: Directory, name: str, shape: Shape, rows: int) -> np.ndarray | None:
    """The zero points, or None if they are not stored, which means 8 everywhere."""
    if name not in directory.entries:
        return None
    zero = require_entry(directory, name, ("U8",), shape).map()
    parts = _without_padding(zero, rows, _in_tiles(directory))
    largest = max(part.max() for part in parts)
    if largest > INT4_MAX:
        raise bad_value(directory, name, "0..15", largest)
    return zero


def _without_padding(values: np.ndarray, rows: int, in_tiles: bool) -> list[np.ndarray]:
    """Views of [N, G] or of tiles [ceil(N/16), G, 16] without the padding of outputs."""
    if not in_tiles or rows % TILE_OUTPUTS == 0:
        return [values]
    whole, last = values[..., :-1, :, :], values[..., -1:, :, : rows % TILE_OUTPUTS]
    return [whole, last] if whole.size else [last]
