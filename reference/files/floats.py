"""Read float tensors: float32, float16 or bfloat16 in the file, float32 in memory, finite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planish.reference.files.entries import Directory, bad_value, require_entry
from planish.reference.model.shapes import Shape

FLOATS = ("F32", "F16", "BF16")
CHECKED_TOGETHER = 2**18  # numbers: 1 MiB, still cached if isfinite has to read them again


def load_float(
    directory: Directory,
    name: str,
    shape: Shape,
    cut: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """read_float, and raise CheckpointError unless the tensor is finite."""
    tensor = read_float(directory, name, shape, cut)
    require_finite(directory, name, tensor)
    return tensor


def read_float(
    directory: Directory,
    name: str,
    shape: Shape,
    cut: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """A float tensor, or a slice of it by `cut`, as float32; a view of the file if stored so."""
    mapped = require_entry(directory, name, FLOATS, shape).map()
    mapped = mapped if cut is None else np.ascontiguousarray(cut(mapped))
    with np.errstate(invalid="ignore"):  # require_finite reports a signalling NaN by name
        return mapped.astype(np.float32, copy=False)


def require_finite(directory: Directory, name: str, tensor: np.ndarray) -> None:
    """Raise CheckpointError naming the first number of a float32 tensor that is NaN or Inf."""
    if not all_finite(tensor):
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(tensor))[0])
        raise bad_value(directory, name, "finite", f"{tensor[index]} at {index}")


def all_finite(tensor: np.ndarray) -> bool:
    """Whether a contiguous float32 tensor has neither NaN nor Inf.

    If the sum of squares is finite, so is every number, as squares cannot cancel; it takes one
    pass and no memory. If it is not, large numbers may have overflowed, so isfinite decides.
    """
    numbers = tensor.reshape(-1)
    for start in range(0, numbers.size, CHECKED_TOGETHER):
        part = numbers[start : start + CHECKED_TOGETHER]
        with np.errstate(all="ignore"):
            square = np.dot(part, part)
        if not np.isfinite(square) and not np.isfinite(part).all():
            return False
    return True
